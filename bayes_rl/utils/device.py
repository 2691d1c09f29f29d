"""Bringing what the CPU makes to the device that learns, without waiting for it."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device_async(x: Tensor, device: torch.device) -> Tensor:
    """`x` on `device`; to a GPU under way when this returns, `x` may be changed at once.

    From page-locked memory the copy runs beside everything else, in the order of the stream. Torch keeps such memory
    from being used again until it has been read.
    """
    if device.type != "cuda" or x.is_cuda:
        return x.to(device)
    return torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x).to(device, non_blocking=True)
