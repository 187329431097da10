"""What joins a pair: rows of its two encoders become rows of one space, as they did when the pair was scored."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch.nn.functional as F  # noqa: N812 (the field's name for it)
from numpy.typing import NDArray
from torch import Tensor

from hyperalign.align.canonical import Canonical, to_coordinates
from hyperalign.packing import unpack

__all__ = ["Joint", "join_images", "join_texts", "joint_of"]


class Joint(NamedTuple):
    """The connector of one pair, and the canonical coordinates it stands between.

    Attributes:
        weight: W, (R_img, R_txt); between the encoders' own rows (D_img, D_txt).
        bias: b, (R_img,)
        image: The way of image rows to canonical coordinates; None where they are taken as they are.
        text: The same of text rows.
    """

    weight: Tensor
    bias: Tensor
    image: Canonical | None
    text: Canonical | None

    @property
    def embed_dim(self) -> int:
        """Width of the common space."""
        return int(self.weight.shape[0])


def join_images(joint: Joint, rows: Tensor) -> Tensor:
    """Rows of the image encoder in the common space.

    Args:
        joint: Of the pair.
        rows: (n, D_img)

    Returns:
        (n, D) unit rows, float32; zeros where a row is NaN, Inf or all zeros, so that its cosine with anything is 0.
    """
    found = F.normalize(_coordinates(rows, joint.image), dim=1)[:, : joint.weight.shape[0]]
    return _blanked(found, rows)


def join_texts(joint: Joint, rows: Tensor) -> Tensor:
    """Rows of the text encoder in the common space: W z + b, normalised.

    Args:
        joint: Of the pair.
        rows: (n, D_txt)

    Returns:
        (n, D) unit rows, float32; zeros where a row is NaN, Inf or all zeros, as of a caption of unknown words.
    """
    text = _coordinates(rows, joint.text)[:, : joint.weight.shape[1]]
    return _blanked(F.normalize(text @ joint.weight.T + joint.bias, dim=1), rows)


def joint_of(tensors: Mapping[str, NDArray[Any]], record: Mapping[str, Any], pair: tuple[int, int]) -> Joint | None:
    """The connector of one pair among those that `packing.pack` took apart; None where it is not among them."""
    solution = unpack(tensors, record)
    if pair not in solution.pairs:
        return None
    at = solution.pairs.index(pair)
    joint = Joint(solution.weights[at], solution.biases[at], solution.images[pair[0]], solution.texts[pair[1]])
    _check_shapes(joint)
    return joint


def _check_shapes(joint: Joint) -> None:
    """Refuse tensors that cannot be multiplied with each other, or are no floats."""
    fits = joint.weight.ndim == 2 and joint.bias.shape == joint.weight.shape[:1]
    tensors = [joint.weight, joint.bias]
    for side, width in ((joint.image, joint.weight.shape[:1]), (joint.text, joint.weight.shape[1:2])):
        if side is not None:
            shapes = (side.mean.ndim, side.features.ndim, side.projection.ndim) == (1, 1, 2)
            fits = fits and shapes and len(side.mean) == len(side.features) == len(side.projection)
            fits = fits and side.projection.shape[1] >= width[0] and not side.features.is_floating_point()
            fits = fits and bool(((side.features >= 0) & (side.features < side.width)).all())
            tensors += [side.mean, side.projection]
    if not fits or not all(tensor.is_floating_point() for tensor in tensors):
        raise ValueError("the tensors of a connector are damaged: their shapes do not fit each other")


def _coordinates(rows: Tensor, canonical: Canonical | None) -> Tensor:
    """(n, R) or (n, D) float32; NaN and Inf become zeros."""
    rows = rows.float()
    return rows.nan_to_num(0.0, 0.0, 0.0) if canonical is None else to_coordinates(rows, canonical)


def _blanked(found: Tensor, rows: Tensor) -> Tensor:
    """Zeros where a row means nothing."""
    good = rows.isfinite().all(1) & rows.ne(0).any(1)
    return found * good.unsqueeze(1)
