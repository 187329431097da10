"""A label set cut in two: pictures that a probe or a bound is trained on, and the others, which all are scored on."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hyperalign.embed.label_sets import LabelSet
from hyperalign.rank.metrics import group_accuracy

__all__ = ["Parts", "split_labels", "worst_group"]


class Parts(NamedTuple):
    """Positions of a label set's pictures.

    Attributes:
        train: Those that are trained on.
        test: The others.
    """

    train: NDArray[np.int64]
    test: NDArray[np.int64]


def split_labels(label_set: LabelSet, *, train_share: float = 0.5, seed: int = 0) -> Parts:
    """Cut a label set in two, every class by itself; a class of one picture has it in the test part.

    Args:
        label_set: To cut.
        train_share: Share of each class's pictures that is trained on, in (0, 1).
        seed: Of the draw.
    """
    if not 0 < train_share < 1:
        raise ValueError(f"train_share must be in (0, 1), got {train_share}")
    dice = np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, len(label_set.labels)))))
    train = np.zeros(len(label_set.labels), dtype=bool)
    for label in np.unique(label_set.labels):
        own = dice.permutation(np.flatnonzero(label_set.labels == label))
        train[own[: min(len(own) - 1, round(train_share * len(own)))]] = True
    return Parts(np.flatnonzero(train), np.flatnonzero(~train))


def worst_group(hits: NDArray[np.float32], label_set: LabelSet, part: NDArray[np.int64]) -> tuple[float, str] | None:
    """Top-1 accuracy of the worst group in per cent and its name; None where the set has no groups.

    Args:
        hits: (n,) or (n, K) expected hits of the pictures in `part`, top-1 first.
        label_set: Whose pictures they are.
        part: Their positions.
    """
    if label_set.groups is None:
        return None
    by_group = group_accuracy(hits, label_set.groups[part])
    lowest = min(by_group, key=lambda group: (by_group[group], group))
    return by_group[lowest], label_set.group_names[lowest]
