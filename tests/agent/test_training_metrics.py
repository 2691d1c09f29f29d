"""Logged values of training: each by its definition, and all in the documentation."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from bayes_rl.agent.training_metrics import training_values
from bayes_rl.bayes.kl import kl_divergence
from bayes_rl.networks.actor_critic import TwinOutput
from tests.helpers.agents import (
    ACTIONS,
    EVERYTHING,
    MEMBERS,
    PROCESS,
    fit,
    make_batch,
    make_module,
)

# Lightning 2.6.6 asks torch's pytree in a way that torch 2.13 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")

DOCUMENTED = Path(__file__).parents[2] / "docs/reference/metrics.md"


@pytest.mark.parametrize("draws", [(), (3,)])
def test_logged_values_are_means_over_all_that_was_said(draws: tuple[int, ...]) -> None:
    """Each tag in a loop over pairs, draws and rows; pairs of draws and critics are alike."""
    size, noise_std = 5, 0.7
    module = make_module(likelihood={"noise_std": noise_std}, objective={"kl_temperature": 0.4})
    batch = make_batch(size, num_data=40)
    shape = (2, *draws, size, ACTIONS)
    output = TwinOutput(torch.randn(shape), torch.randn(*shape, 1), torch.randn(shape))
    targets = torch.randn(shape[:-1])
    parts = {name: torch.randn(()) for name in ("nll", "kl", "ewc_penalty", "actor_loss")}
    logged = training_values(module.twin, batch, output, targets, 0.4, parts)
    q, probs = (x.reshape(-1, size, ACTIONS) for x in (output.q_values, output.action_logits.softmax(-1)))
    goals, count = targets.reshape(-1, size), len(q)
    action = batch.transition.action.tolist()
    mean_q, mean_probs = (sum(x[i] for i in range(count)) / count for x in (q, probs))
    half = count // 2
    expected = {
        "q": sum(mean_q[b, a] for b, a in enumerate(action)) / size,
        "q_max": sum(max(row) for row in mean_q.tolist()) / size,
        "td_error": sum(abs(goals[i, b] - q[i, b, a]) for i in range(count) for b, a in enumerate(action))
        / (count * size),
        "twin_gap": (q[:half] - q[half:]).abs().mean(),
        "actor_agrees": sum(mean_probs[b].argmax() == mean_q[b].argmax() for b in range(size)) / size,
        "policy_entropy": -(probs * probs.log()).sum(-1).mean(),
        "noise_std": noise_std,
        "num_data": 40,
        "temperature": 0.4,
        "elbo_loss": parts["nll"] + 0.4 / 40 * parts["kl"],
        "kl_to_nll": 0.4 / 40 * parts["kl"] / abs(parts["nll"]),
        "ewc_to_nll": parts["ewc_penalty"] / abs(parts["nll"]),
        **parts,
    }
    for tag, value in expected.items():
        assert float(logged[f"train/{tag}"]) == pytest.approx(float(value), rel=1e-5, abs=1e-6), tag
    heads = {f"kl/{kind}.{pair}" for kind in ("actors", "critics") for pair in range(2)}
    assert {tag for tag in logged if tag.startswith("kl/")} == heads
    assert sum(float(logged[tag]) for tag in heads) == pytest.approx(kl_divergence(module.twin).item(), rel=1e-5)


def documented_between(start: str, end: str) -> set[str]:
    """Return the tags of training between two headings of the page."""
    text = DOCUMENTED.read_text()
    return set(re.findall(r"`((?:train|kl|posterior)/\w+)`", text[text.index(start) : text.index(end)]))


@pytest.mark.parametrize(
    "settings", [{}, EVERYTHING, MEMBERS, {"likelihood": {"family": "hl_gauss"}}, PROCESS], ids=lambda s: str(len(s))
)
def test_every_training_tag_is_documented(settings: dict[str, Any]) -> None:
    documented = documented_between("## Objective", "## Experience")
    if settings is PROCESS:  # has no Bayesian layer
        documented = {tag for tag in documented if not tag.startswith(("kl/", "posterior/"))}
    logged = fit(make_module(settings), [make_batch()], log_every=1).callback_metrics
    names = {re.sub(r"^kl/.*", "kl/NAME", tag) for tag in logged}
    assert names == documented | {"step"}
    assert all(math.isfinite(value) for value in logged.values())
