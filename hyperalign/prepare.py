"""From what was asked to rows on disk: the data, what must be embedded of it, the cache filled.

Each encoder is built at most once a call, and only where the cache lacks something of it; what is finished is kept
whatever happens to the rest.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hyperalign.align.grid import Picked, Rows
from hyperalign.candidates import Candidates, recall_latency, remember_latency, this_machine
from hyperalign.embed.cache import (
    CacheKey,
    Entry,
    fill,
    fill_shards,
    fill_some,
    missing_shards,
    n_missing,
    own_entries,
)
from hyperalign.embed.data import Dataset, LabelSet, open_dataset, open_label_set
from hyperalign.embed.identity import Identity, identity, is_pinned, pin
from hyperalign.embed.locks import Claim
from hyperalign.embed.memory import keep, recall
from hyperalign.embed.pictures import choose
from hyperalign.embed.tar_streams import at_places, is_beside, is_streamed, streamed_places
from hyperalign.embed.zoo import EncoderSpec
from hyperalign.ledger import Line
from hyperalign.machine import peak_bytes
from hyperalign.processes import ALONE, Crew
from hyperalign.shares import cut_evenly

if TYPE_CHECKING:
    from hyperalign.embed.encoders import Encoder

__all__ = [
    "LABELS",
    "SPLITS",
    "Entries",
    "Job",
    "count_missing",
    "embed_share",
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
    jobs: Sequence[Job], *, cache_dir: Path, progress: Progress, autocast: bool = False, crew: Crew = ALONE
) -> tuple[Entries, list[Line], list[str]]:
    """Compute what the cache lacks, one encoder after the other; nobody prunes it away while rows of it live.

    Args:
        jobs: What is wanted.
        cache_dir: Where embeddings are kept.
        progress: Told `(stage, done, total)`.
        autocast: Embed in bfloat16.
        crew: Processes that do it together, the others by `embed_share`; their seconds are added up.

    Returns:
        The entries by (encoder, part), ready rows for encoders of loader "rows"; the ledger; notes.

    Raises:
        ValueError: If ready rows are not one for each item.
    """
    entries: Entries = {}
    lines, notes = list[Line](), list[str]()
    claim = Claim(cache_dir, [job.key.folder for job in jobs if job.spec.loader != "rows"])
    for job in jobs:
        if job.spec.loader == "rows":  # first, since a slip in them costs nothing yet
            entries[job.spec.name, job.part] = _open_ready(job)
    lacking = {job.key: count_missing(job, cache_dir) for job in jobs}
    shared = _embed_together(jobs, crew, cache_dir, progress, autocast=autocast) if crew.size > 1 else {}
    for spec in dict.fromkeys(job.spec for job in jobs if job.spec.loader != "rows"):
        own = [job for job in jobs if job.spec == spec]
        missing = {job.part: lacking[job.key] for job in own}
        start = time.perf_counter()
        lazy = _Lazy(spec, cache_dir, autocast=autocast, jobs=own)
        tally = _Tally(_silent if spec.name in shared else progress, sum(missing.values()))
        for job in own:
            entries[spec.name, job.part] = _fill(job, lazy, tally, cache_dir, claim, notes)
            tally.before += missing[job.part]
        worked = shared.get(spec.name, _Worked())
        seconds = time.perf_counter() - start + worked.seconds
        lines.append(_booking(spec, own, sum(missing.values()), seconds))
        if worked.n_rows or lazy.encoder is not None:
            _remember(lazy, own, cache_dir, worked)
        notes += [*dict.fromkeys([*worked.notes, *lazy.notes]), *_cut_notes(spec, own, cache_dir)]
    return entries, lines, notes


def embed_share(
    share: Sequence[Mapping[str, Any]], jobs: Sequence[Job], *, cache_dir: Path, progress: Progress, autocast: bool
) -> dict[str, list[Any]]:
    """Embed what one process of several was given.

    Args:
        share: Records of the pieces, from the process that decides.
        jobs: As this process knows them.
        cache_dir: Where embeddings are kept.
        progress: Told `(stage, done, total)`.
        autocast: Embed in bfloat16.

    Returns:
        For each encoder the rows, the seconds of embedding them, all seconds, building it with them, and notes.

    Raises:
        ValueError: If this process sees other encoders or data than the one that decides.
    """
    known = {(job.spec.name, job.part): job for job in jobs}
    done: dict[str, list[Any]] = {}
    claim = Claim(cache_dir, [job.key.folder for job in jobs if job.spec.loader != "rows"])
    for name, pieces in groupby(share, key=lambda piece: str(piece["encoder"])):
        start, notes = time.perf_counter(), list[str]()
        own = [(_own_job(piece, known), piece["shards"]) for piece in pieces]
        counts = [count_missing(job, cache_dir) if shards is None else _n_rows(shards) for job, shards in own]
        lazy = _Lazy(own[0][0].spec, cache_dir, autocast=autocast, jobs=[job for job, _ in own])
        tally = _Tally(progress, sum(counts))
        for (job, shards), count in zip(own, counts, strict=True):
            if shards is None:
                _fill(job, lazy, tally, cache_dir, claim, notes)
            else:
                embed, embed_some = lazy.embedder(job, tally)
                fill_shards(cache_dir, job.key, shards, embed=embed, embed_some=embed_some, progress=tally.stored)
            tally.before += count
        done[name] = [lazy.n_rows, lazy.seconds, time.perf_counter() - start, [*notes, *lazy.notes]]
    return done


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


def _fill(job: Job, lazy: "_Lazy", tally: "_Tally", cache_dir: Path, claim: Claim, notes: list[str]) -> Entry:
    """A whole entry, or a sample of one as if it were an entry of its own; its rows hold the claim."""
    embed, embed_some = lazy.embedder(job, tally)
    how: dict[str, Any] = {"n_rows": len(job.items), "embed_some": embed_some, "progress": tally.stored}
    if job.some is None:
        entry = fill(cache_dir, job.key, embed=embed, tell=notes.append, **how)
        entry.rows.claim = claim
        return entry
    sample = fill_some(cache_dir, job.key, items=job.some, **how)
    sample.rows.claim = claim
    bad = {int(np.searchsorted(job.some, item)): why for item, why in sample.bad.items()}
    return Entry(Picked(sample.rows, sample.at), bad, {})  # type: ignore[arg-type]


def _silent(stage: str, done: int, total: int) -> None:
    """Report to nobody: whoever did the work has told of it."""


class _Worked(NamedTuple):
    """What several processes have done with one encoder.

    Attributes:
        n_rows: Rows embedded.
        embedding: Seconds of that, added up.
        seconds: All seconds, building the encoder with them, added up.
        notes: What is worth telling of how it was embedded.
    """

    n_rows: int = 0
    embedding: float = 0.0
    seconds: float = 0.0
    notes: Sequence[str] = ()


def _embed_together(
    jobs: Sequence[Job], crew: Crew, cache_dir: Path, progress: Progress, *, autocast: bool
) -> dict[str, _Worked]:
    """Cut what is missing into a share for each process, and do this one's; by encoder what all have done."""
    tasks = _tasks(jobs, cache_dir)
    if not tasks:
        return {}
    cuts = cut_evenly([cost for _, cost in tasks], crew.size)
    shares = [_joined([piece for k in cut for piece in tasks[k][0]]) for cut in cuts]
    rest = [job for job in jobs if job.some is None and job.spec.loader != "rows"]
    split = [job.key for job in rest if not is_streamed(job.items) and _shards(job, cache_dir)]
    last = 0.0

    def look() -> None:
        nonlocal last
        if time.monotonic() - last >= 1:
            last, left = time.monotonic(), sum(_n_rows(_shards(job, cache_dir)) for job in rest)
            progress("embedding by other processes", max(0, total - left), total)

    def wait() -> None:
        progress("waiting for another process that fills the cache", 0, 0)

    with own_entries(cache_dir, split, wait):
        crew.order({"do": "embed", "shares": shares})
        own = embed_share(shares[crew.rank], jobs, cache_dir=cache_dir, progress=progress, autocast=autocast)
        total = sum(_n_rows(_shards(job, cache_dir)) for job in rest)
        found = crew.collect({"done": own}, look)
    by_encoder: dict[str, _Worked] = {}
    for done in (heard["done"] for heard in found):
        for name, numbers in done.items():
            before, (n_rows, embedding, seconds, notes) = by_encoder.get(name, _Worked()), numbers
            by_encoder[name] = _Worked(
                before.n_rows + n_rows,
                before.embedding + embedding,
                before.seconds + seconds,
                [*before.notes, *notes],
            )
    return by_encoder


