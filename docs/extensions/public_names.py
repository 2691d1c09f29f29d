"""Check that every public name of the package is in the reference.

Public are the names in `__all__` of the package and of every package inside. A name that several packages export has
to be in the reference once.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Container
from types import ModuleType

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

logger = logging.getLogger(__name__)


def packages(root: str) -> list[ModuleType]:
    """Return a package and all packages inside that have `__all__`."""
    top = importlib.import_module(root)
    inside = [found.name for found in pkgutil.walk_packages(top.__path__, f"{root}.") if found.ispkg]
    return [module for name in (root, *inside) if hasattr(module := importlib.import_module(name), "__all__")]


def missing_names(root: str, documented: Container[str]) -> list[str]:
    """Return the public names that are not documented, as `bayes_rl.bayes.BayesLinear`.

    Args:
        root: name of the package.
        documented: full names of the objects in the reference.
    """
    exported = [(module, name) for module in packages(root) for name in module.__all__]
    found = {
        (id(getattr(module, name)), name) for module, name in exported if f"{module.__name__}.{name}" in documented
    }
    return [f"{m.__name__}.{name}" for m, name in exported if (id(getattr(m, name)), name) not in found]


def check(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn of every public name that no page of the reference documents; warnings end the build."""
    for name in missing_names(app.config.public_package, env.domains.python_domain.objects):
        logger.warning("the public name %s is on no page of the reference, or has no docstring", name)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the check."""
    app.add_config_value("public_package", "", "env", str)
    app.connect("env-check-consistency", check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
