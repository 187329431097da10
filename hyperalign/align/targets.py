"""The few coordinates of a side from which the other side's directions are found.

What pictures predict of captions is much the same for all image encoders, and the other way round. So a random sample
of every image encoder's white coordinates, all of them together about as wide as one encoder, says which directions
of all captions together can be predicted at all (a randomised range finder; Halko, Martinsson and Tropp 2011,
arXiv:0909.4061). From the strongest of these, 1.6 times as many as are to be kept, each image encoder's own directions
are found. Then the same the other way round, for which the products are there already. Measured in reports/LOG.md:
less than half of the set-up's FLOPs, and nothing is lost.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hyperalign.align.canonical import Whitening
from hyperalign.align.directions import directions_flops, find_directions
from hyperalign.align.sides import Side, picture_blocks
from hyperalign.ledger import matmul_flops, triangular_flops


class TargetShapes(NamedTuple):
    """Widths that decide how directions are found.

    Attributes:
        images: Features of each image encoder, F.
        texts: Features of each text encoder.
        image_ranks: Coordinates that each image encoder keeps.
        wide: Features of the text encoders that keep fewer coordinates than they have.
        n_images: Pictures.
        most: Targets at most, of either side.
        sketch: Columns of the sample of all image encoders' coordinates.
    """

    images: Sequence[int]
    texts: Sequence[int]
    image_ranks: Sequence[int]
    wide: Sequence[int]
    n_images: int
    most: int
    sketch: int

    @property
    def sampled(self) -> list[int]:
        """Columns that each image encoder gives to the sample."""
        return [min(-(-self.sketch // len(self.images)), width) for width in self.images]

    @property
    def n_text_targets(self) -> int:
        """Columns from which images' directions are found."""
        return self.most if self.mixes_texts else sum(self.texts)

    @property
    def n_image_targets(self) -> int:
        """Columns from which texts' directions are found."""
        return min(self.most, self.n_text_targets) if self.mixes_images else sum(self.image_ranks)

    @property
    def mixes_texts(self) -> bool:
        """Whether a choice of text coordinates is cheaper than all of them, by the products of one picture."""
        n_text, sampled = sum(self.texts), sum(self.sampled)
        sampling = sum(width * n for width, n in zip(self.images, self.sampled, strict=True)) + sampled * n_text
        cheaper = sampling + (n_text + sum(self.images)) * self.most < sum(self.images) * n_text
        return cheaper and sampled >= self.most

    @property
    def mixes_images(self) -> bool:
        """Whether a choice of image coordinates is cheaper than all of them."""
        n_image, n_wide = sum(self.image_ranks), sum(self.wide)
        return (n_image + n_wide) * min(self.most, self.n_text_targets) < n_wide * n_image


def find_text_targets(images: Sequence[Side], texts: Sequence[Side], shapes: TargetShapes) -> list[Tensor] | None:
    """The combinations of all text encoders' white coordinates that images predict best.

    Returns:
        For each text encoder (F, m), its part of the way from centred rows; None where all coordinates are used.
    """
    if not shapes.mixes_texts:
        return None
    samples = [_sample(image.whitening, n) for image, n in zip(images, shapes.sampled, strict=True)]
    crosses = [torch.zeros(sum(shapes.sampled), width) for width in shapes.texts]
    for first, last in picture_blocks(shapes.n_images):
        sampled = torch.cat([image.block(first, last) @ by for image, by in zip(images, samples, strict=True)], 1)
        for cross, text in zip(crosses, texts, strict=True):
            cross += sampled.mT @ text.block(first, last)
    cross = torch.cat([text.whitening.whiten(cross) for text, cross in zip(texts, crosses, strict=True)], 1)
    found = find_directions(cross, shapes.n_text_targets)
    dead = found.strength <= 1e-5 * found.strength[0].clamp_min(1e-12)
    chosen = (cross.mT @ found.basis / found.strength.masked_fill(dead, 1.0)).masked_fill(dead, 0.0)
    parts = chosen.split(list(shapes.texts))
    return [text.whitening.project(part) for text, part in zip(texts, parts, strict=True)]


def text_targets_at(texts: Sequence[Side], maps: Sequence[Tensor] | None, first: int, last: int) -> Tensor:
    """(last − first, m) targets of some pictures: of `find_text_targets`, or all white coordinates, side by side."""
    blocks = [text.block(first, last) for text in texts]
    if maps is None:
        return torch.cat([text.whitening.whiten(block) for text, block in zip(texts, blocks, strict=True)], 1)
    return torch.stack([block @ by for block, by in zip(blocks, maps, strict=True)]).sum(0)


def find_image_targets(crosses: Iterable[Tensor], shapes: TargetShapes) -> Tensor | None:
    """The combinations of all image encoders' coordinates that captions predict best.

    Args:
        crosses: Products (r, m) of each image encoder's coordinates with the text targets.
        shapes: Widths.

    Returns:
        (Σr, k), orthonormal columns; None where all coordinates are used.
    """
    return find_directions(torch.cat(list(crosses)), shapes.n_image_targets).basis if shapes.mixes_images else None


def text_targets_flops(shapes: TargetShapes) -> int:
    """FLOPs of `find_text_targets`, and of `text_targets_at` all pictures."""
    n, n_text, sampled, most = shapes.n_images, sum(shapes.texts), sum(shapes.sampled), shapes.most
    if not shapes.mixes_texts:
        return sum(triangular_flops(width, n) for width in shapes.texts)
    flops = sum(
        triangular_flops(width, k) + matmul_flops(n, width, k)
        for width, k in zip(shapes.images, shapes.sampled, strict=True)
    )
    flops += matmul_flops(sampled, n, n_text) + sum(triangular_flops(width, sampled) for width in shapes.texts)
    flops += directions_flops(sampled, n_text, most) + matmul_flops(n_text, sampled, most)
    return flops + sum(triangular_flops(width, most) + matmul_flops(n, width, most) for width in shapes.texts)


def image_targets_flops(shapes: TargetShapes) -> int:
    """FLOPs of `find_image_targets`, its products and the combinations of all pictures."""
    if not shapes.mixes_images:
        return 0
    n_image, most = sum(shapes.image_ranks), shapes.n_image_targets
    products = zip(shapes.images, shapes.image_ranks, strict=True)
    flops = sum(matmul_flops(rank, width, shapes.n_text_targets) for width, rank in products)
    flops += directions_flops(n_image, shapes.n_text_targets, most)
    return flops + matmul_flops(shapes.n_images, n_image, most)


def _sample(whitening: Whitening, n: int) -> Tensor:
    """(F, n), from centred rows to random combinations of white coordinates; the same for encoders of one width."""
    width = len(whitening.mean)
    if n == width:
        return whitening.project(torch.eye(width))
    drawn = torch.randn(width, n, generator=torch.Generator().manual_seed(0)) / math.sqrt(width)
    return whitening.project(drawn)