def _tasks(jobs: Sequence[Job], cache_dir: Path) -> list[tuple[list[dict[str, Any]], float]]:
    """What is missing, encoder by encoder, as pieces that one process does, and their cost.

    A task is a shard; a sample; or all that an encoder embeds of a stream, so that it is read once.
    """
    found: list[tuple[list[dict[str, Any]], float]] = []
    streams: dict[str, int] = {}
    for job in jobs:
        if job.spec.loader == "rows":
            continue
        record = {"encoder": job.spec.name, "part": job.part, "digest": job.key.digest, "shards": None, "some": None}
        price = max(job.spec.gflops or 0.0, 1e-9 * (job.spec.n_params or 0), 1e-6)
        n_rows = count_missing(job, cache_dir)
        if job.some is None and not is_streamed(job.items):
            for shard in _shards(job, cache_dir):
                found.append(([{**record, "shards": [shard]}], price * (shard[1] - shard[0])))
        elif n_rows and job.some is not None:
            found.append(([{**record, "some": job.some.tolist()}], price * n_rows))
        elif n_rows and job.spec.name in streams:
            pieces, cost = found[streams[job.spec.name]]
            found[streams[job.spec.name]] = [*pieces, record], cost + price * n_rows
        elif n_rows:
            streams[job.spec.name] = len(found)
            found.append(([record], price * n_rows))
    return found


