"""A synthetic zoo of any size whose best pairs are known: rows are made when they are read, and nothing is stored.

Items are made of concepts. Each encoder knows some of them, sees each with a blur of its own, and writes them down
through a random map of its own width, with a little noise of full rank on top. So a pair's quality follows from how
many concepts its two encoders share and how clearly they see them, and from nothing else.

A row's noise is a piece of one fixed table of random numbers; where it begins is a hash of encoder, split and item.
Any row can so be made again, alone or in a block, for the price of copying it.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor

from hyperalign.align.grid import Grid
from hyperalign.candidates import Candidates
from hyperalign.embed.zoo import EncoderSpec, Pair
from hyperalign.grids import Prepared
from hyperalign.ledger import matmul_flops

__all__ = ["N_CONCEPTS", "Maker", "Planted", "PlantedRows", "View", "expected_recall", "plant"]

N_CONCEPTS = 64
_IMAGE_DIMS = (192, 384, 512, 768, 1024)
_TEXT_DIMS = (256, 384, 512, 768)
_KNOWN = (24, 48)  # concepts that an encoder knows: least and most
_CLARITY = (0.35, 0.7)  # share of a concept's variance that an encoder sees: least and most
_HISS = 0.1  # share of an encoder's noise that is spread over its whole width
_MEAN = 0.2  # every coordinate's mean, for real embeddings have one
_COSINES = np.linspace(-1, 1, 20_001)
_TABLE = 1 << 20  # random numbers, 4 MB: it stays in the processor's cache


class View(NamedTuple):
    """How one encoder sees items.

    Attributes:
        concepts: (k,) which concepts it knows, ascending.
        clarity: q, the share of a concept's variance that can be read off its rows.
        width: Of its rows, D.
    """

    concepts: NDArray[np.int64]
    clarity: float
    width: int


class Maker:
    """Makes the rows of one split, and knows how long that has taken.

    Attributes:
        noise: The table of random numbers.
        seconds: Spent in making rows so far.
        flops: Spent in making rows so far.
    """

    def __init__(self, noise: NDArray[np.float32]) -> None:
        """Nothing is made yet."""
        self.noise = noise
        self.seconds, self.flops = 0.0, 0

    def draw(self, keys: NDArray[np.uint64], width: int) -> NDArray[np.float32]:
        """(n, width) random numbers, a row for each key."""
        offsets = _hash(keys) % np.uint64(_TABLE - width + 1)
        return sliding_window_view(self.noise, width)[offsets.astype(np.int64)]


@dataclass(frozen=True, kw_only=True, eq=False)
class PlantedRows:
    """The rows of one encoder over the items of one split, made when they are asked for.

    Attributes:
        latent: (n, L) concepts of the items, shared by all encoders.
        view: How the encoder sees them.
        way: (k, D) orthonormal rows, the encoder's own map.
        salt: Tells encoder and split from all others.
        maker: Where noise comes from and time is booked.
    """

    latent: Tensor
    view: View
    way: Tensor
    salt: int
    maker: Maker

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, D)."""
        return len(self.latent), self.view.width

    def __getitem__(self, index: Any) -> NDArray[np.float32]:
        """(m, D) float32: (x + b η) A + h ε + mean, so that q = 1 / (1 + b² + h²) of a concept can be read off."""
        start = time.perf_counter()
        items = np.arange(len(self.latent))[index]
        keys = (items.astype(np.uint64) << np.uint64(20)) + np.uint64(2 * self.salt)
        unclear = 1 / self.view.clarity - 1
        blur, hiss = math.sqrt((1 - _HISS) * unclear), math.sqrt(_HISS * unclear)
        seen = torch.from_numpy(self.maker.draw(keys, len(self.view.concepts))).mul_(blur)
        seen += self.latent[torch.from_numpy(items)][:, torch.from_numpy(self.view.concepts)]
        rows = torch.from_numpy(self.maker.draw(keys + np.uint64(1), self.view.width))
        rows.mul_(hiss).add_(_MEAN).addmm_(seen, self.way)
        self.maker.seconds += time.perf_counter() - start
        self.maker.flops += matmul_flops(len(items), len(self.view.concepts), self.view.width)
        return rows.numpy()


class Planted(NamedTuple):
    """A synthetic zoo, its rows, and the truth about its pairs.

    Attributes:
        candidates: Encoders with made-up sizes, and all pairs.
        prepared: Rows of train, validation and test.
        truth: (N·M,) recall@1 among the test items, in per cent, by `expected_recall`, image encoders outermost.
        makers: Of the rows of train, validation and test.
    """

    candidates: Candidates
    prepared: Prepared
    truth: NDArray[np.float64]
    makers: list[Maker]


