"""Natural-gradient optimizer of means and variances: IVON (Shen et al. 2024, arXiv:2402.17641)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from bayes_rl.bayes.weight_posterior import WeightPosterior


class IVON(torch.optim.Optimizer):
    """Improved Variational Online Newton: natural-gradient descent of the negative ELBO of a mean-field Gaussian.

    Between updates, the parameters of the network are the means m of the posterior. P are its precisions, k is the
    precision of the prior, N the number of data, and T the temperature of the KL divergence. An update has four parts:

    1. `draw` moves the parameters to m + e, where e is a draw of N(0, 1 / P). The loss of a mean datum and its gradient
       g are computed there.
    2. `take_back` returns the parameters to m.
    3. `record` keeps e g. By Price's theorem, P e g has the mean second derivative of the loss as its expectation. What
       changes the gradients later changes the means alone: the EWC penalty is a function of the means, and by a clipped
       gradient the curvature of the loss would seem too small.
    4. `step` changes precisions and means by the gradients of that moment. With r = `precision_rate`,
       x = r ((N / T) e g - 1 + k / P), and u, the debiased moving average of the gradients,

           P <- max(P (1 + x + x^2 / 2), k / 2)        m <- m - lr ((N / T) u + k m) / P

    The fixed point of P is (N / T) h + k, where h is the expected second derivative. The factor 1 + x + x^2 / 2 is at
    least 1 / 2, so that precisions stay positive. A variance is at most twice the prior's, also where the loss is
    concave. If N / T changes, P - k changes by the same factor; N / T in use lags by at most 1 %, to save time.

    The draws of every two updates are a pair, m + e and m - e. The noise of e g(m), which is most of the noise of the
    estimate, cancels in the pair.

    The loss must not contain the KL divergence, which enters through k. A parameter without gradient remains as it is.

    Args:
        groups: parameter groups, each with `params` and `lr`. A step with `lr` 1 is a whole Newton step.
        names: parameter to its name in the posterior.
        posterior: holds the precisions.
        precision_rate: r, weight of the newest estimate in the precisions, in (0, 1].
        momentum: weight of the old value in the moving average of the gradients, in [0, 1).
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        names: Mapping[Tensor, str],
        posterior: WeightPosterior,
        precision_rate: float,
        momentum: float = 0.9,
    ) -> None:
        super().__init__(groups, {"lr": 0.0})
        self._names, self._posterior = dict(names), posterior
        self.precision_rate, self.momentum = precision_rate, momentum
        self._noise: list[Tensor] = []  # e of each parameter; empty if the update has no draw yet
        self._means: list[Tensor] = []  # m of each parameter while the parameters are a draw
        self._products: dict[Tensor, Tensor] = {}  # e g

    @property
    def parameters(self) -> list[Tensor]:
        """All parameters."""
        return [p for group in self.param_groups for p in group["params"]]

    def _precisions(self, parameters: list[Tensor]) -> list[Tensor]:
        return [self._posterior.precision(self._names[p]) for p in parameters]

    @torch.no_grad()
    def draw(self, data_weight: float) -> None:
        """Move the parameters from their means to a draw. All minibatches of an update have the same draw.

        Args:
            data_weight: N / T of this update.
        """
        parameters = self.parameters
        if not self._noise:
            self._begin(parameters, data_weight)
            self._noise = list(torch._foreach_rsqrt(self._precisions(parameters)))
            torch._foreach_mul_(self._noise, [self.state[p]["noise"] for p in parameters])
        self._means = [p.detach().clone() for p in parameters]
        torch._foreach_add_(parameters, self._noise)

    def _begin(self, parameters: list[Tensor], data_weight: float) -> None:
        """Give new parameters a state, draw or reverse the noise of all, and fit the precisions to N / T."""
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter] = {
                    "step": 0,
                    "data_weight": data_weight,
                    "momentum": torch.zeros_like(parameter),
                    "noise": torch.empty_like(parameter),
                }
                self._posterior.precision(self._names[parameter]).fill_(self._posterior.init_precision)
            state = self.state[parameter]
            _ = state["noise"].neg_() if state["step"] % 2 else state["noise"].normal_()
        factors = [data_weight / self.state[p]["data_weight"] for p in parameters]
        if len(set(factors)) > 1 or abs(factors[0] - 1) > 0.01:
            precisions, prior = self._precisions(parameters), self._posterior.prior_precision
            torch._foreach_sub_(precisions, prior)
            torch._foreach_mul_(precisions, factors)
            torch._foreach_add_(precisions, prior)
            torch._foreach_clamp_min_(precisions, 0.5 * prior)
            for parameter in parameters:
                self.state[parameter]["data_weight"] = data_weight

    @torch.no_grad()
    def take_back(self) -> None:
        """Return the parameters to their means."""
        torch._foreach_copy_(self.parameters, self._means)
        self._means = []

    @torch.no_grad()
    def record(self) -> None:
        """Keep the products of noise and gradients, before the gradients change."""
        noise = dict(zip(self.parameters, self._noise, strict=True))
        self._products = {p: e.mul_(p.grad) for p, e in noise.items() if p.grad is not None}
        self._noise = []

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Change precisions and means by the gradients.

        Args:
            closure: computes the loss at a draw, and takes the draw back and records it; or None.

        Returns:
            What `closure` returns.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            trained = [p for p in group["params"] if p.grad is not None]
            if trained:
                self._step(trained, group["lr"])
        self._products = {}
        return loss

    def _step(self, parameters: list[Tensor], lr: float) -> None:
        """Change the precisions and the means of parameters that have gradients."""
        states, prior, rate = [self.state[p] for p in parameters], self._posterior.prior_precision, self.precision_rate
        data_weight, precisions = states[0]["data_weight"], self._precisions(parameters)
        change = [self._products[p] for p in parameters]  # becomes P x
        torch._foreach_mul_(change, precisions)
        torch._foreach_mul_(change, rate * data_weight)
        torch._foreach_add_(change, rate * prior)
        torch._foreach_add_(change, precisions, alpha=-rate)
        square = torch._foreach_mul(change, change)
        torch._foreach_div_(square, precisions)  # P x^2
        torch._foreach_add_(precisions, change)
        torch._foreach_add_(precisions, square, alpha=0.5)
        torch._foreach_clamp_min_(precisions, 0.5 * prior)

        momenta = [state["momentum"] for state in states]
        torch._foreach_lerp_(momenta, [p.grad for p in parameters if p.grad is not None], 1 - self.momentum)
        for state in states:
            state["step"] += 1
        factors = [data_weight / (1 - self.momentum ** state["step"]) for state in states]
        gradient = torch._foreach_mul(momenta, factors)
        torch._foreach_add_(gradient, parameters, alpha=prior)
        torch._foreach_addcdiv_(parameters, gradient, precisions, value=-lr)
