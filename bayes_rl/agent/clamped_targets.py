"""Monitor of targets that a categorical likelihood cannot hold."""

from __future__ import annotations

WINDOW = 1000
"""Targets after which the count begins again."""

FEWEST = 10
"""Clamped targets without which nothing is said: a smaller number may be chance."""

LARGEST_SHARE = 0.01
"""Share of clamped targets above which the monitor warns."""


class ClampedTargetMonitor:
    """Count of targets beyond the likelihood's bounds, which warns at most once of a share above 1 %.

    Args:
        bounds: smallest and largest return that the likelihood holds, in clipped return units.
    """

    def __init__(self, bounds: tuple[float, float]) -> None:
        self.bounds = bounds
        self._clamped, self._targets, self._warned = 0.0, 0, False

    def add(self, share: float, targets: int) -> str | None:
        """Count the targets of a minibatch.

        Args:
            share: share of them beyond the bounds, 0 to 1.
            targets: their number.

        Returns:
            A warning in one line, or None.
        """
        if self._targets >= WINDOW:
            self._clamped, self._targets = 0.0, 0
        self._clamped += share * targets
        self._targets += targets
        share = self._clamped / self._targets
        if self._warned or self._clamped < FEWEST or share <= LARGEST_SHARE:
            return None
        self._warned = True
        low, high = self.bounds
        return (
            f"--model.likelihood.value_range {low:g} to {high:g}: {share:.0%} of the targets lie beyond it and count "
            "as its ends, so values saturate; widen it (train/clamped_targets is the share)"
        )

    def describe(self, low: float, high: float) -> str | None:
        """Compare the bounds with the returns that the rewards allow.

        Args:
            low: smallest discounted return, -infinity if it is not known.
            high: largest discounted return, infinity if it is not known.

        Returns:
            A line, or None if all returns are within the bounds or are not known.
        """
        smallest, largest = self.bounds
        if (smallest <= low and high <= largest) or not -float("inf") < low <= high < float("inf"):
            return None
        return (
            f"--model.likelihood.value_range {smallest:g} to {largest:g} does not hold every return that "
            f"--data.replay.reward_clip and gamma allow, {low:.4g} to {high:.4g}: targets beyond it count as its ends "
            "(train/clamped_targets is their share)"
        )
