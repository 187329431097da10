"""From what was asked to grids of rows: the encoders within the limits, the data, the cache filled.

A warm run builds no encoder: facts, identities and latencies are remembered beside the cache, and rows are opened by
memory map. Pictures that cannot be decoded are left out for every encoder alike, counted and named.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hyperalign.align.grid import Grid, Picked, Rows, build_grid
from hyperalign.embed.cache import CacheKey, Entry, fill, is_whole
from hyperalign.embed.data import Dataset, LabelSet, open_dataset, surviving
from hyperalign.embed.duplicates import near_duplicates
from hyperalign.embed.identity import identity, pin, settle
from hyperalign.embed.memory import keep, recall
from hyperalign.embed.zoo import EncoderSpec, Limits, Pair, load_zoos, pairs_within, within
from hyperalign.ledger import Line
from hyperalign.machine import n_cores

if TYPE_CHECKING:
    from hyperalign.embed.encoders import Encoder

__all__ = [
    "Candidates",
    "Job",
    "LabelGrid",
    "Prepared",
    "Say",
    "embedding_jobs",
    "fill_cache",
    "find_candidates",
    "open_data",
    "open_grids",
    "recalled_latency",
]

Progress = Callable[[str, int, int], None]
Say = Callable[[str], None]

_NAMED = 5  # pictures that are named before the rest is counted
_MOST_COMPARED = 50_000  # pictures among which near-duplicates are looked for: each is decoded once more


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """The encoders and pairs that the limits let through.

    Attributes:
        images: N image encoders, facts known.
        texts: M text encoders, facts known.
        pairs: The pairs within the limit on both together; all N×M where there is none.
        latencies: Milliseconds of one picture by encoder, where measured on this machine.
        counts: What the limits let through, in words.
    """

    images: tuple[EncoderSpec, ...]
    texts: tuple[EncoderSpec, ...]
    pairs: tuple[Pair, ...]
    latencies: Mapping[str, float]
    counts: tuple[str, ...]

    def pair_indices(self) -> list[tuple[int, int]]:
        """(image, text) indices of the pairs."""
        at_image = {spec.name: i for i, spec in enumerate(self.images)}
        at_text = {spec.name: j for j, spec in enumerate(self.texts)}
        return [(at_image[pair.image.name], at_text[pair.text.name]) for pair in self.pairs]


class Job(NamedTuple):
    """One encoder on one set of items: an entry of the cache.

    Attributes:
        spec: The encoder.
        part: Split or label set the items come from.
        items: The pictures or captions.
        key: Where the rows belong.
    """

    spec: EncoderSpec
    part: str
    items: Any
    key: CacheKey


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Everything that methods need.

    Attributes:
        train: Rows to learn from.
        val: Rows to choose by.
        test: Rows to report on.
        image_ids: Names of the test pictures, unreadable ones left out.
        labels: Rows of the label set, where one was asked for: pictures as images, prompts as texts.
        notes: What was skipped, cut or found twice, in words.
        lines: Ledger of the embedding.
    """

    train: Grid
    val: Grid
    test: Grid
    image_ids: Sequence[str]
    labels: "LabelGrid | None"
    notes: list[str] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class LabelGrid:
    """Rows of a label set.

    Attributes:
        name: Of the label set.
        grid: Pictures and prompts; `owner` is of no meaning here.
        labels: (n_images,) class of each picture.
        n_classes: Classes, K; prompts are class-major, the same number for each.
    """

    name: str
    images: tuple[Rows, ...]
    texts: tuple[Rows, ...]
    labels: NDArray[np.int64]
    n_classes: int


