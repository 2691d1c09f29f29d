"""Options of runs for TensorBoard's page HParams."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from typing import Any

from google.protobuf.struct_pb2 import Value
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.plugins.hparams.api_pb2 import (
    DATA_TYPE_BOOL,
    DATA_TYPE_FLOAT64,
    DATA_TYPE_STRING,
    Experiment,
    HParamInfo,
    MetricInfo,
    MetricName,
)
from tensorboard.plugins.hparams.metadata import (
    EXPERIMENT_TAG,
    NULL_TENSOR,
    PLUGIN_DATA_VERSION,
    PLUGIN_NAME,
    SESSION_START_INFO_TAG,
)
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionStartInfo


def columns(options: Mapping[str, Any], first: Collection[str], tags: Collection[str]) -> Summary:
    """Return the columns of the page, which TensorBoard reads from the first of several runs.

    Args:
        options: names and values of options.
        first: names of the options that the page begins with. TensorBoard shows five options at first.
        tags: tags whose newest value is a column.
    """
    infos = [HParamInfo(name=name, type=_type(value), differs=name in first) for name, value in options.items()]
    metrics = [MetricInfo(name=MetricName(tag=tag)) for tag in tags]
    content = Experiment(hparam_infos=infos, metric_infos=metrics)
    return _summary(EXPERIMENT_TAG, HParamsPluginData(version=PLUGIN_DATA_VERSION, experiment=content))


def row(options: Mapping[str, Any]) -> Summary:
    """Return the options of a run. The run has no end, because a later fit can continue the run.

    Args:
        options: names and values of options.
    """
    content = SessionStartInfo(start_time_secs=time.time())
    for name, value in options.items():
        content.hparams[name].CopyFrom(_value(value))
    data = HParamsPluginData(version=PLUGIN_DATA_VERSION, session_start_info=content)
    return _summary(SESSION_START_INFO_TAG, data)


def _type(value: Any) -> Any:
    if isinstance(value, bool):
        return DATA_TYPE_BOOL
    return DATA_TYPE_FLOAT64 if isinstance(value, int | float) else DATA_TYPE_STRING


def _value(value: Any) -> Value:
    if isinstance(value, bool):
        return Value(bool_value=value)
    return Value(number_value=value) if isinstance(value, int | float) else Value(string_value=str(value))


def _summary(tag: str, data: HParamsPluginData) -> Summary:
    about = SummaryMetadata.PluginData(plugin_name=PLUGIN_NAME, content=data.SerializeToString())
    metadata = SummaryMetadata(plugin_data=about)
    return Summary(value=[Summary.Value(tag=tag, metadata=metadata, tensor=NULL_TENSOR)])
