"""What every method gives: a linear connector for each of some pairs, and what that cost."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from hyperalign.align.canonical import Canonical, Whitening
from hyperalign.align.directions import Directions
from hyperalign.align.grid import PairIndex
from hyperalign.align.train import Fit


class Learned(NamedTuple):
    """What a training of all pairs has found for one encoder, or what one that came later was given.

    Attributes:
        whitening: How its rows become white.
        directions: Those of white space that it keeps; None where it keeps all as they are.
        basis: Q, (R, S), the S coordinates that all encoders share as this one sees them in its own R, which are S
            but of one that came later; zero rows past its own rank.
        transform: T as the network emits it, in shared coordinates, (S, S): of its own it is Q T Qᵀ.
    """

    whitening: Whitening
    directions: Directions | None
    basis: Tensor
    transform: Tensor


class Kept(NamedTuple):
    """What a training of all pairs leaves to an encoder that is adopted later; nothing of it grows with the items.

    Attributes:
        images: Of each image encoder.
        texts: Of each text encoder.
        logit_scale: The inverse temperature at the end.
    """

    images: list[Learned]
    texts: list[Learned]
    logit_scale: float

    def of_last(self, side: str) -> "Kept":
        """The last image or text encoder, one that came later, alone on its side."""
        return self._replace(images=self.images[-1:]) if side == "image" else self._replace(texts=self.texts[-1:])


@dataclass(frozen=True, kw_only=True)
class Solution:
    """One linear connector for each of some pairs.

    Attributes:
        method: "ape", "closed-form" or "hypernet".
        sides: "text" where only text rows are mapped, "both" where maps go between canonical coordinates.
        pairs: (image, text) indices of the pairs.
        weights: For each pair (D_img, D_txt), or (R_img, R_txt) between canonical coordinates.
        biases: For each pair (D_img,) or (R_img,).
        images: For each image encoder its whitening, None where rows are taken as they are.
        texts: The same for text encoders.
        fits: The trainings, empty for the closed form.
        setup_flops: Moments, eigendecompositions, projections, cross-products.
        emit_flops: Making the connectors out of what was trained.
        kept: What adopting another encoder starts from; None of methods that no encoder can be added to.
    """

    method: str
    sides: str
    pairs: list[PairIndex]
    weights: list[Tensor]
    biases: list[Tensor]
    images: Sequence[Canonical | None]
    texts: Sequence[Canonical | None]
    fits: list[Fit] = field(default_factory=list)
    setup_flops: int = 0
    emit_flops: int = 0
    kept: Kept | None = None

    @property
    def train_flops(self) -> int:
        """Forward and backward of all steps, and the emission."""
        return sum(f.flops for f in self.fits) + self.emit_flops


Validate = Callable[[Solution], float]
Progress = Callable[[int, int], None]
Stop = Callable[[], bool]