def find_candidates(zoo: Sequence[str], limits: Limits, *, cache_dir: Path, progress: Progress) -> Candidates:
    """Read the zoos, learn the facts that are not declared, and apply the limits.

    Raises:
        ValueError: If a limit leaves nothing; the smallest is named.
        FileNotFoundError: If a zoo or a checkpoint is missing.
    """
    declared = load_zoos(zoo)
    specs = []
    for done, spec in enumerate(declared, start=1):
        specs.append(settle(spec, memory=cache_dir))
        progress("encoders", done, len(declared))
    latencies = {spec.name: ms for spec in specs if (ms := recalled_latency(spec, cache_dir)) is not None}
    if limits.latency_ms is not None:
        for spec in specs:
            if spec.modality == "image" and spec.name not in latencies and spec.loader != "rows":
                latencies[spec.name] = _measure_latency(spec, cache_dir)
    kept = within(specs, limits, latencies=latencies)
    images = tuple(spec for spec in kept if spec.modality == "image")
    texts = tuple(spec for spec in kept if spec.modality == "text")
    pairs = tuple(pairs_within(images, texts, limits))
    images = tuple(spec for spec in images if any(pair.image is spec for pair in pairs))
    texts = tuple(spec for spec in texts if any(pair.text is spec for pair in pairs))
    total = {side: sum(spec.modality == side for spec in specs) for side in ("image", "text")}
    counts = (
        f"within the limits: {len(images)} of {total['image']} image encoders, {len(texts)} of {total['text']} text "
        f"encoders, {len(pairs)} of {total['image'] * total['text']} pairs",
    )
    return Candidates(images=images, texts=texts, pairs=pairs, latencies=latencies, counts=counts)


def embedding_jobs(
    candidates: Candidates, dataset: Dataset, labels: LabelSet | None, *, cache_dir: Path, autocast: bool = False
) -> list[Job]:
    """Every entry of the cache that a search needs, encoder by encoder."""
    jobs = []
    for spec in (*candidates.images, *candidates.texts):
        own = identity(spec, memory=cache_dir, autocast=autocast)
        image = spec.modality == "image"
        parts: list[tuple[str, str, Any, str]] = []
        for name in ("train", "val", "test"):
            split = dataset.splits[name]
            items = split.pictures if image else split.captions
            parts.append((name, dataset.name, items, split.image_digest if image else split.text_digest))
        if labels is not None:
            items = labels.pictures if image else labels.prompts()
            parts.append(("labels", labels.name, items, labels.image_digest if image else labels.text_digest))
        for name, source, items, content in parts:
            key = CacheKey(
                encoder=spec.name,
                weights=own.weights,
                revision=own.revision,
                preprocess=own.preprocess,
                pooling=own.pooling,
                prompt=own.prompt,
                dataset=source,
                content=content,
                split=name,
            )
            jobs.append(Job(spec, name, items, key))
    return jobs


def fill_cache(
    jobs: Sequence[Job], *, cache_dir: Path, progress: Progress, say: Say, autocast: bool = False
) -> tuple[dict[tuple[str, str], Entry | Rows], list[Line], list[str]]:
    """Compute what the cache lacks, one encoder after the other; each is built at most once.

    Returns:
        The entries by (encoder, part), ready rows for encoders of loader "rows"; the ledger; notes.
    """
    entries: dict[tuple[str, str], Entry | Rows] = {}
    lines, notes = [], []
    for spec in dict.fromkeys(job.spec for job in jobs):
        own = [job for job in jobs if job.spec == spec]
        if spec.loader == "rows":
            from hyperalign.embed.encoders import open_rows

            entries.update({(spec.name, job.part): open_rows(spec, job.part) for job in own})
            continue
        missing = [job for job in own if not is_whole(cache_dir, job.key)]
        start = time.perf_counter()
        lazy = _Lazy(spec, cache_dir, autocast=autocast)
        for job in own:
            entries[spec.name, job.part] = fill(
                cache_dir, job.key, n_rows=len(job.items), embed=lazy.embedder(job.items), progress=progress
            )
        if lazy.encoder is not None:
            _remember(lazy.encoder, own, cache_dir)
        seconds = time.perf_counter() - start
        lines.append(_booking(spec, own, missing, seconds))
        if missing and lazy.encoder is not None:
            n_rows = sum(len(job.items) for job in missing)
            say(f"{spec.name}: {n_rows:,} rows at {n_rows / seconds:,.0f} a second")
        notes += _cut_notes(spec, own, cache_dir)
    return entries, lines, notes


class _Lazy:
    """An encoder that is built when its first row is asked for."""

    def __init__(self, spec: EncoderSpec, cache_dir: Path, *, autocast: bool):
        self.spec, self.cache_dir, self.autocast = spec, cache_dir, autocast
        self.encoder: Encoder | None = None

    def embedder(self, items: Any) -> Callable[[int, int], tuple[NDArray[Any], list[tuple[int, str]]]]:
        """`embed(start, stop)` over some items."""

        def embed(start: int, stop: int) -> tuple[NDArray[Any], list[tuple[int, str]]]:
            from hyperalign.embed.encoders import embed_captions, embed_pictures, load_encoder

            if self.encoder is None:
                self.encoder = load_encoder(pin(self.spec, memory=self.cache_dir), autocast=self.autocast)
            if self.spec.modality == "image":
                return embed_pictures(self.encoder, items, start, stop)
            return embed_captions(self.encoder, items[start:stop]), []

        return embed


