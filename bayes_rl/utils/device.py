"""Copies from the CPU to a device."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device_async(x: Tensor, device: torch.device) -> Tensor:
    """Return `x` on `device`. A copy to a GPU runs asynchronously, and `x` may be changed at once.

    The copy goes through page-locked memory, in the order of the current stream. Torch does not use that memory again
    before the copy has read it.
    """
    if device.type != "cuda" or x.is_cuda:
        return x.to(device)
    return torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x).to(device, non_blocking=True)
