"""From what was asked to rows on disk: the data, what must be embedded of it, the cache filled.

Each encoder is built at most once a call, and only where the cache lacks something of it; what is finished is kept
whatever happens to the rest.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hyperalign.align.grid import Picked, Rows
from hyperalign.candidates import Candidates, recall_latency, remember_latency, this_machine
from hyperalign.embed.cache import CacheKey, Entry, fill, fill_some, n_missing
from hyperalign.embed.data import Dataset, LabelSet, open_dataset, open_label_set
from hyperalign.embed.identity import Identity, identity, is_pinned, pin
from hyperalign.embed.memory import keep, recall
from hyperalign.embed.pictures import choose
from hyperalign.embed.zoo import EncoderSpec
from hyperalign.ledger import Line
from hyperalign.machine import peak_bytes

if TYPE_CHECKING:
    from hyperalign.embed.encoders import Encoder

__all__ = [
    "LABELS",
    "SPLITS",
    "Entries",
    "Job",
    "count_missing",
    "embedding_jobs",
    "fill_cache",
    "open_data",
    "recall_rate",
]

Progress = Callable[[str, int, int], None]
Entries = dict[tuple[str, str], Entry | Rows]  # of a sample: its rows alone, unreadable ones counted in it
Embedded = tuple[NDArray[Any], list[tuple[int, str]]]

SPLITS = ("train", "val", "test")
LABELS = "labels"  # the part of a label set, beside the splits


class Job(NamedTuple):
    """One encoder on one set of items: an entry of the cache.

    Attributes:
        spec: The encoder.
        part: Of `SPLITS`, or `LABELS`.
        items: The pictures or captions.
        key: Where the rows belong.
        some: (n,) which of the items are wanted, ascending; None for all.
    """

    spec: EncoderSpec
    part: str
    items: Any
    key: CacheKey
    some: NDArray[np.int64] | None = None

    @property
    def n_wanted(self) -> int:
        """Rows that are wanted."""
        return len(self.items) if self.some is None else len(self.some)


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
    if task == "zero-shot" and labels is None and source != "scenes":
        raise ValueError("the task zero-shot needs a label set; give --labels a folder or a .tar of class/picture")
    dataset = open_dataset(source, strict=strict, seed=seed, limit=limit, memory=cache_dir, progress=progress)
    if labels is None:
        own = next(iter(dataset.label_sets.values()), None)
        return dataset, own if task == "zero-shot" else None
    if labels in dataset.label_sets:
        return dataset, dataset.label_sets[labels]
    if dataset.label_sets and not (Path(labels).exists() or ":" in labels):
        known = ", ".join(dataset.label_sets)
        raise KeyError(f"no label set {labels!r} in {dataset.name}: it has {known}; or give a folder or a .tar")
    return dataset, open_label_set(labels, seed=seed, memory=cache_dir, progress=progress)


def embedding_jobs(
    candidates: Candidates,
    dataset: Dataset,
    labels: LabelSet | None,
    *,
    cache_dir: Path,
    autocast: bool = False,
    ask_hub: bool = True,
) -> list[Job]:
    """Every entry of the cache that a search needs, encoder by encoder.

    Where the hub must not be asked, an encoder whose commit is not known gets keys that no entry has.
    """
    jobs = []
    for spec in (*candidates.images, *candidates.texts):
        if ask_hub or is_pinned(spec, memory=cache_dir):
            own = identity(spec, memory=cache_dir, autocast=autocast)
        else:
            own = Identity(weights="", revision="not known yet", preprocess="", pooling="", prompt="")
        image = spec.modality == "image"
        parts: list[tuple[str, str, Any, str]] = []
        for name in SPLITS:
            split = dataset.splits[name]
            items = split.pictures if image else split.captions
            parts.append((name, dataset.name, items, split.image_digest if image else split.text_digest))
        if labels is not None:
            items = labels.pictures if image else labels.prompts()
            parts.append((LABELS, labels.name, items, labels.image_digest if image else labels.text_digest))
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
    jobs: Sequence[Job], *, cache_dir: Path, progress: Progress, autocast: bool = False
) -> tuple[Entries, list[Line], list[str]]:
    """Compute what the cache lacks, one encoder after the other.

    Returns:
        The entries by (encoder, part), ready rows for encoders of loader "rows"; the ledger; notes.

    Raises:
        ValueError: If ready rows are not one for each item.
    """
    entries: Entries = {}
    lines, notes = [], []
    for job in jobs:
        if job.spec.loader == "rows":  # first, since a slip in them costs nothing yet
            entries[job.spec.name, job.part] = _open_ready(job)
    for spec in dict.fromkeys(job.spec for job in jobs if job.spec.loader != "rows"):
        own = [job for job in jobs if job.spec == spec]
        missing = {job.part: count_missing(job, cache_dir) for job in own}
        start = time.perf_counter()
        lazy = _Lazy(spec, cache_dir, autocast=autocast)
        tally = _Tally(progress, sum(missing.values()))
        for job in own:
            entries[spec.name, job.part] = _fill(job, lazy, tally, cache_dir)
            tally.before += missing[job.part]
        lines.append(_booking(spec, own, sum(missing.values()), time.perf_counter() - start))
        if lazy.encoder is not None:
            _remember(lazy, own, cache_dir)
        notes += [*lazy.notes, *_cut_notes(spec, own, cache_dir)]
    return entries, lines, notes


def count_missing(job: Job, cache_dir: Path) -> int:
    """Rows that `fill_cache` would have to compute."""
    if job.spec.loader == "rows":
        return 0
    return n_missing(cache_dir, job.key, n_rows=len(job.items), items=job.some)


def recall_rate(spec: EncoderSpec, cache_dir: Path) -> float | None:
    """Rows a second as last embedded on a machine with as many cores; None where it never was."""
    found = recall(cache_dir, f"rate of {spec.name}").get(this_machine(spec))
    return None if found is None else float(found)


def _open_ready(job: Job) -> Rows:
    """Rows of an encoder that is a file of them."""
    from hyperalign.embed.encoders import open_rows

    rows = open_rows(job.spec, job.part)
    if len(rows) != len(job.items):
        what = "picture" if job.spec.modality == "image" else "caption"
        raise ValueError(
            f"encoder {job.spec.name!r} must have one row for each {what}: {job.part} has {len(job.items):,} and its "
            f"file {len(rows):,}; make the rows again, in the order of the data"
        )
    return rows if job.some is None else Picked(rows, job.some)


def _fill(job: Job, lazy: "_Lazy", tally: "_Tally", cache_dir: Path) -> Entry:
    """A whole entry, or a sample of one as if it were an entry of its own."""
    embed, embed_some = lazy.embedder(job, tally)
    n_rows = len(job.items)
    if job.some is None:
        return fill(cache_dir, job.key, n_rows=n_rows, embed=embed, embed_some=embed_some, progress=tally.stored)
    sample = fill_some(cache_dir, job.key, n_rows=n_rows, items=job.some, embed_some=embed_some, progress=tally.stored)
    bad = {int(np.searchsorted(job.some, item)): why for item, why in sample.bad.items()}
    return Entry(Picked(sample.rows, sample.at), bad, {})  # type: ignore[arg-type]


class _Lazy:
    """An encoder that is built when its first row is asked for, and how fast it was."""

    def __init__(self, spec: EncoderSpec, cache_dir: Path, *, autocast: bool):
        self.spec, self.cache_dir, self.autocast = spec, cache_dir, autocast
        self.encoder: Encoder | None = None
        self.n_rows, self.seconds = 0, 0.0
        self.batch_size: int | None = None  # where memory did not hold the usual one

    @property
    def notes(self) -> list[str]:
        """What is worth telling of how it was embedded."""
        if self.batch_size is None:
            return []
        return [f"{self.spec.name} embeds {self.batch_size} at a time: memory did not hold more of them at once"]

    def embedder(
        self, job: Job, tally: "_Tally"
    ) -> tuple[Callable[[int, int], Embedded], Callable[[NDArray[np.int64]], Embedded]]:
        """`embed(start, stop)` and `embed_some(items)` over the items of a job."""

        def embed(start: int, stop: int) -> Embedded:
            return self._embed(job.items, start, stop, tally)

        def embed_some(items: NDArray[np.int64]) -> Embedded:
            image = self.spec.modality == "image"
            chosen = choose(job.items, items) if image else [job.items[index] for index in items.tolist()]
            rows, bad = self._embed(chosen, 0, len(items), tally)
            return rows, [(int(items[index]), why) for index, why in bad]

        return embed, embed_some

    def _embed(self, items: Any, start: int, stop: int, tally: "_Tally") -> Embedded:
        from hyperalign.embed.encoders import BATCH_SIZE, embed_captions, embed_pictures, load_encoder

        if self.encoder is None:
            tally.embedded(self.spec.name, 0)
            self.encoder = load_encoder(pin(self.spec, memory=self.cache_dir), autocast=self.autocast)
        begin, bad = time.perf_counter(), list[tuple[int, str]]()

        def tell(done: int) -> None:
            if start + done < stop:  # whoever stores the rows tells of the last ones, when they are stored
                tally.embedded(self.spec.name, start + done)

        def shrunk(size: int) -> None:
            self.batch_size = size
            tally.why = f", {size} at a time for want of memory"

        size = self.batch_size or BATCH_SIZE
        if self.spec.modality == "image":
            rows, bad = embed_pictures(self.encoder, items, start, stop, batch_size=size, tell=tell, shrunk=shrunk)
        else:
            rows = embed_captions(self.encoder, items[start:stop], batch_size=size, tell=tell, shrunk=shrunk)
        self.n_rows += len(rows)
        self.seconds += time.perf_counter() - begin
        return rows, bad


class _Tally:
    """Progress of one encoder over all that it must embed, part after part."""

    def __init__(self, progress: Progress, total: int):
        self.progress, self.total = progress, total
        self.before = 0  # rows of the parts that are finished
        self.why = ""  # it goes slower than it might

    def embedded(self, name: str, done: int) -> None:
        """So many rows of this part are embedded."""
        self.progress(f"embedding by {name}{self.why}", self.before + done, self.total)

    def stored(self, stage: str, done: int, of_part: int) -> None:
        """The same from who stores them, and who may be waiting for another process that does."""
        name, _, other = stage.partition(", ")
        waits = " (another process)" if "another" in other else ""
        self.progress(f"embedding by {name}{self.why}{waits}", min(self.before + done, self.total), self.total)


def _remember(lazy: _Lazy, jobs: Sequence[Job], cache_dir: Path) -> None:
    """What can only be learned while an encoder is built: its speed, and the captions that its tokenizer cuts."""
    assert lazy.encoder is not None, "it was built"
    spec = lazy.spec
    about = f"rate of {spec.name}"
    keep(cache_dir, about, {**recall(cache_dir, about), this_machine(spec): lazy.n_rows / lazy.seconds})
    if spec.modality == "image" and recall_latency(spec, cache_dir) is None:
        remember_latency(spec, cache_dir, lazy.encoder)
    if spec.modality == "text" and all(job.some is None for job in jobs):
        cut = {job.part: lazy.encoder.n_cut(job.items) for job in jobs}
        keep(cache_dir, f"captions cut by {spec.name} in {jobs[0].key.digest}", cut)


def _cut_notes(spec: EncoderSpec, jobs: Sequence[Job], cache_dir: Path) -> list[str]:
    cut = recall(cache_dir, f"captions cut by {spec.name} in {jobs[0].key.digest}") if spec.modality == "text" else {}
    total = sum(cut.values())
    words = "1 caption that is" if total == 1 else f"{total:,} captions that are"
    return [f"{spec.name} cuts {words} longer than it reads"] if total else []


def _booking(spec: EncoderSpec, jobs: Sequence[Job], n_rows: int, seconds: float) -> Line:
    """One line per encoder; rows that lay in the cache cost nothing in this run."""
    cached = sum(job.n_wanted for job in jobs) - n_rows
    what = f"{spec.name}: {n_rows:,} rows embedded, {cached:,} from the cache"
    flops = round((spec.gflops or 0.0) * 1e9) * n_rows
    return Line("embedding", "", what, flops, seconds if n_rows else 0.0, peak_bytes() if n_rows else 0)