def open_grids(
    candidates: Candidates,
    dataset: Dataset,
    labels: LabelSet | None,
    entries: Mapping[tuple[str, str], Entry | Rows],
    *,
    strict: bool,
) -> Prepared:
    """Put the rows of every encoder together, split by split, without the pictures that nobody could read.

    Raises:
        ValueError: If a split has no readable picture with a caption, or `strict` and a picture was unreadable.
    """
    notes = list(dataset.notes)
    grids, ids = {}, {}
    for name in ("train", "val", "test"):
        split = dataset.splits[name]
        bad = _unreadable(candidates, entries, name)
        if bad:
            notes.append(_bad_note(name, bad, split.image_ids))
            if strict:
                raise ValueError(f"{notes[-1]}; mend or remove them, or leave out --strict")
        left = surviving(split, bad)
        if not len(left.captions):
            raise ValueError(
                f"the split {name} of {dataset.name} has no readable picture with a caption; mend the data"
            )
        images = [_picked(entries[spec.name, name], left.images, len(split.image_ids)) for spec in candidates.images]
        texts = [_picked(entries[spec.name, name], left.captions, len(split.captions)) for spec in candidates.texts]
        grids[name] = build_grid(images, texts, left.owner)
        ids[name] = [split.image_ids[k] for k in left.images]
        notes += _unusable_notes(candidates, grids[name], name)
    label_grid = None
    if labels is not None:
        label_grid = LabelGrid(
            name=labels.name,
            images=tuple(_rows(entries[spec.name, "labels"]) for spec in candidates.images),
            texts=tuple(_rows(entries[spec.name, "labels"]) for spec in candidates.texts),
            labels=labels.labels,
            n_classes=len(labels.class_names),
        )
    return Prepared(
        train=grids["train"],
        val=grids["val"],
        test=grids["test"],
        image_ids=ids["test"],
        labels=label_grid,
        notes=notes,
    )


def note_near_duplicates(dataset: Dataset, *, cache_dir: Path, progress: Progress) -> list[str]:
    """Photographs of val and test that look like one of an earlier split, in words; remembered beside the cache.

    The embedded scenes are disjoint by construction and are not looked at.
    """
    n_pictures = sum(len(split.image_ids) for split in dataset.splits.values())
    if dataset.name == "scenes":
        return []
    if n_pictures > _MOST_COMPARED:
        return [f"near-duplicate pictures were not looked for among {n_pictures:,}: that decodes each once more"]
    about = "near-duplicates of " + " ".join(split.image_digest for split in dataset.splits.values())
    known = recall(cache_dir, about)
    if "twins" not in known:
        twins = near_duplicates(dataset.splits, progress=progress)
        known = {"twins": [f"{t.image_id} ({t.split}) of {t.other_id} ({t.other_split})" for t in twins]}
        keep(cache_dir, about, known)
    named: list[str] = known["twins"]
    if not named:
        return []
    more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
    return [f"{len(named)} near-duplicate pictures across splits: {', '.join(named[:_NAMED])}{more}"]


def open_data(  # noqa: PLR0913 - the options of `--data`
    source: str,
    *,
    strict: bool,
    seed: int,
    limit: int | None,
    labels: str | None,
    task: str,
    cache_dir: Path,
    progress: Progress,
) -> tuple[Dataset, LabelSet | None]:
    """The data set, and the label set where one is asked for.

    Raises:
        ValueError: If the task is zero-shot and there is no label set.
    """
    named = () if labels is None or source == "scenes" else (labels,)
    dataset = open_dataset(
        source, strict=strict, seed=seed, limit=limit, labels=named, memory=cache_dir, progress=progress
    )
    for name in ("train", "val", "test"):
        if name not in dataset.splits:
            raise ValueError(f"{dataset.name} has no split {name}; it needs train, val and test")
    if labels is None and task != "zero-shot":
        return dataset, None
    sets = dataset.label_sets
    if not sets:
        raise ValueError("the task zero-shot needs a label set; give --labels a folder or a .tar of class/picture")
    if labels is None or labels in sets or source != "scenes":
        return dataset, sets[labels] if labels in sets else next(iter(sets.values()))
    from hyperalign.embed.data import open_label_set

    return dataset, open_label_set(labels, seed=seed, memory=cache_dir, progress=progress)


