"""What a model is worth on pictures it has not seen: zero-shot on class sets, retrieval on a split.

Before anything is embedded the hypernetwork is shown the classes, or the captions that are searched, and the image
encoder is adapted to them once.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hyperalign.embed.feed import feed, worthwhile_workers
from hyperalign.embed.label_sets import LabelSet
from hyperalign.embed.pictures import Pictures, choose
from hyperalign.embed.splits import Split
from hyperalign.hyperclip.pairs import normalise_pictures
from hyperalign.hyperclip.specialise import class_rows
from hyperalign.hyperclip.stored import Model
from hyperalign.rank.metrics import Hits, group_accuracy, hits_from_embeddings, recall, zero_shot_hits
from hyperalign.rank.resampling import Contributions, bootstrap, per_image, per_picture

__all__ = [
    "MOST_PROMPTS",
    "Watched",
    "caption_rows",
    "classify",
    "embed_pictures",
    "retrieve",
    "score_classes",
    "score_watched",
    "watch",
]

Tell = Callable[[int, int], None]

MOST_PROMPTS = 1000  # captions that the hypernetwork is shown of a split
_AT_ONCE = 256
_WATCHED = 500  # pictures that a running training is validated on, as many as a search looks at


class Watched(NamedTuple):
    """What a running training is validated on.

    Attributes:
        pictures: n of them.
        captions: (m, L) tokens or (m, D_txt) rows of their captions.
        owner: (m,) index of each caption's picture, non-decreasing.
    """

    pictures: Pictures
    captions: Tensor
    owner: NDArray[np.int64]


def _silent(done: int, total: int) -> None:
    """Report to nobody."""


@torch.no_grad()
def embed_pictures(
    model: Model, pictures: Pictures, parameters: Mapping[str, Tensor], *, tell: Tell = _silent
) -> Tensor:
    """(n, D) unit rows on the CPU, NaN where a picture cannot be decoded.

    Args:
        model: Its image encoder is used, in evaluation mode.
        pictures: n of them.
        parameters: Scales and biases from `model.network.emit`; empty to leave the encoder as it is.
        tell: Told how many are done, and of how many.
    """
    device = model.network.logit_bias.device
    rows = torch.full((len(pictures), model.record.embed_dim), torch.nan)
    workers = worthwhile_workers(len(pictures), device=device.type)
    bounds = range(len(pictures))
    transform = model.transform(normalised=False)
    for batch in feed(pictures, bounds, transform, model.picture, batch_size=_AT_ONCE, n_workers=workers):
        prepared = normalise_pictures(batch.pictures.to(device), model.picture)
        stop = batch.start + len(batch.pictures)
        rows[batch.start : stop] = model.network.embed_pictures(prepared, parameters).cpu()
        rows[[index for index, _ in batch.bad]] = torch.nan
        tell(stop, len(pictures))
    return rows


@torch.no_grad()
def caption_rows(model: Model, captions: Sequence[str], *, tell: Tell = _silent) -> Tensor:
    """(n, D) unit rows of captions on the CPU."""
    device, blocks = model.network.logit_bias.device, []
    for start in range(0, len(captions), _AT_ONCE):
        inputs = model.captions(captions[start : start + _AT_ONCE]).to(device)
        blocks.append(model.network.embed_captions(inputs).cpu())
        tell(min(start + _AT_ONCE, len(captions)), len(captions))
    return torch.cat(blocks)


def classify(model: Model, labels: LabelSet, *, tell: Tell = _silent) -> NDArray[np.float32]:
    """(n_images, 2) expected top-1 and top-5 hits, the encoder adapted to the classes of the set."""
    device = model.network.logit_bias.device
    classes = class_rows(model, labels.class_names, labels.templates)
    with torch.no_grad():
        parameters = model.network.emit(classes.to(device))
    rows = embed_pictures(model, labels.pictures, parameters, tell=tell)
    return zero_shot_hits(rows @ classes.cpu().T, labels.labels)


def score_classes(hits: NDArray[np.float32], labels: LabelSet) -> dict[str, Any]:
    """Top-1 and top-5 in per cent with their 95 % intervals, and top-1 of each group and of the worst where it has any.

    Args:
        hits: (n_images, 2) from `classify`.
        labels: The set.
    """
    scores: dict[str, Any] = {}
    for i, k in enumerate((1, 5)):
        scores |= _with_interval(f"top_{k}", per_picture(hits[None, :, i]))
    if labels.groups is not None:
        by_group = group_accuracy(hits, labels.groups)
        scores["groups"] = {labels.group_names[group]: value for group, value in by_group.items()}
        scores["worst_group"] = min(by_group.values())
    return scores


def retrieve(model: Model, split: Split, *, tell: Tell = _silent) -> dict[str, Any]:
    """Recalls in per cent, their `score`, the mean of the two recall@1, with its 95 % interval, and `hits` at 1.

    The encoder is adapted to the captions that are searched; where there are more than `MOST_PROMPTS`, to so many of
    them, spread evenly.
    """
    found = _search(model, caption_rows(model, split.captions), split.pictures, split.owner, tell=tell)
    at_1 = {"t2i": found.t2i[:, 0], "i2t": found.i2t[:, 0]}
    parts = per_image(at_1["t2i"][None], at_1["i2t"][None], split.owner)
    return {**recall(found), **_with_interval("score", parts), "hits": {way: own.tolist() for way, own in at_1.items()}}


def watch(
    split: Split, read: Callable[[NDArray[np.int64]], Tensor], ok: NDArray[np.bool_] | None = None
) -> Watched | None:
    """At most `_WATCHED` pictures of a split that have a usable caption, spread evenly, with these captions.

    Args:
        split: Of validation.
        read: Indices of captions → what the text side takes.
        ok: (n_captions,) which captions are usable; None for all.

    Returns:
        None where there are fewer than two such pictures.
    """
    usable = np.arange(len(split.captions)) if ok is None else np.flatnonzero(ok)
    there = np.unique(split.owner[usable])
    if len(there) < 2:
        return None
    kept = there[np.unique(np.linspace(0, len(there) - 1, _WATCHED).round().astype(np.int64))]
    captions = usable[np.isin(split.owner[usable], kept)]
    owner = np.searchsorted(kept, split.owner[captions])
    return Watched(choose(split.pictures, kept), read(captions), owner)


@torch.no_grad()
def score_watched(model: Model, watched: Watched) -> float:
    """Mean of the two recall@1 in per cent, of the model as it stands; it is left in evaluation mode."""
    model.network.eval()
    device = model.network.logit_bias.device
    blocks = [model.network.embed_captions(part.to(device)).cpu() for part in watched.captions.split(_AT_ONCE)]
    return recall(_search(model, torch.cat(blocks), watched.pictures, watched.owner))["score"]


def _search(
    model: Model, captions: Tensor, pictures: Pictures, owner: NDArray[np.int64], *, tell: Tell = _silent
) -> Hits:
    """Hits of captions, (m, D) unit rows, among pictures, the encoder adapted to at most `MOST_PROMPTS` of them."""
    step = max(1, -(-len(captions) // MOST_PROMPTS))
    with torch.no_grad():
        parameters = model.network.emit(captions[::step].to(model.network.logit_bias.device))
    rows = embed_pictures(model, pictures, parameters, tell=tell)
    return hits_from_embeddings(rows, captions, owner)


def _with_interval(name: str, parts: Contributions) -> dict[str, float]:
    """A score in per cent and its 95 % interval, from another draw of pictures."""
    found = bootstrap(parts)
    return {name: float(found.score[0]), f"{name}_low": float(found.low[0]), f"{name}_high": float(found.high[0])}
