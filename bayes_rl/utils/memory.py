"""Memory of the machine and of the control group of this process."""

from __future__ import annotations

import os
from pathlib import Path

CGROUPS = (  # limit, use, and statistics of the use, of which inactive files can be freed
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
    tuple(f"/sys/fs/cgroup/memory/memory.{name}" for name in ("limit_in_bytes", "usage_in_bytes", "stat")),
)


def available_memory() -> int:
    """Return the bytes of memory that this process can still use: of the machine, or less, of its control group."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        lines = (line.split() for line in meminfo.read_text().splitlines())
        available = next(1024 * int(words[1]) for words in lines if words[0] == "MemAvailable:")
    else:
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for limit, used, stat in ([Path(name) for name in names] for names in CGROUPS):
        if limit.exists() and (most := limit.read_text().strip()) != "max":
            caches = dict(line.split() for line in stat.read_text().splitlines()) if stat.exists() else {}
            inactive = int(caches.get("total_inactive_file", caches.get("inactive_file", 0)))
            available = min(available, int(most) - int(used.read_text()) + inactive)
    return max(0, available)
