"""Connectors on rows: expected hits of every pair, for validation and for the table."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from hyperalign.align.canonical import Canonical, to_coordinates
from hyperalign.align.grid import Grid, PairIndex, Picked, Rows, blocks, usable
from hyperalign.align.solution import Solution
from hyperalign.grids import LabelGrid
from hyperalign.ledger import mapped_flops, matmul_flops, pulled_flops, similarity_flops
from hyperalign.packing import restrict
from hyperalign.rank.metrics import Hits, first_hits, recall, retrieval_hits, zero_shot_hits

__all__ = [
    "each_retrieval",
    "first_captions",
    "mean_score",
    "nearest_images",
    "retrieval",
    "scoring_flops",
    "watch_flops",
    "watched",
    "zero_shot",
    "zero_shot_flops",
    "zero_shot_parts",
]

KS = (1, 5, 10)
WATCHED = 500  # pictures by which a training is watched
WATCHED_PAIRS = 512  # and pairs; their mean is as sure as so many pictures let any mean be
_BLOCK_VALUES = 2**24  # similarities held at a time, 64 MiB; more are computed twice, see `retrieval_hits`


def retrieval(solution: Solution, grid: Grid, *, ks: Sequence[int] = KS) -> list[Hits]:
    """What `each_retrieval` gives, of all pairs at once; 4·K bytes for each query of each pair."""
    return list(each_retrieval(solution, grid, ks=ks))


def each_retrieval(solution: Solution, grid: Grid, *, ks: Sequence[int] = KS) -> Iterator[Hits]:
    """Expected hits of every pair of a solution, both directions, pair by pair.

    Coordinates are made once an encoder and stay until the last pair. At k = 1 alone, by which pairs are chosen, each
    similarity is looked at once and not counted, which takes about half the time.

    Args:
        solution: Connectors of P pairs.
        grid: Rows of the same encoders on other items.
        ks: Depths.

    Yields:
        P records of (n_captions, K) and (n_images, K) hits, in the order of the pairs.
    """
    images = cache(lambda i: F.normalize(_coordinates(grid.images[i], solution.images[i]), dim=1))
    texts = cache(lambda j: _coordinates(grid.texts[j], solution.texts[j]))
    image_ok, text_ok = ([bool(row.all()) for row in ok] for ok in (grid.image_ok, grid.text_ok))
    owner, n_reads = torch.from_numpy(grid.owner), _n_reads(grid)
    for (i, j), weight, bias in zip(solution.pairs, solution.weights, solution.biases, strict=True):
        similarity = _similarity(images(i), texts(j), weight, bias, n_reads=n_reads)
        found = None
        if tuple(ks) == (1,) and n_reads == 1 and image_ok[i] and text_ok[j]:
            found = first_hits(similarity(0, grid.n_captions), owner)
        yield found or retrieval_hits(
            similarity,
            grid.owner,
            grid.n_images,
            ks=ks,
            block=_block(grid),
            caption_ok=grid.text_ok[j],
            image_ok=grid.image_ok[i],
        )


def nearest_images(solution: Solution, grid: Grid, captions: NDArray[np.int64], k: int) -> list[NDArray[np.int64]]:
    """The k pictures that each pair retrieves for some captions, the most similar first.

    Args:
        solution: Connectors of P pairs.
        grid: Rows of the same encoders on other items.
        captions: (n,) which captions, ascending.
        k: Pictures for each; all of them where there are fewer.

    Returns:
        P arrays (n, min(k, n_images)); pictures that an encoder has no usable row for stand last.
    """
    images = cache(lambda i: F.normalize(_coordinates(grid.images[i], solution.images[i]), dim=1))
    texts = cache(lambda j: _coordinates(Picked(grid.texts[j], captions), solution.texts[j]))
    found = []
    for (i, j), weight, bias in zip(solution.pairs, solution.weights, solution.biases, strict=True):
        similarity = _similarity(images(i), texts(j), weight, bias)(0, len(captions))
        usable_ones = torch.from_numpy(np.asarray(grid.image_ok[i], dtype=np.bool_))
        similarity = similarity.masked_fill(~usable_ones, -torch.inf)
        found.append(similarity.topk(min(k, grid.n_images), dim=1).indices.numpy())
    return found


def mean_score(solution: Solution, grid: Grid) -> float:
    """Mean over pairs of the mean of the two recall@1, in per cent."""
    return float(np.mean([recall(hits, (1,))["score"] for hits in each_retrieval(solution, grid, ks=(1,))]))


def watched(pairs: Sequence[PairIndex]) -> list[PairIndex]:
    """The pairs by which a training is watched: all, or so many spread evenly over a larger grid."""
    index = np.linspace(0, len(pairs) - 1, min(WATCHED_PAIRS, len(pairs))).round().astype(int)
    return [pairs[n] for n in index]


def watch_flops(solution: Solution, grid: Grid) -> int:
    """FLOPs of one look at a training: `mean_score` of the pairs that are watched, with one caption each."""
    return scoring_flops(restrict(solution, watched(solution.pairs)), first_captions(grid))


def first_captions(grid: Grid, *, most: int = WATCHED) -> Grid:
    """At most so many pictures with one caption each: enough to watch a training by, at a fraction of the cost.

    Args:
        grid: Of N image and M text encoders.
        most: Pictures; of more, so many spread evenly.
    """
    n = min(most, grid.n_images)
    pictures = np.arange(n, dtype=np.int64) * grid.n_images // n
    first = np.searchsorted(grid.owner, pictures, side="left").astype(np.int64)
    return replace(
        grid,
        images=tuple(Picked(rows, pictures) for rows in grid.images),
        texts=tuple(Picked(rows, first) for rows in grid.texts),
        owner=np.arange(n, dtype=np.int64),
        image_ok=grid.image_ok[:, pictures],
        text_ok=grid.text_ok[:, first],
    )


def zero_shot(solution: Solution, labels: LabelGrid, part: NDArray[np.int64]) -> list[NDArray[np.float32]]:
    """Expected top-1 hits of every pair on some pictures of a label set.

    A class is the mean of its usable prompts' mapped unit rows, normalised.

    Args:
        solution: Connectors of P pairs.
        labels: Rows of pictures and prompts.
        part: (n,) which pictures.

    Returns:
        P arrays (n, 1).
    """
    images = cache(lambda i: F.normalize(_coordinates(Picked(labels.images[i], part), solution.images[i]), dim=1))
    texts = cache(lambda j: _coordinates(labels.texts[j], solution.texts[j]))
    image_ok = cache(lambda i: usable(Picked(labels.images[i], part)))
    prompt_ok = cache(lambda j: torch.from_numpy(usable(labels.texts[j])).reshape(labels.n_classes, -1))
    hits = []
    for (i, j), weight, bias in zip(solution.pairs, solution.weights, solution.biases, strict=True):
        image, text = _trimmed(images(i), texts(j), weight)
        mapped = F.normalize(text @ weight.T + bias, dim=1).reshape(labels.n_classes, -1, len(weight))
        classes = F.normalize((mapped * prompt_ok(j).unsqueeze(2)).sum(1), dim=1)
        class_ok = prompt_ok(j).any(1).numpy()
        hits.append(
            zero_shot_hits(image @ classes.T, labels.labels[part], ks=(1,), image_ok=image_ok(i), class_ok=class_ok)
        )
    return hits


def zero_shot_parts(labels: LabelGrid) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pictures to choose by and pictures to report on: every second one, so that each class is in both."""
    every = np.arange(len(labels.labels))
    return every[::2], every[1::2]