def _joined(pieces: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Pieces with the shards of one entry put together."""
    joined: list[dict[str, Any]] = []
    for piece in pieces:
        if joined and piece["shards"] is not None and joined[-1]["digest"] == piece["digest"]:
            joined[-1] = {**joined[-1], "shards": [*joined[-1]["shards"], *piece["shards"]]}
        else:
            joined.append(piece)
    return joined


def _shards(job: Job, cache_dir: Path) -> list[tuple[int, int]]:
    return missing_shards(cache_dir, job.key, n_rows=len(job.items))


def _n_rows(shards: Sequence[Sequence[int]]) -> int:
    return sum(stop - start for start, stop in shards)


def _own_job(piece: Mapping[str, Any], known: Mapping[tuple[str, str], Job]) -> Job:
    """The job that a piece belongs to, as this process sees it."""
    job = known.get((piece["encoder"], piece["part"]))
    if job is None or job.key.digest != piece["digest"]:
        raise ValueError(
            f"this process sees other weights or data for {piece['encoder']!r} ({piece['part']}) than the first one; "
            "all machines need the same zoo files, weights and data"
        )
    return job if piece["some"] is None else job._replace(some=np.array(piece["some"], dtype=np.int64))


class _Lazy:
    """An encoder that is built when its first row is asked for, and how fast it was."""

    def __init__(self, spec: EncoderSpec, cache_dir: Path, *, autocast: bool, jobs: Sequence[Job]):
        self.spec, self.cache_dir, self.autocast, self.jobs = spec, cache_dir, autocast, list(jobs)
        self.encoder: Encoder | None = None
        self.n_rows, self.seconds = 0, 0.0
        self.batch_size: int | None = None  # where memory did not hold the usual one

    @property
    def notes(self) -> list[str]:
        """What is worth telling of how it was embedded."""
        notes, name = list[str](), self.spec.name
        if self.batch_size is not None:
            notes.append(f"{name} embeds {self.batch_size} at a time: memory did not hold more of them at once")
        if self.encoder is not None:  # torch is not imported for rows of the cache
            from hyperalign.embed.encoders import stays_here

            if stays_here(self.encoder):
                notes.append(f"{name} embeds in one process: others that were to help failed or gave no answer")
        return notes

    def embedder(
        self, job: Job, tally: "_Tally"
    ) -> tuple[Callable[[int, int], Embedded], Callable[[NDArray[np.int64]], Embedded]]:
        """`embed(start, stop)` and `embed_some(items)` over the items of a job."""

        def embed(start: int, stop: int) -> Embedded:
            if job.some is None and self.spec.modality == "image" and is_streamed(job.items):
                return self._embed_passing(job, start, stop, tally)
            return self._embed(job.items, start, stop, tally)

        def embed_some(items: NDArray[np.int64]) -> Embedded:
            image = self.spec.modality == "image"
            chosen = choose(job.items, items) if image else [job.items[index] for index in items.tolist()]
            rows, bad = self._embed(chosen, 0, len(items), tally)
            return rows, [(int(items[index]), why) for index, why in bad]

        return embed, embed_some

    def _embed_passing(self, job: Job, start: int, stop: int, tally: "_Tally") -> Embedded:
        """Pictures of a stream, and with them those of later parts that lie between: the stream is read once.

        What belongs to another part is kept there as a sample is.
        """
        own, n_all = streamed_places(job.items)
        low, high = 0 if start == 0 else int(own[start]), n_all if stop == len(own) else int(own[stop])
        later = self.jobs[[one.key for one in self.jobs].index(job.key) + 1 :]
        beside = [(other, streamed_places(other.items)[0]) for other in later if is_beside(other.items, job.items)]
        between = [np.flatnonzero((places >= low) & (places < high)) for _, places in beside]
        places = [own[start:stop], *(where[index] for (_, where), index in zip(beside, between, strict=True))]
        order = np.argsort(np.concatenate(places), kind="stable")
        pictures = at_places(job.items, np.concatenate(places)[order])
        found, bad = self._embed(pictures, 0, len(order), tally)
        rows, reasons = np.empty_like(found), {int(order[index]): why for index, why in bad}
        rows[order] = found
        first = stop - start
        for (other, _), index in zip(beside, between, strict=True):
            if len(index):
                self._keep_beside(other, index, rows[first : first + len(index)], reasons, first)
            first += len(index)
        return rows[: stop - start], [(start + at, why) for at, why in reasons.items() if at < stop - start]

    def _keep_beside(
        self, job: Job, items: NDArray[np.int64], rows: NDArray[Any], reasons: Mapping[int, str], first: int
    ) -> None:
        def embed_some(missing: NDArray[np.int64]) -> Embedded:
            at = np.searchsorted(items, missing)
            return rows[at], [(int(items[k]), reasons[first + k]) for k in at.tolist() if first + k in reasons]

        fill_some(self.cache_dir, job.key, n_rows=len(job.items), items=items, embed_some=embed_some)

    def build(self) -> "Encoder":
        """The encoder, built if it was not yet."""
        from hyperalign.embed.encoders import load_encoder

        if self.encoder is None:
            self.encoder = load_encoder(pin(self.spec, memory=self.cache_dir), autocast=self.autocast)
        return self.encoder

    def _embed(self, items: Any, start: int, stop: int, tally: "_Tally") -> Embedded:
        from hyperalign.embed.encoders import BATCH_SIZE, embed_captions, embed_pictures, stays_here

        if self.encoder is None:
            tally.embedded(self.spec.name, 0)
        encoder = self.build()
        begin, bad = time.perf_counter(), list[tuple[int, str]]()

        def tell(done: int) -> None:
            tally.alone = stays_here(encoder)
            if start + done < stop:  # whoever stores the rows tells of the last ones, when they are stored
                tally.embedded(self.spec.name, start + done)

        def shrunk(size: int) -> None:
            self.batch_size = tally.size = size

        size = self.batch_size or BATCH_SIZE
        if self.spec.modality == "image":
            rows, bad = embed_pictures(encoder, items, start, stop, batch_size=size, tell=tell, shrunk=shrunk)
        else:
            rows = embed_captions(encoder, items[start:stop], batch_size=size, tell=tell, shrunk=shrunk)
        self.n_rows += len(rows)
        self.seconds += time.perf_counter() - begin
        return rows, bad


class _Tally:
    """Progress of one encoder over all that it must embed, part after part."""

    def __init__(self, progress: Progress, total: int):
        self.progress, self.total = progress, total
        self.before = 0  # rows of the parts that are finished
        self.size: int | None = None  # at a time, where memory did not hold more
        self.alone = False  # without the processes that were to help

    def embedded(self, name: str, done: int) -> None:
        """So many rows of this part are embedded."""
        self.progress(self._stage(name), self.before + done, self.total)

    def stored(self, stage: str, done: int, of_part: int) -> None:
        """The same from who stores them, and who may be waiting for another process that does."""
        name, _, other = stage.partition(", ")
        waits = " (another process)" if "another" in other else ""
        self.progress(f"{self._stage(name)}{waits}", min(self.before + done, self.total), self.total)

    def _stage(self, name: str) -> str:
        """Who embeds, and why it goes slower than it might."""
        size = "" if self.size is None else f", {self.size} at a time for want of memory"
        return f"embedding by {name}{size}{', in one process since others failed' if self.alone else ''}"


def _remember(lazy: _Lazy, jobs: Sequence[Job], cache_dir: Path, worked: _Worked) -> None:
    """What can only be learned while an encoder is built: its speed, and the captions that its tokenizer cuts.

    Where several processes have embedded, the first one learns it alone, so that nobody disturbs the clock.
    """
    spec = lazy.spec
    about, seconds = f"rate of {spec.name}", lazy.seconds + worked.embedding
    if seconds:
        rate = (lazy.n_rows + worked.n_rows) / seconds
        keep(cache_dir, about, {**recall(cache_dir, about), this_machine(spec): rate})
    if spec.modality == "image" and recall_latency(spec, cache_dir) is None:
        remember_latency(spec, cache_dir, lazy.build())
    if spec.modality == "text" and all(job.some is None for job in jobs):
        encoder = lazy.build()
        cut = {job.part: encoder.n_cut(job.items) for job in jobs}
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
    if not n_rows:
        return Line("embedding", "", what, flops)
    return Line("embedding", "", what, flops, seconds, peak_bytes(with_children=True))
