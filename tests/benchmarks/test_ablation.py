"""The table of the ablation."""

from __future__ import annotations

from benchmarks.learning.ablation import table


def test_three_seeds_have_min_to_max_and_five_an_interval() -> None:
    common = {"game": "Breakout", "coverage_50": 0.5, "coverage_90": 0.9, "calibration_error": 0.1}
    few = [{**common, "arm": "plain", "seed": seed, "return_mean": float(seed)} for seed in (1, 2, 3)]
    five = [{**common, "arm": "elbo", "seed": seed, "return_mean": float(seed)} for seed in (1, 2, 3, 4, 5)]
    text = table([*few, *five])
    assert "| plain | 1, 2, 3 | 2.00 (1.00 to 3.00) |" in text
    assert "| elbo | 1, 2, 3, 4, 5 | 3.00 [1.04, 4.96] |" in text  # 3 +- 2.776 x sqrt(2.5 / 5)
    assert "min to max" in text
