"""Steps along the mean gradient, as long as it stands out of the noise of the batches.

Few steps on small batches leave more noise than gradient in most weights, and a step of Adam is as long there as
elsewhere. Here the step is η f ḡ: ḡ is the running mean of the gradients and f = (1 − noise/|ḡ|²)₊, where noise is what
|ḡ|² would be if the gradients had nothing in common. Source: the positive-part estimator of a mean (James and Stein
1961) with the gradients as draws. Where batches are too small to tell the way, nothing moves, at any rate η.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


class DampedMean:
    """Moves parameters in place along the damped mean of their gradients."""

    def __init__(self, parameters: Iterable[Tensor], memory: float) -> None:
        """Nothing is remembered yet.

        Args:
            parameters: Leaves.
            memory: How many gradients the mean is of, above 1; an exponential mean with β = 1 − 1/memory.
        """
        self.parameters: Sequence[Tensor] = list(parameters)
        self.beta, self.n_steps, self.power = 1 - 1 / memory, 0, 0.0
        self.means = [torch.zeros_like(p) for p in self.parameters]

    @torch.no_grad()
    def step(self, learning_rate: float) -> float:
        """One step of η = `learning_rate` times the damped mean.

        Returns:
            f in [0, 1]; 0 at the first step, which cannot be told from noise.
        """
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        self.n_steps += 1
        self.power = self.beta * self.power + (1 - self.beta) * power(gradients)
        for mean, gradient in zip(self.means, gradients, strict=True):
            mean.lerp_(gradient, 1 - self.beta)
        weight = 1 - self.beta**self.n_steps  # of all gradients so far; an exponential mean starts at zero
        signal, spread = power(self.means) / weight**2, self.power / weight
        damping = max(0.0, 1 - spread * self._noise_share() / signal) if signal > 0 else 0.0
        for parameter, mean in zip(self.parameters, self.means, strict=True):
            parameter.sub_(mean, alpha=learning_rate * damping / weight)
        return damping

    def _noise_share(self) -> float:
        """Σ w² of the weights w of the gradients in the mean: the share of their power that is left of pure noise."""
        old = self.beta**self.n_steps
        return (1 - self.beta) / (1 + self.beta) * (1 + old) / (1 - old)


def power(tensors: Iterable[Tensor]) -> float:
    """Sum of squares."""
    return float(sum(torch.dot(flat, flat) for flat in (tensor.flatten() for tensor in tensors)))
