"""Strategy of several ranks: averages of gradients, and checkpoints of all ranks."""

from __future__ import annotations

import contextlib
import inspect
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pytorch_lightning.overrides.distributed import _sync_module_states
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor
from torch.nn import Parameter
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from bayes_rl.errors import ConfigError
from bayes_rl.training.checkpoint_io import AtomicCheckpointIO, read_rank_file, write_rank_file
from bayes_rl.utils.ranks import average_in_place, gather_from_ranks, share_memory, unshare_memory
from bayes_rl.utils.stop_signals import STOP

SYNCHRONISE_BUFFERS = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")  # the second one is the name of older versions of torch
    if name in inspect.signature(DistributedDataParallel.__init__).parameters
)

OF_RANK = ("stream", "rank")
"""Entries of the data module's state that belong to one rank."""

NOISE = "noise_of_rank"
"""Entry of a checkpoint: state of a rank's own random numbers."""


class RankStrategy(DDPStrategy):
    """Distributed data parallel, whose checkpoints hold the games, replays and random numbers of every rank.

    A checkpoint has what all ranks share. Each rank writes its own state to a file beside it, `NAME.rank0.HASH` and so
    on. The checkpoint's manifest lists these files: they count once the manifest names them.

    Ranks on the processors of one machine average their gradients by shared memory once a backward pass has ended, and
    need no DDP. All other ranks average them by DDP. Buffers are not broadcast before every update, because the agent
    keeps them equal on all ranks. DDP looks for parameters without a gradient if an update can leave out networks; all
    ranks leave out the same ones.

    Args:
        options: of Lightning's strategy. With options of DDP, gradients are averaged by DDP.
    """

    _averaged: list[Parameter] | None = None  # parameters whose gradients this strategy averages itself

    def setup_distributed(self) -> None:
        """Begin the exchange between ranks, of GPU tensors by NCCL and of counters on the processors by Gloo."""
        if self.root_device.type == "cuda" and self._process_group_backend is None:
            self._process_group_backend = "cpu:gloo,cuda:nccl"
        super().setup_distributed()

    def configure_ddp(self) -> None:
        """Share memory with the other ranks, or wrap the agent, with the options of DDP that it needs."""
        if self.num_nodes == 1 and self.root_device.type == "cpu" and not self._ddp_kwargs:
            module = self.lightning_module
            assert module is not None
            trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
            capacity = sum(parameter.numel() * parameter.element_size() for parameter in trained)
            if share_memory(capacity, None if self._timeout is None else self._timeout.total_seconds()):
                self._averaged = trained
                _sync_module_states(module)
                return
        leaves_out = getattr(self.lightning_module, "leaves_out_networks", True)
        needed = {SYNCHRONISE_BUFFERS: False, "find_unused_parameters": leaves_out}
        self._ddp_kwargs = {**needed, **self._ddp_kwargs}
        super().configure_ddp()

    def backward(self, closure_loss: Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any) -> Tensor:
        """Compute gradients, and average them over ranks before any callback sees them, as DDP does."""
        if self._averaged is None:
            return super().backward(closure_loss, optimizer, *args, **kwargs)
        module, precision = self.lightning_module, self.precision_plugin
        assert module is not None
        closure_loss = precision.pre_backward(closure_loss, module)
        precision.backward(closure_loss, module, optimizer, *args, **kwargs)
        self._average_gradients(self._averaged)
        return precision.post_backward(closure_loss, module)

    def _average_gradients(self, parameters: list[Parameter]) -> None:
        """Average the gradients of those parameters that have one: the same ones on all ranks."""
        key = zlib.crc32(bytes(parameter.grad is not None for parameter in parameters))
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        for dtype in dict.fromkeys(gradient.dtype for gradient in gradients):
            average_in_place([gradient for gradient in gradients if gradient.dtype == dtype], key)

    def teardown(self) -> None:
        """Give the shared memory back."""
        unshare_memory()
        self._averaged = None
        super().teardown()

    @contextlib.contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Average the gradients of every minibatch, also of those whose gradients are added up for one update.

        Otherwise the gradient of a network that the last of these minibatches leaves out would never be averaged.
        """
        yield

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Write the file of this rank, and on rank 0 the checkpoint with the manifest of all files."""
        if not isinstance(self.checkpoint_io, AtomicCheckpointIO):
            problem = "writes no checkpoints of several ranks; use bayes_rl.training.checkpoint_io.AtomicCheckpointIO"
            raise ConfigError("trainer.plugins", type(self.checkpoint_io).__name__, problem)
        with STOP.save_in_progress():
            data = checkpoint.get(self._data_key, {})
            own = {key: data.pop(key) for key in OF_RANK if key in data}
            state = {"data": own, NOISE: checkpoint.pop(NOISE, None)}
            files = gather_from_ranks(write_rank_file(Path(filepath), self.global_rank, state))
            if self.is_global_zero:
                self.checkpoint_io.save_checkpoint(checkpoint, filepath, {"ranks": files})

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Return the checkpoint.

        If training goes on with as many ranks as wrote the checkpoint, the state of this rank is added.
        """
        checkpoint: dict[str, Any] = super().load_checkpoint(checkpoint_path, weights_only)
        trainer: Any = self.lightning_module.trainer  # type: ignore[union-attr]
        data = checkpoint.get(self._data_key, {})
        goes_on = trainer.state.fn == "fit" and not trainer.datamodule.refill_replay
        if goes_on and data.get("ranks") == self.world_size:
            state = read_rank_file(Path(checkpoint_path), self.global_rank)
            data |= state["data"]
            checkpoint[NOISE] = state[NOISE]
        return checkpoint

    @property
    def _data_key(self) -> str:
        """Key of the data module's state in a checkpoint."""
        return type(self.lightning_module.trainer.datamodule).__qualname__  # type: ignore[union-attr]
