"""Elastic Weight Consolidation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bayes_rl.continual.settings import ConsolidationSettings
from bayes_rl.errors import check_same_shape
from bayes_rl.losses import quadratic_penalty

PIECE = 2**16  # numbers of which several arrays fit into a core's own cache


@torch.no_grad()
def add_penalty_gradients(
    parameters: Sequence[Tensor], anchors: Sequence[Tensor], fishers: Sequence[Tensor], scale: float
) -> None:
    """Add scale * F (w - w*), the gradient of `scale` times each `quadratic_penalty`, to `.grad` where there is one.

    After the backward pass this reads and writes less memory than autograd, which would write a gradient of its own
    first and add it then.

    Raises:
        ValueError: if shapes do not agree.
    """
    for w, a, f in zip(parameters, anchors, fishers, strict=True):
        check_same_shape(parameter=w, anchor=a, fisher=f)
        if w.grad is not None:
            for piece, anchor, fisher, gradient in _pieces(w.detach(), a, f, w.grad):
                gradient.addcmul_(piece - anchor, fisher, value=scale)


def _pieces(*tensors: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """Views of tensors of one shape, small enough that what is made of one stays in a processor's cache."""
    if tensors[0].numel() <= PIECE or not all(x.is_cpu and x.is_contiguous() for x in tensors):
        return [tensors]
    return zip(*(x.view(-1).split(PIECE) for x in tensors), strict=True)


def sum_of_quadratics(
    fisher: Tensor, anchor: Tensor, new_fisher: Tensor, new_anchor: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """sum_i F_i (w_i - a_i)^2 + F'_i (w_i - a'_i)^2 as one such sum and a constant, by completing the square.

    Args:
        fisher: F >= 0.
        anchor: a, which does not matter where `fisher` is 0.
        new_fisher: F' >= 0.
        new_anchor: a'.

    Returns:
        F + F'; the common anchor a + s (a' - a) with s = F' / (F + F'), exactly a' where F is 0; and the constant
        sum_i F_i s_i (a_i - a'_i)^2, a scalar >= 0.

    Raises:
        ValueError: if shapes do not agree.
    """
    check_same_shape(fisher=fisher, anchor=anchor, new_fisher=new_fisher, new_anchor=new_anchor)
    total = fisher + new_fisher
    share = torch.where(fisher == 0, 1.0, new_fisher / total)
    constant = (fisher * share * (anchor - new_anchor).square()).sum()
    return total, torch.lerp(anchor, new_anchor, share), constant


class ElasticWeightConsolidation(nn.Module):
    """Anchor and Fisher diagonal of the protected parameters, in buffers keyed by parameter name.

    The quadratics of any number of tasks are one quadratic and a constant, two tensors in all.

    Args:
        parameters: the parameters to protect, by name. Log-variances of Bayesian layers do not belong here:
            the penalty anchors means.
        settings: strength of the penalty, and how tasks add up.
    """

    consolidations: Tensor
    constant: Tensor

    def __init__(self, parameters: Mapping[str, Tensor], settings: ConsolidationSettings) -> None:
        super().__init__()
        self.settings = settings
        self.names = list(parameters)
        self._keys = [[_key(what, name) for name in self.names] for what in ("anchor", "fisher")]
        for name, p in parameters.items():
            self.register_buffer(_key("anchor", name), torch.zeros_like(p))
            self.register_buffer(_key("fisher", name), torch.zeros_like(p))
        like = next(iter(parameters.values()), torch.zeros(()))
        self.register_buffer("constant", like.detach().new_zeros(()))
        self.register_buffer("consolidations", torch.zeros((), dtype=torch.int64))
        self._any = False  # a consolidation, known without asking the device

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._any = bool(self.consolidations > 0)

    @property
    def active(self) -> bool:
        """Whether there is a penalty yet."""
        return self._any and bool(self.names)

    def anchor(self, name: str) -> Tensor:
        """w* of one parameter."""
        return self.get_buffer(_key("anchor", name))

    def fisher(self, name: str) -> Tensor:
        """F of one parameter, summed over the tasks."""
        return self.get_buffer(_key("fisher", name))

    @torch.no_grad()
    def consolidate(self, parameters: Mapping[str, Tensor], fisher: Mapping[str, Tensor]) -> None:
        """Add a task: its last `parameters` and the Fisher diagonal there; both must name every protected tensor."""
        for name in self.names:
            old, anchor, new = self.fisher(name), self.anchor(name), fisher[name]
            if self.settings.method == "online_ewc":
                merged = self.settings.online_decay * old + new, parameters[name], torch.zeros_like(self.constant)
            else:
                merged = sum_of_quadratics(old, anchor, new, parameters[name])
            old.copy_(merged[0])
            anchor.copy_(merged[1])
            self.constant += merged[2]
        self.consolidations += 1
        self._any = True

    def penalty(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """(lambda / 2) sum_tasks sum_i F_i (w_i - w*_i)^2 over all protected tensors: a scalar >= 0, in nats.

        Of the online method there is one F and one w*. Before the first consolidation it is a constant 0, and no
        parameter has a gradient of it.
        """
        if not self.active:
            return torch.zeros_like(self.constant)
        parts = [quadratic_penalty(*three) for three in zip(*self._tensors(parameters), strict=True)]
        return self.settings.ewc_lambda * (torch.stack(parts).sum() + 0.5 * self.constant)

    def add_gradients(self, parameters: Mapping[str, Tensor]) -> None:
        """Add the gradient of `penalty` to `.grad` of every protected tensor that has one."""
        if self.active:
            add_penalty_gradients(*self._tensors(parameters), self.settings.ewc_lambda)

    def _tensors(self, parameters: Mapping[str, Tensor]) -> tuple[list[Tensor], list[Any], list[Any]]:
        """Protected tensors, their anchors and Fisher diagonals."""
        # Straight from the dictionary: a module takes long to find a buffer.
        kept: dict[str, Any] = self._buffers
        anchors, fishers = ([kept[key] for key in keys] for keys in self._keys)
        return [parameters[name] for name in self.names], anchors, fishers


def _key(what: str, name: str) -> str:
    return f"{what}_{name.replace('.', '__')}"  # a buffer's name has no dots
