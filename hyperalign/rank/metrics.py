"""Retrieval and zero-shot scores: how often the right item comes among the first k.

Recall@k is the CLIP-style hit rate: 1 if any right item is among the first k, else 0, with all captions of an image
right; not the share of right items found. Tied items count as their expected hit under a random order of the tied.
A query without a usable embedding is a miss and stays in the mean; an unusable item never comes before a usable one.
All comparisons are made in float32: half precision makes ties that are not there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    "Hits",
    "expected_hits",
    "first_hits",
    "group_accuracy",
    "hits_from_embeddings",
    "nearest",
    "recall",
    "recall_at_1_batch",
    "retrieval_hits",
    "usable",
    "zero_shot",
    "zero_shot_hits",
]

_KS = (1, 5, 10)
_BLOCK_VALUES = 1 << 24  # similarities held at a time where no block is named: 64 MiB of float32
_CACHED_VALUES = 1 << 21  # similarities of the pairs compared at a time while training


class Hits(NamedTuple):
    """Expected hits of every query at K cut-offs, each in [0, 1].

    Attributes:
        t2i: (n_captions, K), captions asking for their image.
        i2t: (n_images, K), images asking for any of their captions.
    """

    t2i: NDArray[np.float32]
    i2t: NDArray[np.float32]


def expected_hits(before: Tensor, tied: Tensor, right: Tensor, ks: Sequence[int]) -> Tensor:
    """Chance that a right item is among the first k when the tied come in random order.

    With s = k − before places left for `right` right and `tied` wrong items of one similarity, all s places are wrong
    with chance C(tied, s) / C(tied + right, s).

    Args:
        before: (Q,) wrong items strictly more similar than the best right one.
        tied: (Q,) wrong items exactly as similar as the best right one.
        right: (Q,) right items of that similarity; 0 makes the query a miss.
        ks: The K cut-offs, each at least 1.

    Returns:
        (Q, K) float32; k / n where one right item is tied with n − 1 wrong ones.
    """
    if not ks or min(ks) < 1:
        raise ValueError(f"every cut-off k must be at least 1, got {tuple(ks)}")
    before, tied, right = before.double(), tied.double(), right.double()
    taken = torch.arange(max(ks), dtype=torch.float64, device=before.device)
    wrong = (tied[:, None] - taken).clamp(min=0)
    factors = wrong / (wrong + right[:, None]).clamp(min=1)
    all_wrong = torch.cat([torch.ones_like(before)[:, None], factors.cumprod(1)], dim=1)
    places = (torch.tensor(ks, device=before.device) - before[:, None]).clamp(0, max(ks)).long()
    return torch.where(right[:, None] > 0, 1 - all_wrong.gather(1, places), 0.0).float()


@torch.no_grad()
def retrieval_hits(  # noqa: PLR0913 – the two masks belong to the gallery and the queries
    similarity: Callable[[int, int], Tensor],
    owner: NDArray[np.int64],
    n_images: int,
    *,
    ks: Sequence[int] = _KS,
    block: int | None = None,
    caption_ok: NDArray[np.bool_] | None = None,
    image_ok: NDArray[np.bool_] | None = None,
) -> Hits:
    """Hits in both directions from similarities that are read in blocks of captions.

    A matrix of one block is read once. A larger one is read twice: the most similar caption of an image must be known
    before the captions that come before it can be counted.

    Args:
        similarity: `similarity(start, stop)` gives (stop − start, n_images), the same values at every call. A value
            that is not finite marks an item that cannot be compared.
        owner: (n_captions,) index of each caption's image.
        n_images: Images in the gallery; one without captions is a miss.
        ks: The K cut-offs.
        block: Captions read at a time; as many as fit 64 MiB by default.
        caption_ok: (n_captions,) False where the embedding is not usable; all usable by default.
        image_ok: (n_images,) the same for images.

    Returns:
        Hits; k / n for each of n captions of n images when all similarities are equal.
    """
    n_captions = len(owner)
    if n_captions == 0 or n_images == 0:
        raise ValueError(f"retrieval needs captions and images, got {n_captions} and {n_images}")
    if owner.min() < 0 or owner.max() >= n_images:
        raise ValueError(f"owners must be in 0 … {n_images - 1}, got {owner.min()} … {owner.max()}")
    bounds = _bounds(n_captions, block or max(1, _BLOCK_VALUES // n_images))
    kept: dict[int, Tensor] = {}

    def blocks() -> Iterator[tuple[int, int, Tensor]]:
        for start, stop in pairwise(bounds):
            values = kept.get(start)
            if values is None:
                values = _comparable(similarity(start, stop), _part(caption_ok, start, stop), image_ok)
                if len(bounds) == 2:
                    kept[start] = values
            yield start, stop, values

    t2i, own = _caption_queries(blocks(), owner, ks)
    i2t = _image_queries(blocks(), own, torch.tensor(owner).to(own.device), n_images, ks)
    return Hits(t2i.cpu().numpy(), i2t.cpu().numpy())


def hits_from_embeddings(
    image: Tensor,
    text: Tensor,
    owner: NDArray[np.int64],
    *,
    ks: Sequence[int] = _KS,
    block: int | None = None,
) -> Hits:
    """Hits in both directions by inner product; NaN, Inf and zero rows are misses.

    Args:
        image: (n_images, D), unit rows.
        text: (n_captions, D), unit rows of the connected captions.
        owner: (n_captions,) index of each caption's image.
        ks: The K cut-offs.
        block: Captions compared at a time.
    """
    if image.shape[1] != text.shape[1] or len(text) != len(owner):
        raise ValueError(
            f"rows must share a width and captions an owner each, got images {tuple(image.shape)}, "
            f"captions {tuple(text.shape)} and {len(owner)} owners"
        )
    image_ok, caption_ok = usable(image), usable(text)
    gallery = image.float() if image_ok.all() else image.float().nan_to_num(0, 0, 0)
    queries = text.float() if caption_ok.all() else text.float().nan_to_num(0, 0, 0)
    return retrieval_hits(
        lambda start, stop: queries[start:stop] @ gallery.T,
        owner,
        len(image),
        ks=ks,
        block=block,
        caption_ok=caption_ok.cpu().numpy(),
        image_ok=image_ok.cpu().numpy(),
    )


@torch.no_grad()
def first_hits(similarity: Tensor, owner: Tensor) -> Hits | None:
    """Hits at k = 1 from one look at each similarity: the same numbers as `retrieval_hits`, where all are usable.

    A query's right items are taken out and held against the best that is left. Only where the two are equal are the
    tied counted; a count of every value is what takes the time of `retrieval_hits`.

    Args:
        similarity: (n_captions, n_images); written over.
        owner: (n_captions,) index of each caption's image, every image with at least one; on the same device.

    Returns:
        Hits with K = 1; None where a value is not finite.
    """
    column = owner[:, None]
    own = similarity.gather(1, column)
    similarity.scatter_(1, column, -torch.inf)
    best_own = own.new_full((similarity.shape[1],), -torch.inf).scatter_reduce_(0, owner, own[:, 0], "amax")
    other_image, other_caption = similarity.amax(1), similarity.amax(0)
    if similarity.shape[1] < 2 or not (own.sum() + other_image.sum()).isfinite():
        return None  # NaN and infinities pass through a maximum, and a sum
    t2i, i2t = (own[:, 0] > other_image).float(), (best_own > other_caption).float()
    if len(tied := (own[:, 0] == other_image).nonzero()[:, 0]):
        t2i[tied] = 1 / (1 + (similarity[tied] == own[tied]).sum(1).float())
    if len(tied := (best_own == other_caption).nonzero()[:, 0]):
        right = torch.zeros_like(best_own).scatter_add_(0, owner, (own[:, 0] == best_own[owner]).float())[tied]
        i2t[tied] = right / (right + (similarity[:, tied] == best_own[tied]).sum(0))
    return Hits(t2i[:, None].cpu().numpy(), i2t[:, None].cpu().numpy())


@torch.no_grad()
def recall_at_1_batch(similarity: Tensor, owner: Tensor) -> Tensor:
    """Recall@1 of P pairs at once, for validation while training.

    Args:
        similarity: (P, n_captions, n_images); a value that is not finite never comes first.
        owner: (n_captions,) index of each caption's image, on the same device.

    Returns:
        (P, 2) text-to-image and image-to-text recall@1 in per cent; 100 / n for n captions of n images when all
        similarities are equal.
    """
    per_part = max(1, _CACHED_VALUES // similarity[0].numel())
    return torch.cat([_recall_at_1(_comparable(part, None, None), owner) for part in similarity.split(per_part)])


def recall(hits: Hits, ks: Sequence[int] = _KS) -> dict[str, float]:
    """Recalls in per cent, named direction by direction, and their `score`.

    Returns:
        `t2i_recall_at_1` … `i2t_recall_at_10`, and `score`, the mean of the two recall@1.
    """
    names = [f"{way}_recall_at_{k}" for way in ("t2i", "i2t") for k in ks]
    values = [*hits.t2i.mean(0, dtype=np.float64), *hits.i2t.mean(0, dtype=np.float64)]
    table = {name: 100 * float(value) for name, value in zip(names, values, strict=True)}
    return table | {"score": (table["t2i_recall_at_1"] + table["i2t_recall_at_1"]) / 2}


@torch.no_grad()
def zero_shot_hits(
    similarity: Tensor,
    labels: NDArray[np.int64],
    *,
    ks: Sequence[int] = (1, 5),
    image_ok: NDArray[np.bool_] | None = None,
    class_ok: NDArray[np.bool_] | None = None,
) -> NDArray[np.float32]:
    """Expected top-k hit of every picture among the classes.

    Args:
        similarity: (n_images, n_classes); a value that is not finite never wins.
        labels: (n_images,) index of the right class.
        ks: The K cut-offs.
        image_ok: (n_images,) False where the picture has no usable embedding: a miss.
        class_ok: (n_classes,) False where the prompts have none: its pictures are misses.

    Returns:
        (n_images, K) in [0, 1]; k / n_classes when all similarities are equal.
    """
    n_classes = similarity.shape[1]
    if len(labels) != len(similarity) or len(labels) == 0:
        raise ValueError(f"every picture needs one label, got {len(similarity)} pictures and {len(labels)} labels")
    if labels.min() < 0 or labels.max() >= n_classes:
        raise ValueError(f"labels must be in 0 … {n_classes - 1}, got {labels.min()} … {labels.max()}")
    values = _comparable(similarity, image_ok, class_ok)
    hits, _ = _caption_queries(iter([(0, len(values), values)]), labels, ks)
    return hits.cpu().numpy()


def zero_shot(hits: NDArray[np.float32], ks: Sequence[int] = (1, 5)) -> dict[str, float]:
    """Accuracies in per cent: `zero_shot_top_1` … for the columns of `hits`."""
    return {f"zero_shot_top_{k}": 100 * float(hits[:, i].mean(dtype=np.float64)) for i, k in enumerate(ks)}


def group_accuracy(hits: NDArray[np.float32], groups: NDArray[np.int64]) -> dict[int, float]:
    """Top-1 accuracy of each group in per cent; the worst group is the smallest value.

    Args:
        hits: (n_images,) or (n_images, K) with top-1 first.
        groups: (n_images,) group of each picture.
    """
    top_1 = hits.reshape(len(hits), -1)[:, 0]
    return {int(group): 100 * float(top_1[groups == group].mean(dtype=np.float64)) for group in np.unique(groups)}


def usable(rows: Tensor) -> Tensor:
    """(n,) True where a row is finite and not all zeros: where it has a direction."""
    largest = rows.abs().amax(1)  # NaN and Inf pass through
    return largest.isfinite() & (largest > 0)


def nearest(rows: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """The k nearest other rows by cosine, most similar first, found exactly.

    Args:
        rows: (n, D) of any length; a row that is not finite counts as a zero row, at cosine 0 from all others.
        k: Neighbours, from 1 to n − 1.

    Returns:
        (n, k) indices; never the row itself.
    """
    if not 1 <= k < len(rows):
        raise ValueError(f"{len(rows)} rows have 1 to {len(rows) - 1} neighbours, got k = {k}")
    import faiss  # heavy, and wanted by the training-free scores alone

    finite = np.isfinite(rows).all(1, keepdims=True)
    unit = np.where(finite, rows, 0).astype(np.float32)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    index = faiss.IndexFlatIP(unit.shape[1])
    index.add(unit)
    _, found = index.search(unit, k + 1)
    other = found != np.arange(len(rows))[:, None]
    other[other.all(1), -1] = False  # among more than k equal rows the row itself may be missing
    return np.asarray(found[other].reshape(len(rows), k), dtype=np.int64)


def _recall_at_1(values: Tensor, owner: Tensor) -> Tensor:
    """`recall_at_1_batch` of as many pairs as stay in the processor's cache."""
    owners = owner.expand(len(values), len(owner))
    own = values.gather(2, owners[:, :, None]).squeeze(2)
    top_image, top_caption = values.amax(2), values.amax(1)
    flags = torch.empty_like(values)
    t2i = (own.isfinite() & (own == top_image)) / torch.eq(values, top_image[:, :, None], out=flags).sum(2)
    n_top = torch.eq(values, top_caption[:, None], out=flags).sum(1)
    first = own.isfinite() & (own == top_caption.gather(1, owners))
    n_right = torch.zeros_like(top_caption).scatter_add(1, owners, first.float())
    return 100 * torch.stack([t2i.mean(1), (n_right / n_top).mean(1)], dim=1)


