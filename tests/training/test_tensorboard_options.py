"""Options of runs on TensorBoard's page HParams, as TensorBoard itself reads them."""

from __future__ import annotations

from tensorboard.plugins.hparams import metadata

from bayes_rl.training.tensorboard_options import columns, row


def test_columns_begin_with_those_that_were_chosen_and_have_types() -> None:
    summary = columns({"a": 1, "b": True, "c": "x", "d": [1, 2], "e": 0.5}, ["c"], ["val/return_mean"])
    content = metadata.parse_experiment_plugin_data(summary.value[0].metadata.plugin_data.content)
    kinds = {info.name: (info.type, info.differs) for info in content.hparam_infos}
    string, boolean, number = 1, 2, 3
    assert kinds == {
        "a": (number, False),
        "b": (boolean, False),
        "c": (string, True),
        "d": (string, False),
        "e": (number, False),
    }
    assert [info.name.tag for info in content.metric_infos] == ["val/return_mean"]


def test_a_row_has_the_value_of_each_option() -> None:
    summary = row({"a": 1, "b": True, "c": "x", "d": [1, 2], "e": None})
    content = metadata.parse_session_start_info_plugin_data(summary.value[0].metadata.plugin_data.content)
    values = content.hparams
    assert (values["a"].number_value, values["b"].bool_value, values["c"].string_value) == (1, True, "x")
    assert (values["d"].string_value, values["e"].string_value) == ("[1, 2]", "None")
    assert content.start_time_secs > 0