def scoring_flops(solution: Solution, grid: Grid) -> int:
    """FLOPs of `retrieval` on a grid: coordinates of both sides once an encoder, and all similarities."""
    flops, n_reads = _coordinate_flops(solution, grid.n_images, grid.n_captions), _n_reads(grid)
    for weight in solution.weights:
        r_img, r_txt = weight.shape
        flops += similarity_flops(grid.n_captions, grid.n_images, r_txt, r_img, n_reads=n_reads)
    return flops


def zero_shot_flops(solution: Solution, labels: LabelGrid, part: NDArray[np.int64]) -> int:
    """FLOPs of `zero_shot` on some pictures: coordinates once an encoder, mapped prompts and similarities of all."""
    n_prompts = labels.texts[0].shape[0]
    flops = _coordinate_flops(solution, len(part), n_prompts)
    for weight in solution.weights:
        r_img, r_txt = weight.shape
        flops += matmul_flops(n_prompts, r_txt, r_img) + matmul_flops(len(part), r_img, labels.n_classes)
    return flops


def _coordinate_flops(solution: Solution, n_images: int, n_texts: int) -> int:
    flops = 0
    for place, sides, count in ((0, solution.images, n_images), (1, solution.texts, n_texts)):
        used = [sides[k] for k in {pair[place] for pair in solution.pairs}]
        flops += sum(matmul_flops(count, *side.projection.shape) for side in used if side is not None)
    return flops


def _block(grid: Grid) -> int:
    """Captions whose similarities are held at a time."""
    return max(1, _BLOCK_VALUES // grid.n_images)


def _n_reads(grid: Grid) -> int:
    """How often similarities are computed: those of more than one block twice."""
    return 1 if grid.n_captions <= _block(grid) else 2


def _coordinates(rows: Rows, canonical: Canonical | None) -> Tensor:
    """(n, D) or (n, R) float32 rows of a split; NaN and Inf become zeros, their items are masked."""
    parts = [
        block.nan_to_num(0.0, 0.0, 0.0) if canonical is None else to_coordinates(block, canonical)
        for _, block in blocks(rows)
    ]
    return torch.cat(parts)


def _trimmed(image: Tensor, text: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates without those that are always zero for the encoder."""
    return image[:, : weight.shape[0]], text[:, : weight.shape[1]]


def _similarity(
    image: Tensor, text: Tensor, weight: Tensor, bias: Tensor, *, n_reads: int = 1
) -> Callable[[int, int], Tensor]:
    """Cosines of captions start to stop with all pictures, in the cheaper of the two orders of multiplication.

    Args:
        image: (n_images, R_img), unit rows.
        text: (n_captions, R_txt)
        weight: (R_img, R_txt)
        bias: (R_img,)
        n_reads: How often all of them will be asked for.
    """
    image, text = _trimmed(image, text, weight)
    r_img, r_txt = weight.shape
    shape = (len(text), len(image), r_txt, r_img)
    if mapped_flops(*shape, n_reads=n_reads) <= pulled_flops(*shape, n_reads=n_reads):
        return lambda start, stop: F.normalize(text[start:stop] @ weight.T + bias, dim=1) @ image.T
    pulled, offset = image @ weight, image @ bias
    gram, lean, length = weight.T @ weight, weight.T @ bias, bias @ bias

    def similarity(start: int, stop: int) -> Tensor:
        rows = text[start:stop]
        square = ((rows @ gram) * rows).sum(1) + 2 * (rows @ lean) + length
        return (rows @ pulled.T + offset) / square.clamp_min(1e-12).sqrt().unsqueeze(1)

    return similarity