def _caption_queries(
    blocks: Iterator[tuple[int, int, Tensor]], owner: NDArray[np.int64], ks: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Hits (Q, K) of queries with one right item each, and the similarity (Q,) of that item."""
    hits, own = [], []
    for start, stop, values in blocks:
        right = values.gather(1, torch.tensor(owner[start:stop]).to(values.device)[:, None])
        flags = torch.empty_like(values)
        before = torch.gt(values, right, out=flags).sum(1)  # float flags: 5 times as fast as summing booleans
        tied = torch.eq(values, right, out=flags).sum(1) - 1
        hits.append(expected_hits(before, tied, right[:, 0].isfinite(), ks))
        own.append(right[:, 0])
    return torch.cat(hits), torch.cat(own)


def _image_queries(
    blocks: Iterator[tuple[int, int, Tensor]], own: Tensor, owner: Tensor, n_images: int, ks: Sequence[int]
) -> Tensor:
    """Hits (n_images, K) of images, given the similarity (n_captions,) of each caption to its own image."""
    best = own.new_full((n_images,), -torch.inf).scatter_reduce(0, owner, own, "amax")
    right = torch.zeros_like(best).scatter_add(0, owner, (own == best[owner]).float())
    before, equal = torch.zeros_like(best), torch.zeros_like(best)
    for _, _, values in blocks:
        flags = torch.empty_like(values)
        before += torch.gt(values, best, out=flags).sum(0)
        equal += torch.eq(values, best, out=flags).sum(0)
    return expected_hits(before, equal - right, torch.where(best.isfinite(), right, 0), ks)


def _comparable(similarity: Tensor, query_ok: NDArray[np.bool_] | None, item_ok: NDArray[np.bool_] | None) -> Tensor:
    """Float32 similarities with −Inf wherever a value cannot be compared."""
    values = similarity.float()
    if not values.sum().isfinite():  # one cheap look; finite values whose sum overflows only take the longer way
        values = values.nan_to_num(-torch.inf, -torch.inf, -torch.inf)
    if query_ok is not None and not query_ok.all():
        values = values.masked_fill(~torch.tensor(query_ok).to(values.device)[:, None], -torch.inf)
    if item_ok is not None and not item_ok.all():
        values = values.masked_fill(~torch.tensor(item_ok).to(values.device), -torch.inf)
    return values


def _bounds(n_rows: int, block: int) -> list[int]:
    """Ends of equal blocks: a last block of one row would be multiplied by other code and break ties by rounding."""
    n_blocks = -(-n_rows // max(1, block))
    return [round(i * n_rows / n_blocks) for i in range(n_blocks + 1)]


def _part(mask: NDArray[np.bool_] | None, start: int, stop: int) -> NDArray[np.bool_] | None:
    return None if mask is None else mask[start:stop]