def recalled_latency(spec: EncoderSpec, cache_dir: Path) -> float | None:
    """Milliseconds of one picture as once measured here; None where it was not."""
    found = recall(cache_dir, f"latency of {spec.name}").get(_machine(spec))
    return None if found is None else float(found)


def _measure_latency(spec: EncoderSpec, cache_dir: Path, encoder: "Encoder | None" = None) -> float:
    from hyperalign.embed.encoders import load_encoder, measure_latency

    ms = measure_latency(encoder or load_encoder(pin(spec, memory=cache_dir)))
    keep(cache_dir, f"latency of {spec.name}", {_machine(spec): ms})
    return ms


def _machine(spec: EncoderSpec) -> str:
    return f"{n_cores()} cores, {spec.architecture or spec.factory}, {spec.n_params}"


def _remember(encoder: "Encoder", jobs: Sequence[Job], cache_dir: Path) -> None:
    """What can only be learned while an encoder is built: its latency, and the captions that its tokenizer cuts."""
    spec = jobs[0].spec
    if spec.modality == "image" and recalled_latency(spec, cache_dir) is None:
        _measure_latency(spec, cache_dir, encoder)
    if spec.modality == "text":
        cut = {job.part: encoder.n_cut(job.items) for job in jobs}
        keep(cache_dir, f"captions cut by {spec.name} in {jobs[0].key.digest}", cut)


def _cut_notes(spec: EncoderSpec, jobs: Sequence[Job], cache_dir: Path) -> list[str]:
    cut = recall(cache_dir, f"captions cut by {spec.name} in {jobs[0].key.digest}") if spec.modality == "text" else {}
    total = sum(cut.values())
    return [f"{spec.name} cuts {total:,} captions that are longer than it reads"] if total else []


def _booking(spec: EncoderSpec, jobs: Sequence[Job], missing: Sequence[Job], seconds: float) -> Line:
    """One line per encoder; rows that lay in the cache cost nothing in this run."""
    n_rows = sum(len(job.items) for job in missing)
    cached = sum(len(job.items) for job in jobs) - n_rows
    what = f"{spec.name}: {n_rows:,} rows embedded, {cached:,} from the cache"
    flops = round((spec.gflops or 0.0) * 1e9) * n_rows
    return Line("embedding", "", what, flops, seconds if missing else 0.0)


def _rows(entry: Entry | Rows) -> Rows:
    return entry.rows if isinstance(entry, Entry) else entry


def _picked(entry: Entry | Rows, index: NDArray[np.int64], n_rows: int) -> Rows:
    rows = _rows(entry)
    if rows.shape[0] != n_rows:
        raise ValueError(f"ready embeddings must have one row for each of {n_rows:,} items, got {rows.shape[0]:,}")
    return rows if len(index) == n_rows else Picked(rows, index)


def _unreadable(candidates: Candidates, entries: Mapping[tuple[str, str], Entry | Rows], part: str) -> dict[int, str]:
    found: dict[int, str] = {}
    for spec in candidates.images:
        entry = entries[spec.name, part]
        if isinstance(entry, Entry):
            found.update(entry.bad)
    return found


def _bad_note(part: str, bad: Mapping[int, str], image_ids: Sequence[str]) -> str:
    named = [f"{image_ids[index]} ({reason})" for index, reason in sorted(bad.items())[:_NAMED]]
    more = f" and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
    return f"{part}: {len(bad)} pictures cannot be read and are left out: {', '.join(named)}{more}"


def _unusable_notes(candidates: Candidates, grid: Grid, part: str) -> list[str]:
    """Rows that are NaN, Inf or zero: kept out of the loss, misses in evaluation."""
    sides = ((candidates.images, grid.image_ok, "pictures"), (candidates.texts, grid.text_ok, "captions"))
    return [
        f"{part}: {spec.name} gives no usable row for {int((~row).sum()):,} {what}; they are misses"
        for specs, ok, what in sides
        for spec, row in zip(specs, ok, strict=True)
        if not row.all()
    ]
