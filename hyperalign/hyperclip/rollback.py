"""The best state that validation has seen of a training, kept while it runs and put back at its end."""

import math
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

__all__ = ["Rollback", "best_look"]


def best_look(seen: Sequence[tuple[int, float]]) -> tuple[int, float]:
    """The look with the highest score, the latest of equals; a score that is NaN is below all others."""
    return max(seen, key=lambda look: (-math.inf if math.isnan(look[1]) else look[1], look[0]))


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
            self.best = {name: tensor.detach().clone() for name, tensor in self.network.state_dict().items()}

    def go_back(self) -> None:
        """Put the best state back."""
        self.network.load_state_dict(self.best)
