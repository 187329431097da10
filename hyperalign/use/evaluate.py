"""How good a model is on a set: zero-shot classification of a label set, retrieval on pictures with captions."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hyperalign.embed.data import LabelSet, is_label_set, open_label_set, open_split, surviving
from hyperalign.embed.label_sets import TEMPLATES
from hyperalign.embed.pictures import Pictures, choose
from hyperalign.embed.splits import ALL, Split
from hyperalign.rank.metrics import (
    group_accuracy,
    hits_from_embeddings,
    recall,
    usable,
    zero_shot,
    zero_shot_hits,
)
from hyperalign.rank.resampling import Contributions, bootstrap, per_image, per_picture
from hyperalign.use.classes import Classes, check_templates, class_rows
from hyperalign.use.dual import DualEncoder, Encoded
from hyperalign.use.groups import read_groups
from hyperalign.use.opened import Trained

__all__ = ["evaluate", "evaluate_labels", "evaluate_split", "label_scores", "retrieval_scores"]

Progress = Callable[[str, int, int], None]


def _silent(stage: str, done: int, total: int) -> None:
    """Report to nobody."""


def evaluate(  # noqa: PLR0913 - the options of the command
    model: DualEncoder,
    source: str,
    *,
    split: str | None = None,
    templates: Sequence[str] = (),
    metadata: Path | None = None,
    group_by: Sequence[str] = (),
    strict: bool = False,
    seed: int | None = None,
    known: Trained | None = None,
    limit: int | None = None,
    memory: Path | None = None,
    progress: Progress = _silent,
) -> dict[str, Any]:
    """Score a model on a set.

    Args:
        model: The pair.
        source: A label set (`class/picture` in a folder or a tar, `scenes:<name>`), or any form of `--data`.
        split: Of pictures with captions: "train", "val", "test" or "all". None is test where the data names splits or
            the model was trained on them, else all.
        templates: Prompts with one gap instead of the label set's own.
        metadata: Table with a column of pictures, for groups.
        group_by: Columns whose values make the groups; "class" is the picture's class.
        strict: Stop at a picture that is missing, cannot be decoded, or has no caption.
        seed: Draws splits where the source names none, and `scenes`; None is that of the training, or 0.
        known: What the model was trained on.
        limit: Look at so many pictures at most.
        memory: Where facts about files are kept between runs.
        progress: Told `(stage, done, total)`.

    Returns:
        A plain record: `task`, `set`, sizes, scores in per cent, `bad` pictures and `notes`.
    """
    check_templates(templates)
    if is_label_set(source, memory=memory):
        if split is not None:
            raise ValueError(f"a label set has no splits, got --split {split} for {source}")
        labels = open_label_set(source, seed=seed or 0, memory=memory, progress=progress)
        groups = read_groups(metadata, group_by, labels) if metadata is not None or group_by else None
        return evaluate_labels(
            model, labels, templates=templates, groups=groups, strict=strict, limit=limit, progress=progress
        )
    if templates or metadata is not None or group_by:
        raise ValueError(f"templates and groups are for label sets, and {source} is pictures with captions")
    seed = seed if seed is not None else known.seed if known is not None else 0
    how: dict[str, Any] = {"strict": strict, "seed": seed, "limit": limit, "memory": memory, "progress": progress}
    name, found, notes = open_split(source, split, **how)
    if split is None and found.name == ALL and known is not None and known.name == name:
        name, found, notes = open_split(source, "test", **how)
        notes = ["the model was trained on it: its test split is taken; --split all takes everything", *notes]
    record = evaluate_split(model, found, strict=strict, progress=progress)
    return {"task": "retrieval", "set": name, **record, "notes": [*notes, *record["notes"]]}


def evaluate_labels(  # noqa: PLR0913 - whom, on what, by which words and groups, and who is told
    model: DualEncoder,
    labels: LabelSet,
    *,
    templates: Sequence[str] = (),
    groups: tuple[NDArray[np.int64], tuple[str, ...]] | None = None,
    strict: bool = False,
    limit: int | None = None,
    progress: Progress = _silent,
) -> dict[str, Any]:
    """Zero-shot classification of a label set; pictures that cannot be decoded are left out and named."""
    classes = Classes(labels.class_names, tuple(templates) or labels.templates or TEMPLATES)
    chosen = _spread(len(labels.labels), limit)
    names = [labels.image_ids[n] for n in chosen.tolist()]
    images = _encode(model, choose(labels.pictures, chosen), names, strict, progress)
    kept = _kept(images)
    which = chosen[kept]
    if groups is None and labels.groups is not None:
        groups = labels.groups, labels.group_names
    rows = class_rows(model, classes)
    scores = label_scores(
        images.rows[kept],
        rows,
        labels.labels[which],
        class_names=labels.class_names,
        groups=None if groups is None else (groups[0][which], groups[1]),
    )
    sizes = {"n_pictures": len(kept), "n_classes": len(classes.names), "n_templates": len(classes.templates)}
    bad = [(names[n], reason) for n, reason in images.bad]
    notes = _unknown(rows, "class has", "classes have", "their pictures are misses")
    return {"task": "zero-shot", "set": labels.name, **sizes, **scores, "bad": bad, "notes": notes}


def evaluate_split(
    model: DualEncoder, split: Split, *, strict: bool = False, progress: Progress = _silent
) -> dict[str, Any]:
    """Retrieval in both directions; pictures that cannot be decoded are left out with their captions, and named."""
    images = _encode(model, split.pictures, split.image_ids, strict, progress)
    left = surviving(split, [n for n, _ in images.bad])
    captions = [split.captions[n] for n in left.captions.tolist()]
    text = model.encode_text(captions, tell=lambda done: progress("embedding captions", done, len(captions)))
    scores = retrieval_scores(images.rows[left.images], text, left.owner)
    sizes = {"split": split.name, "n_pictures": len(left.images), "n_captions": len(captions)}
    notes = _unknown(text, "caption has", "captions have", "they are misses")
    return {**sizes, **scores, "bad": [(split.image_ids[n], reason) for n, reason in images.bad], "notes": notes}


def label_scores(
    images: Tensor,
    classes: Tensor,
    labels: NDArray[np.int64],
    *,
    class_names: Sequence[str],
    groups: tuple[NDArray[np.int64], Sequence[str]] | None = None,
) -> dict[str, Any]:
    """Zero-shot scores in per cent.

    Args:
        images: (n, D), unit rows; one without a direction is a miss.
        classes: (C, D), unit rows of the classes.
        labels: (n,) class of each picture.
        class_names: C names.
        groups: (n,) group of each picture, and the groups' names.

    Returns:
        `zero_shot_top_1` with its 95 % interval, `zero_shot_top_5` (NaN for fewer than five classes),
        `mean_per_class` (of top 1, over classes that have pictures) and the worst class; with groups the accuracy of
        each and the worst one. 100 / C where all similarities are equal.
    """
    image_ok, class_ok = (usable(rows).numpy() for rows in (images, classes))
    similarity = images.nan_to_num(0.0) @ classes.T
    hits = zero_shot_hits(similarity, labels, image_ok=image_ok, class_ok=class_ok)
    per_class = group_accuracy(hits, labels)
    scores: dict[str, Any] = zero_shot(hits) | ({} if len(classes) >= 5 else {"zero_shot_top_5": float("nan")})
    scores |= _interval("zero_shot_top_1", per_picture(hits[None, :, 0]))
    found = {**scores, "mean_per_class": float(np.mean(list(per_class.values())))}
    found |= {"worst_class": _worst(per_class, class_names, labels)}
    if groups is None:
        return found
    by_group = group_accuracy(hits, groups[0])
    named = [{"name": groups[1][g], "n": int((groups[0] == g).sum()), "top_1": top_1} for g, top_1 in by_group.items()]
    return {**found, "groups": named, "worst_group": _worst(by_group, groups[1], groups[0])}


def retrieval_scores(images: Tensor, captions: Tensor, owner: NDArray[np.int64]) -> dict[str, float]:
    """Recalls in per cent in both directions, and `score`, the mean of the two recall@1, with its 95 % interval.

    Args:
        images: (n, D), unit rows.
        captions: (m, D), unit rows.
        owner: (m,) index of each caption's picture; any of a picture's captions is right for it.
    """
    hits = hits_from_embeddings(images, captions, owner)
    parts = per_image(hits.t2i[None, :, 0], hits.i2t[None, :, 0], owner)
    return {**recall(hits), **_interval("score", parts)}


def _interval(name: str, parts: Contributions) -> dict[str, float]:
    """95 % interval of one score, from another draw of pictures."""
    found = bootstrap(parts)
    return {f"{name}_low": float(found.low[0]), f"{name}_high": float(found.high[0])}


def _worst(accuracy: Mapping[int, float], names: Sequence[str], members: NDArray[np.int64]) -> dict[str, Any]:
    """The least accurate class or group; of equals the first."""
    which = min(accuracy, key=lambda one: (accuracy[one], one))
    return {"name": names[which], "n": int((members == which).sum()), "top_1": accuracy[which]}


def _encode(model: DualEncoder, pictures: Pictures, names: Sequence[str], strict: bool, progress: Progress) -> Encoded:
    images = model.encode_pictures(pictures, tell=lambda done: progress("embedding pictures", done, len(names)))
    for n, reason in images.bad[:1] if strict else ():
        raise ValueError(f"with --strict every picture must be readable, and {names[n]} is not: {reason}")
    if len(images.bad) == len(names):
        raise ValueError(f"none of the {len(names):,} pictures can be decoded, the first because {images.bad[0][1]}")
    return images


def _kept(images: Encoded) -> NDArray[np.int64]:
    """Which pictures could be decoded."""
    return np.setdiff1d(np.arange(len(images.rows)), [n for n, _ in images.bad])


def _unknown(rows: Tensor, one: str, many: str, outcome: str) -> list[str]:
    """Say how many texts mean nothing to the model, if there are any."""
    count = int((~usable(rows)).sum())
    return [f"{count:,} {one if count == 1 else many} no word that the model knows; {outcome}"] if count else []


def _spread(n: int, limit: int | None) -> NDArray[np.int64]:
    """At most so many of n pictures that stand class by class, evenly spread."""
    n_kept = n if limit is None else min(n, limit)
    return np.arange(n_kept, dtype=np.int64) * n // max(1, n_kept)
