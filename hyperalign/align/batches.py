"""What a training step sees: which captions with their pictures, which pairs, and which items count."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hyperalign.align.grid import PairIndex


class Sampler:
    """Batches of captions with next to no two of one picture, without end and without repeats inside an epoch.

    An epoch goes through every caption once. A picture's c captions are spread evenly over it, one at random in each
    c-th part, so that two of them rarely meet in a batch, where they would be each other's false negatives.
    """

    def __init__(self, owner: NDArray[np.int64], batch_size: int, seed: int) -> None:
        """Prepare; nothing is drawn yet.

        Args:
            owner: (n_captions,) image of each caption.
            batch_size: Captions in a batch, B; cut to the number of pictures, so that each can be another's.
            seed: Seeds the order.
        """
        self.owner = owner
        self.batch_size = min(batch_size, len(np.unique(owner)))
        self._rng = np.random.default_rng(seed)
        self._order = np.empty(0, dtype=np.int64)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch, at least one."""
        return max(1, len(self.owner) // self.batch_size)

    def draw(self) -> NDArray[np.int64]:
        """(B,) caption indices of the next batch."""
        if len(self._order) < self.batch_size:
            self._order = self._epoch()  # what was left of the last epoch is less than a batch
        batch, self._order = self._order[: self.batch_size], self._order[self.batch_size :]
        return batch

    def _epoch(self) -> NDArray[np.int64]:
        shuffled = self._rng.permutation(len(self.owner))
        by_owner = shuffled[np.argsort(self.owner[shuffled], kind="stable")]
        counts = np.bincount(self.owner)
        turn = np.arange(len(by_owner)) - np.repeat(np.cumsum(counts) - counts, counts)
        return by_owner[np.argsort((turn + self._rng.random(len(by_owner))) / np.repeat(counts, counts))]


class PairOrder:
    """Pairs in shuffled mini-batches of the grid, without end: each pair comes once before any comes twice."""

    def __init__(self, pairs: Sequence[PairIndex], n: int, seed: int | Sequence[int]) -> None:
        """Prepare; nothing is drawn yet.

        Args:
            pairs: The grid, or a part of it.
            n: Pairs in a draw, P; cut to the size of the grid.
            seed: Seeds the order.
        """
        self.pairs = np.array(pairs, dtype=np.int64)
        self.n = min(n, len(pairs))
        self.rng = np.random.default_rng([*np.atleast_1d(seed), 1])
        self.queue = np.empty((0, 2), dtype=np.int64)

    def draw(self) -> NDArray[np.int64]:
        """(P, 2) pairs, image-major, distinct."""
        if len(self.queue) < self.n:
            fresh = self.pairs[self.rng.permutation(len(self.pairs))]
            waiting = {tuple(p) for p in self.queue}
            late = [tuple(p) in waiting for p in fresh]
            self.queue = np.concatenate([self.queue, fresh[np.logical_not(late)], fresh[late]])
        drawn, self.queue = self.queue[: self.n], self.queue[self.n :]
        return drawn[np.lexsort((drawn[:, 1], drawn[:, 0]))]


class SubgridOrder:
    """Sub-grids of P image encoders by one text encoder, without end: each pair comes once before any comes twice."""

    def __init__(self, n_image: int, n_text: int, n: int, seed: int) -> None:
        """Prepare; nothing is drawn yet.

        Args:
            n_image: Image encoders, N.
            n_text: Text encoders, M, which take turns in shuffled rounds.
            n: Image encoders in a draw, P; cut to N.
            seed: Seeds the order.
        """
        self.n_text = n_text
        self.rng = np.random.default_rng([seed, 2])
        self.orders = [PairOrder([(i, j) for i in range(n_image)], n, seed=[seed, j]) for j in range(n_text)]
        self.round = np.empty(0, dtype=np.int64)

    def draw(self) -> tuple[NDArray[np.int64], int]:
        """(P,) image encoders, ascending, and the text encoder."""
        if not len(self.round):
            self.round = self.rng.permutation(self.n_text)
        text, self.round = int(self.round[0]), self.round[1:]
        return self.orders[text].draw()[:, 0], text


def valid_items(image_ok: NDArray[np.bool_], text_ok: NDArray[np.bool_]) -> Tensor | None:
    """(P, B) usable items of a batch, None where all are (the common case, and the faster one)."""
    both = image_ok & text_ok
    return None if both.all() else torch.from_numpy(both)
