"""What a training ends in: the best state that validation has seen of it, on the way back to where it began."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

__all__ = ["Rollback", "best_look", "blend", "copy_state"]


def best_look(seen: Sequence[tuple[int, float]]) -> tuple[int, float]:
    """The look with the highest score, the latest of equals; NaN is below all numbers, and of NaN the earliest."""
    return max(seen, key=lambda look: (-math.inf, -look[0]) if math.isnan(look[1]) else (look[1], look[0]))


def copy_state(network: nn.Module) -> dict[str, Tensor]:
    """Weights and statistics as they are now."""
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


@torch.no_grad()
def blend(network: nn.Module, start: Mapping[str, Tensor], share: float) -> None:
    """Take a network part of the way from where it began: start + share · (now − start), counters left as they are.

    Between the two weights a network has most of what it learned and has lost less of what it knew.
    Source: Wortsman et al. 2022, arXiv:2109.01903.

    Args:
        network: Changed in place.
        start: Its state at the start.
        share: In [0, 1].
    """
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.lerp(start[name].to(tensor), tensor, share))


class Rollback:
    """Looks at a running training; the start counts too, so that a model which gets worse ends as it began."""

    def __init__(
        self,
        network: nn.Module,
        validate: Callable[[], float],
        *,
        n_steps: int,
        n_looks: int,
        seen: list[tuple[int, float]],
        best: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Nothing is looked at yet.

        Args:
            network: What is trained.
            validate: Its score as it stands, higher is better.
            n_steps: Of the whole training.
            n_looks: How often to look, the start not counted.
            seen: Steps and scores of the looks so far; every look adds to it.
            best: State of the best of them.
        """
        self.network, self.validate, self.seen = network, validate, seen
        self.due = {0} | {round(n_steps * (k + 1) / n_looks) for k in range(n_looks)}
        self.best = dict(best or {})

    def after_step(self, step: int) -> None:
        """Look, where it is time to; 0 is the start."""
        if step not in self.due or step in {one for one, _ in self.seen}:
            return
        self.seen.append((step, self.validate()))
        if best_look(self.seen)[0] == step:
            self.best = copy_state(self.network)

    def go_back(self) -> None:
        """Put the best state back."""
        self.network.load_state_dict(self.best)
