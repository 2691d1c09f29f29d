"""Settings of consolidation."""

from __future__ import annotations

from typing import Any

import pytest

from bayes_rl.continual.settings import ConsolidationSettings
from bayes_rl.errors import ConfigError

BAD = [
    ("method", "ewcc", "model.consolidation.method", "'ewc'"),
    ("ewc_lambda", -1.0, "model.consolidation.ewc_lambda", "-1.0"),
    ("ewc_lambda", float("nan"), "model.consolidation.ewc_lambda", "nan"),
    ("ewc_lambda", float("inf"), "model.consolidation.ewc_lambda", "inf"),
    ("protected_networks", "critics", "model.consolidation.protected_networks", "'critic'"),
    ("fisher", "True", "model.consolidation.fisher", "'true'"),
    ("fisher_samples", 0, "model.consolidation.fisher_samples", "0"),
    ("fisher_newest", 0.0, "model.consolidation.fisher_newest", "0.0"),
    ("fisher_newest", 1.1, "model.consolidation.fisher_newest", "1.1"),
    ("fisher_newest", float("nan"), "model.consolidation.fisher_newest", "nan"),
    ("fisher_norm", "max", "model.consolidation.fisher_norm", "mean"),
    ("online_decay", -0.1, "model.consolidation.online_decay", "-0.1"),
    ("online_decay", 1.1, "model.consolidation.online_decay", "1.1"),
    ("online_decay", float("nan"), "model.consolidation.online_decay", "nan"),
]


@pytest.mark.parametrize(("name", "value", "key", "said"), BAD)
def test_a_setting_that_cannot_work_is_named(name: str, value: Any, key: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        ConsolidationSettings(**{name: value})
    assert error.value.key == key
    assert said in str(error.value)


def test_the_ends_of_the_ranges_are_allowed_and_settings_are_frozen() -> None:
    for method in ("none", "ewc", "online_ewc", "vcl"):
        settings = ConsolidationSettings(method, 0.0, "actor", "empirical", 1, 1.0, "mean", 0.0)
    assert ConsolidationSettings(online_decay=1.0).fisher_samples == 2000
    with pytest.raises(AttributeError):
        settings.ewc_lambda = 1.0  # type: ignore[misc]


def test_which_networks_are_protected() -> None:
    networks = {p: ConsolidationSettings(protected_networks=p).networks() for p in ("actor", "critic", "both")}
    assert networks["actor"] == [("actor", 0), ("actor", 1)]
    assert networks["critic"] == [("critic", 0), ("critic", 1)]
    assert networks["both"] == networks["actor"] + networks["critic"]