def plant(shape: tuple[int, int], sizes: tuple[int, int, int], *, seed: int = 0) -> Planted:
    """A zoo of N image and M text encoders.

    Args:
        shape: (N, M).
        sizes: Items of train, validation and test; each is a picture with one caption.
        seed: Of concepts, encoders and noise; the first encoders of a larger zoo are those of a smaller one.
    """
    noise = np.random.default_rng([seed, 0]).standard_normal(_TABLE, dtype=np.float32)
    makers = [Maker(noise) for _ in sizes]
    sides = [
        [_view(np.random.default_rng([seed, 1, side, k]), dims) for k in range(n)]
        for side, (n, dims) in enumerate(zip(shape, (_IMAGE_DIMS, _TEXT_DIMS), strict=True))
    ]
    ways = [[_way(view, [seed, 2, side, k]) for k, view in enumerate(views)] for side, views in enumerate(sides)]
    grids = []
    for split, n_items in enumerate(sizes):
        latent = np.random.default_rng([seed, 3, split]).standard_normal((n_items, N_CONCEPTS), dtype=np.float32)
        tables = [
            [
                PlantedRows(
                    latent=torch.from_numpy(latent),
                    view=view,
                    way=way,
                    salt=3 * (2 * k + side) + split,
                    maker=makers[split],
                )
                for k, (view, way) in enumerate(zip(views, ways[side], strict=True))
            ]
            for side, views in enumerate(sides)
        ]
        grids.append(_grid(tables, n_items))
    prepared = Prepared(train=grids[0], val=grids[1], test=grids[2], labels=None, notes=[])
    truth = np.array([expected_recall(a, b, sizes[2]) for a in sides[0] for b in sides[1]])
    return Planted(_candidates(sides, seed), prepared, truth, makers)


def expected_recall(image: View, text: View, n_items: int) -> float:
    """Recall@1 in per cent among `n_items` by the cosine of what both encoders know, each concept read off perfectly.

    Each of the K concepts that both know ties the two readings with correlation ρ = √(q_i q_j). The cosine of a wrong
    item has density ∝ (1 − t²)^((K − 3)/2); that of the right one is about ρ, its Fisher transform normal with variance
    1 / (K − 2). The right one comes first where it lies above all n − 1 wrong ones. Held against simulated readings of
    48 pairs: 1.4 points off on average, Spearman 0.996.
    """
    shared = len(np.intersect1d(image.concepts, text.concepts))
    if shared < 3:
        return 100 / n_items
    normal = np.linspace(-4, 4, 161)
    weight = np.exp(-(normal**2) / 2)
    right = np.tanh(math.atanh(math.sqrt(image.clarity * text.clarity)) + normal / math.sqrt(shared - 2))
    beaten = np.interp(right, _COSINES, _below(shared)) ** (n_items - 1)
    return float(100 * (weight @ beaten) / weight.sum())


@cache
def _below(n_shared: int) -> NDArray[np.float64]:
    """How much of the cosines of two unrelated vectors of this many coordinates lies below each of `_COSINES`."""
    density = (1 - _COSINES**2) ** ((n_shared - 3) / 2)
    return np.asarray(density.cumsum() / density.sum())


def _view(rng: np.random.Generator, dims: Sequence[int]) -> View:
    n_known = int(rng.integers(_KNOWN[0], _KNOWN[1] + 1))
    concepts = np.sort(rng.choice(N_CONCEPTS, n_known, replace=False))
    return View(concepts, float(rng.uniform(*_CLARITY)), int(rng.choice(dims)))


def _way(view: View, seed: Sequence[int]) -> Tensor:
    drawn = np.random.default_rng(seed).standard_normal((view.width, len(view.concepts)), dtype=np.float32)
    basis: Tensor = torch.linalg.qr(torch.from_numpy(drawn)).Q
    return basis.T.contiguous()


def _grid(tables: Sequence[Sequence[PlantedRows]], n_items: int) -> Grid:
    """Rows of one split; all are usable by construction, so none is looked at."""
    images, texts = tables
    return Grid(
        images=tuple(images),
        texts=tuple(texts),
        owner=np.arange(n_items, dtype=np.int64),
        image_ok=np.ones((len(images), n_items), dtype=np.bool_),
        text_ok=np.ones((len(texts), n_items), dtype=np.bool_),
    )


def _candidates(sides: Sequence[Sequence[View]], seed: int) -> Candidates:
    """Encoders with sizes drawn between 1M and 300M parameters, whatever their quality."""
    specs = []
    for side, (modality, views) in enumerate(zip(("image", "text"), sides, strict=True)):
        rng = np.random.default_rng([seed, 4, side])
        sizes = np.exp(rng.uniform(math.log(1e6), math.log(3e8), len(views)))
        specs.append(
            tuple(
                EncoderSpec(
                    name=f"{modality}-{k:03}",
                    modality=modality,  # type: ignore[arg-type]
                    loader="rows",
                    checkpoint="planted",
                    embed_dim=view.width,
                    n_params=int(size),
                    gflops=round(size * 5e-8, 3),
                )
                for k, (view, size) in enumerate(zip(views, sizes, strict=True))
            )
        )
    pairs = tuple(Pair(image, text) for image in specs[0] for text in specs[1])
    return Candidates(images=specs[0], texts=specs[1], pairs=pairs, latencies={}, counts=())


def _hash(keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Keys scattered over all 64 bits. Source: Steele, Lea & Flood 2014, OOPSLA, the finaliser of SplitMix64."""
    keys = keys * np.uint64(0x9E3779B97F4A7C15)  # wraps around
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return keys ^ (keys >> np.uint64(31))
