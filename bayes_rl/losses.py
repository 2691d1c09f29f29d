"""All mathematics of the objective, as pure functions: tensors in, tensor out. Read this first.

loss = nll + (temperature / num_data) * kl      (the critic's negative ELBO)
     + actor_loss                               (gradients kept apart by `detach`)
     + ewc_penalty                              (by its gradient, added after the backward pass)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

PIECE = 2**16  # numbers of which several arrays fit into a core's own cache


def _same_shape(**tensors: Tensor) -> None:
    # `[B]` against `[B, 1]` would broadcast to `[B, B]` without a word.
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"shapes must be equal, got {shapes}")


def expected_value(action_probs: Tensor, q_values: Tensor) -> Tensor:
    """Q(s, a) = <a, Q(s, .)> for a point a of the action simplex: two `[..., A]` to `[...]`."""
    _same_shape(action_probs=action_probs, q_values=q_values)
    return (action_probs * q_values).sum(-1)


def td_target(reward: Tensor, discount: Tensor, next_action_probs: Tensor, next_q_values: Tensor) -> Tensor:
    """Bootstrapped n-step target r^(n) + discount * <mu'(s'), Q'(s', .)>; no gradient flows through it.

    Args:
        reward: `[...]`, discounted n-step sum.
        discount: `[...]`, gamma^k, 0 where the episode terminated.
        next_action_probs: `[..., A]`, the target actor at s_{t+k}.
        next_q_values: `[..., A]`, the target critic at s_{t+k}.

    Returns:
        `[...]` float32.

    Raises:
        ValueError: if shapes do not agree.
    """
    bootstrap = expected_value(next_action_probs, next_q_values)
    _same_shape(reward=reward, discount=discount, bootstrap=bootstrap)
    return (reward + discount * bootstrap).detach()


def greedy(q_values: Tensor) -> Tensor:
    """The corner of the simplex with the greatest value: `[..., A]` to a one-hot `[..., A]`."""
    return F.one_hot(q_values.argmax(-1), q_values.shape[-1]).to(q_values.dtype)


def gaussian_nll(q: Tensor, td_target: Tensor, noise_std: Tensor | float) -> Tensor:
    """-log N(td_target | q, noise_std^2) in nats, shaped as `q`: half the squared TD error over the noise variance,
    with its normalising constant, because a bare squared error is not a likelihood; `noise_std` may be learned.
    """
    _same_shape(q=q, td_target=td_target)
    log_std = noise_std.log() if isinstance(noise_std, Tensor) else math.log(noise_std)
    return 0.5 * ((td_target - q) / noise_std).square() + (log_std + 0.5 * math.log(2 * math.pi))


def dpg_loss(action_logits: Tensor, q_values: Tensor) -> Tensor:
    """Deterministic policy gradient on the simplex: minus the mean over the batch of <softmax(logits), Q>.

    Its gradient is the exact all-action gradient sum_a grad mu_a Q_a; `q_values` `[B, A]` are constants.
    """
    return -expected_value(action_logits.softmax(-1), q_values.detach()).mean()


def cross_entropy_loss(action_logits: Tensor, q_values: Tensor, policy_temperature: float) -> Tensor:
    """Fit the actor to softmax(Q / policy_temperature) by cross-entropy; scalar, mean over the batch, in nats.

    Unlike `dpg_loss` its gradient has no factor mu_a, so a saturated actor still learns. `q_values` `[B, A]`
    are constants, in return units, as is `policy_temperature`.
    """
    _same_shape(action_logits=action_logits, q_values=q_values)
    return F.cross_entropy(action_logits, (q_values.detach() / policy_temperature).softmax(-1))


def entropy(action_logits: Tensor) -> Tensor:
    """Entropy of softmax(logits) in nats, mean over the leading axes: a scalar in [0, log A]."""
    log_probs = action_logits.log_softmax(-1)
    return -(log_probs.exp() * log_probs).sum(-1).mean()


def negative_elbo(nll: Tensor, kl: Tensor, num_data: int, temperature: float) -> Tensor:
    """Per-datum negative ELBO: mean nll + (temperature / num_data) KL(q || p), in nats.

    `nll` is a mean over the batch, `kl` a sum over all weights; with `temperature` 1 and `num_data` = N this is
    -ELBO / N exactly (Blundell et al. 2015, arXiv:1505.05424, written per datum).
    """
    return nll + (temperature / num_data) * kl


def quadratic_penalty(parameter: Tensor, anchor: Tensor, fisher: Tensor) -> Tensor:
    """Half of sum_i F_i (w_i - w*_i)^2: the EWC term of one tensor, before lambda. A scalar >= 0."""
    _same_shape(parameter=parameter, anchor=anchor, fisher=fisher)
    return 0.5 * (fisher * (parameter - anchor).square()).sum()


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
        _same_shape(parameter=w, anchor=a, fisher=f)
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
    _same_shape(fisher=fisher, anchor=anchor, new_fisher=new_fisher, new_anchor=new_anchor)
    total = fisher + new_fisher
    share = torch.where(fisher == 0, 1.0, new_fisher / total)
    constant = (fisher * share * (anchor - new_anchor).square()).sum()
    return total, torch.lerp(anchor, new_anchor, share), constant


def sampled_log_prob(logits: Tensor, u: Tensor) -> Tensor:
    """log p_b of a class b ~ p = softmax(logits), drawn by the inverse of p's distribution function at `u`.

    Args:
        logits: `[..., n]`.
        u: `[...]`, uniform in [0, 1): the randomness of the draw, through which no gradient flows.

    Returns:
        `[...]` in nats, <= 0.

    Raises:
        ValueError: if shapes do not agree.
    """
    _same_shape(logits=logits[..., 0], u=u)
    cdf = logits.detach().softmax(-1).cumsum(-1)
    # The last sum is 1 but for rounding, and u below 1 but for its own: scaled by the one and kept to the largest
    # float below 1, u always falls into a class of positive probability.
    below_one = 1 - torch.finfo(cdf.dtype).eps / 2
    drawn = (cdf <= u.to(cdf.dtype).clamp_max(below_one)[..., None] * cdf[..., -1:]).sum(-1, keepdim=True)
    return logits.log_softmax(-1).gather(-1, drawn).squeeze(-1)
