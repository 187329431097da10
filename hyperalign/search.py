"""The search: from what was asked to a run on disk, in the order in which things happen.

Rows are embedded once, every method is solved on them, validation chooses, the test items say how good the choice
is, and the ledger says what it cost beside what the baseline's grid would have cost.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import pandas as pd

from hyperalign.align.baseline import APE, APE_BOTH, ape_flops
from hyperalign.align.canonical import CanonicalConfig
from hyperalign.align.residual import RESIDUAL
from hyperalign.align.sliced import SLICED
from hyperalign.align.train import TrainConfig
from hyperalign.board import Tested, compare, evaluate, score_without_training
from hyperalign.embed.data import Dataset, LabelSet
from hyperalign.embed.zoo import Limits
from hyperalign.ledger import Line, search_flops, similarity_flops
from hyperalign.machine import measure_matmul, peak_bytes
from hyperalign.prepare import (
    Candidates,
    Job,
    Prepared,
    Say,
    embedding_jobs,
    fill_cache,
    find_candidates,
    note_near_duplicates,
    open_data,
    open_grids,
    recalled_latency,
)
from hyperalign.rank.ranking import answer
from hyperalign.record import RatioRecord, Result
from hyperalign.run import create_run, finish_run, log_event, resume_run, write_tensors
from hyperalign.scoring import scoring_flops
from hyperalign.solutions import pack, restrict
from hyperalign.solve import Method, Recipe, Solved, Workbench, solve, verify

__all__ = ["METHODS", "SearchConfig", "embed", "search"]

Progress = Callable[[str, int, int], None]

METHODS = ("ape", "closed-form", "hypernet", "hypernet-sliced")
_ANSWERS = ("hypernet", "hypernet-sliced", "closed-form", "ape")  # whose order is the answer, the first that was run
_KEPT = 10  # connectors of the first pairs go into the run folder


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchConfig:
    """What a search is asked for; with the data it determines the table.

    Attributes:
        zoo: Names of shipped zoos or paths of zoo files.
        data: Where pictures and captions come from.
        limits: What encoders must keep to.
        methods: Of `METHODS`; all stand in one table.
        decoder: "residual" or "sliced": which hypernetwork the word `hypernet` means.
        sides: Sides of the baseline's grid: "text", "both", or both words with a comma.
        task: "retrieval" or "zero-shot": what is scored.
        labels: Label set for zero-shot.
        verify: First pairs that are trained by the baseline too; None is 1 on the embedded zoo and 0 elsewhere.
        baseline_seeds: Seeds of the baseline's grid, where it is run; two or more give the noise ceiling.
        scores: Whether training-free scores are computed beside.
        seed: Of everything that is drawn.
        limit: At most so many pictures of each split.
        max_minutes: Training stops after so long; what is finished is ranked.
        strict: Stop at a picture that cannot be read.
        autocast: Embed in bfloat16.
        train: Fields of `TrainConfig` for the hypernetwork that differ from its defaults.
        baseline: Fields of `TrainConfig` for the text-sided baseline that differ from its defaults.
        baseline_both: The same for the baseline between canonical coordinates.
        canonical: Fields of `CanonicalConfig` that differ from the defaults.
    """

    zoo: tuple[str, ...] = ("embedded",)
    data: str = "scenes"
    limits: Limits = field(default_factory=Limits)
    methods: tuple[str, ...] = ("hypernet",)
    decoder: str = "residual"
    sides: str = "text"
    task: str = "retrieval"
    labels: str | None = None
    verify: int | None = None
    baseline_seeds: int = 2
    scores: bool = True
    seed: int = 0
    limit: int | None = None
    max_minutes: float | None = None
    strict: bool = False
    autocast: bool = False
    train: Mapping[str, Any] = field(default_factory=dict)
    baseline: Mapping[str, Any] = field(default_factory=dict)
    baseline_both: Mapping[str, Any] = field(default_factory=dict)
    canonical: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what no search could do."""
        for name in self.methods:
            if name not in METHODS:
                raise ValueError(f"a method is one of {', '.join(METHODS)}, got {name!r}")
        if not self.methods:
            raise ValueError(f"a search needs a method: {', '.join(METHODS)}")
        for what, value, known in (
            ("decoder", self.decoder, ("residual", "sliced")),
            ("task", self.task, ("retrieval", "zero-shot")),
            *(("sides", side, ("text", "both")) for side in self.all_sides()),
        ):
            if value not in known:
                raise ValueError(f"{what} must be {' or '.join(known)}, got {value!r}")
        if self.baseline_seeds < 1:
            raise ValueError(f"baseline_seeds must be at least 1, got {self.baseline_seeds}")
        if self.verify is not None and self.verify < 0:
            raise ValueError(f"verify must be at least 0 pairs, got {self.verify}")
        self.recipe()

    def all_sides(self) -> list[str]:
        """Sides of the baseline."""
        return [side.strip() for side in self.sides.split(",")]

    def recipe(self) -> Recipe:
        """How each method is trained, defaults and what was asked put together."""
        return Recipe(
            canonical=replace(CanonicalConfig(), **_known(CanonicalConfig, self.canonical, "canonical")),
            residual=replace(RESIDUAL, **_training(self.train, "train")),
            sliced=replace(SLICED, **_training(self.train, "train")),
            ape=replace(APE, **_training(self.baseline, "baseline")),
            ape_both=replace(APE_BOTH, **_training(self.baseline_both, "baseline_both")),
        )

    def plan_methods(self) -> list[Method]:
        """The methods in the order in which they run, cheap ones first."""
        names = ["hypernet-sliced" if n == "hypernet" and self.decoder == "sliced" else n for n in self.methods]
        wanted = []
        if "closed-form" in names:
            wanted += [Method("closed-form", sides, self.seed) for sides in ("both", "text")]
        if "hypernet" in names:
            wanted.append(Method("hypernet", "both", self.seed))
        if "hypernet-sliced" in names:
            wanted.append(Method("hypernet-sliced", "text", self.seed))
        if "ape" in names:
            seeds = range(self.seed, self.seed + self.baseline_seeds)
            wanted += [Method("ape", sides, seed) for sides in self.all_sides() for seed in seeds]
        return wanted


def search(
    config: SearchConfig,
    *,
    cache_dir: Path,
    out: Path,
    resume: Path | None = None,
    progress: Progress,
    say: Say,
) -> Path:
    """Rank every pair within the limits and write the run.

    Args:
        config: What is asked.
        cache_dir: Where embeddings are kept.
        out: Where runs are kept.
        resume: Folder of an unfinished run of the same configuration.
        progress: Told `(stage, done, total)`.
        say: Told sentences meanwhile.

    Returns:
        Folder of the finished run.
    """
    begin = time.perf_counter()
    candidates, dataset, labels, jobs = _ask(config, cache_dir, progress)
    for sentence in candidates.counts:
        say(sentence)
    entries, lines, notes = fill_cache(jobs, cache_dir=cache_dir, progress=progress, say=say, autocast=config.autocast)
    candidates = replace(candidates, latencies=_latencies(candidates, cache_dir))
    prepared = open_grids(candidates, dataset, labels, entries, strict=config.strict)
    notes += prepared.notes + note_near_duplicates(dataset, cache_dir=cache_dir, progress=progress)

    run = _open_run(config, out, resume)
    deadline = None if config.max_minutes is None else begin + 60 * config.max_minutes
    bench = Workbench(
        prepared,
        candidates.pair_indices(),
        config.recipe(),
        run=run,
        task=config.task,
        progress=progress,
        should_stop=lambda: deadline is not None and time.perf_counter() > deadline,
    )
    solved = [one for method in config.plan_methods() if (one := solve(method, bench)).solution.pairs]
    if not solved:
        raise ValueError(f"no method finished a pair within {config.max_minutes} minutes; give it more")
    best = min(solved, key=lambda one: _ANSWERS.index(one.method.name))
    checked = _verify(config, best, bench)
    lines += [line for one in (*solved, *checked) for line in one.lines]

    tested, test_lines = _test([*solved, *checked], prepared, candidates, config, progress)
    lines += test_lines
    _write_tensors(run, best, tested, prepared, candidates)
    main = next(one for one in tested if one.solved is best)
    result: Result = {
        "seeds": sorted({one.method.seed for one in solved}),
        "wall_seconds": round(time.perf_counter() - begin, 1),
        "data": _data_record(dataset, labels, prepared),
        "encoders": _encoder_records(candidates, jobs),
        "method": best.method.name,
        "counts": list(candidates.counts),
        "answer": [answer(main.table), *_verdict(main, [one for one in tested if one.solved in checked])],
        "notes": _unfinished(solved, bench) + notes,
        "agreement": compare(tested, n_pairs=len(candidates.pairs), seed=config.seed),
        "ratios": _ratios(best, lines, prepared, bench),
        "roofline": {"flops_per_second": measure_matmul(size=1024)},
    }
    table = pd.concat([one.table for one in tested], ignore_index=True)
    return finish_run(run, result, leaderboard=table, ledger=lines).path


def embed(config: SearchConfig, *, cache_dir: Path, progress: Progress, say: Say) -> None:
    """Fill the cache for a search, and nothing more."""
    candidates, dataset, labels, jobs = _ask(config, cache_dir, progress)
    for sentence in candidates.counts:
        say(sentence)
    entries, _, notes = fill_cache(jobs, cache_dir=cache_dir, progress=progress, say=say, autocast=config.autocast)
    for note in notes + open_grids(candidates, dataset, labels, entries, strict=config.strict).notes:
        say(note)


def _ask(
    config: SearchConfig, cache_dir: Path, progress: Progress
) -> tuple[Candidates, Dataset, LabelSet | None, list[Job]]:
    """Encoders, data, and what must be embedded; the mistakes of a user are found here, before anything is computed."""
    candidates = find_candidates(config.zoo, config.limits, cache_dir=cache_dir, progress=progress)
    dataset, labels = open_data(
        config.data,
        strict=config.strict,
        seed=config.seed,
        limit=config.limit,
        labels=config.labels,
        task=config.task,
        cache_dir=cache_dir,
        progress=progress,
    )
    return (
        candidates,
        dataset,
        labels,
        embedding_jobs(candidates, dataset, labels, cache_dir=cache_dir, autocast=config.autocast),
    )


def _open_run(config: SearchConfig, out: Path, resume: Path | None) -> Path:
    if resume is not None:
        resume_run(resume)
        return resume
    return create_run(out, label=Path(config.data).stem or config.data, configuration=asdict(config))


def _latencies(candidates: Candidates, cache_dir: Path) -> dict[str, float]:
    found = {spec.name: recalled_latency(spec, cache_dir) for spec in candidates.images}
    return {name: ms for name, ms in found.items() if ms is not None}


def _verify(config: SearchConfig, best: Solved, bench: Workbench) -> list[Solved]:
    """The first pairs by the baseline, unless its grid was run anyway."""
    k = config.verify if config.verify is not None else int(config.zoo == ("embedded",))
    if k == 0 or "ape" in config.methods:
        return []
    order = (-best.validation).argsort(kind="stable")[:k]
    checked = verify([best.solution.pairs[n] for n in order], bench, config.seed)
    return [checked] if checked.solution.pairs else []


def _test(
    solved: Sequence[Solved], prepared: Prepared, candidates: Candidates, config: SearchConfig, progress: Progress
) -> tuple[list[Tested], list[Line]]:
    """Every method on the test items, with what that cost."""
    lines, free = [], None
    if config.scores:
        start = time.perf_counter()
        free, flops = score_without_training(prepared.train)
        seconds = time.perf_counter() - start
        lines.append(Line("test evaluation", "", "training-free scores", flops, seconds, peak_bytes()))
    tested = []
    for done, one in enumerate(solved, start=1):
        start = time.perf_counter()
        tested.append(evaluate(one, prepared, candidates, task=config.task, free=free, seed=config.seed))
        seconds, flops = time.perf_counter() - start, scoring_flops(one.solution, prepared.test)
        lines.append(Line("test evaluation", one.method.label, "all pairs", flops, seconds, peak_bytes()))
        progress("test evaluation", done, len(solved))
    return tested, lines


def _write_tensors(
    run: Path, best: Solved, tested: Sequence[Tested], prepared: Prepared, candidates: Candidates
) -> None:
    """Connectors of the first pairs, and the hits that intervals and ranks are made from."""
    first = [best.solution.pairs[n] for n in (-best.validation).argsort(kind="stable")[:_KEPT]]
    tensors, record = pack(restrict(best.solution, first))
    names = {
        "images": [spec.name for spec in candidates.images],
        "texts": [spec.name for spec in candidates.texts],
    }
    write_tensors(run / "connectors.safetensors", tensors)
    log_event(run, "connectors", solution={**record, "fits": []}, **names)
    hits = {name: array for one in tested for name, array in one.hits.items()}
    write_tensors(run / "hits.safetensors", {**hits, "owner": prepared.test.owner})


def _data_record(dataset: Dataset, labels: LabelSet | None, prepared: Prepared) -> dict[str, Any]:
    splits = {
        name: {
            "n_images": grid.n_images,
            "n_captions": grid.n_captions,
            "image_digest": dataset.splits[name].image_digest,
            "text_digest": dataset.splits[name].text_digest,
        }
        for name, grid in (("train", prepared.train), ("val", prepared.val), ("test", prepared.test))
    }
    label_set = None if labels is None else {"name": labels.name, "digest": labels.image_digest}
    return {"name": dataset.name, "splits": splits, "label_set": label_set}


def _encoder_records(candidates: Candidates, jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """Facts and identities, without where the files lie."""
    keys = {job.spec.name: job.key for job in jobs}
    records = []
    for spec in (*candidates.images, *candidates.texts):
        facts = {f.name: getattr(spec, f.name) for f in fields(spec) if f.name != "folder"}
        key = keys[spec.name]
        records.append({**facts, "kwargs": dict(spec.kwargs), "weights": key.weights, "preprocess": key.preprocess})
    return records


def _verdict(main: Tested, checked: Sequence[Tested]) -> list[str]:
    """The baseline beside the pairs that it verified."""
    return [
        f"Verified by ape, trained for {row.image_encoder}+{row.text_encoder} alone: {row.score:.1f} "
        f"(95 % interval {row.score_low:.1f} to {row.score_high:.1f}); {main.solved.method.name} gave "
        f"{_score_of(main.table, row.image_encoder, row.text_encoder):.1f}."
        for one in checked
        for row in one.table.itertuples()
    ]


def _score_of(table: pd.DataFrame, image: Any, text: Any) -> float:
    return float(table.loc[(table["image_encoder"] == image) & (table["text_encoder"] == text), "score"].iloc[0])


def _unfinished(solved: Sequence[Solved], bench: Workbench) -> list[str]:
    return [
        f"{one.method.label}: {len(one.solution.pairs)} of {len(bench.pairs)} pairs were finished in the time given"
        for one in solved
        if len(one.solution.pairs) < len(bench.pairs)
    ]


def _ratios(best: Solved, lines: Sequence[Line], prepared: Prepared, bench: Workbench) -> list[RatioRecord]:
    """The baseline grid's computed cost over this search's, at matched batch and at each one's own setting."""
    if best.method.name == "ape":
        return []
    cost = search_flops(lines, best.method.label)
    own = bench.recipe.sliced if best.method.name == "hypernet-sliced" else bench.recipe.residual
    trained = best.method.name != "closed-form"
    method = (
        f"{best.method.label}, {_training_words(own) if trained else 'no training'}, set-up and validation included"
    )
    matched = replace(bench.recipe.ape, batch_size=own.batch_size)
    records: list[RatioRecord] = []
    for setting, config in ((f"matched batch {own.batch_size}", matched), ("each at its own setting", bench.recipe.ape)):
        flops = ape_flops(prepared.train, bench.pairs, config) + _baseline_validation(prepared, bench)
        words = f"ape · text, {_training_words(config)}, {len(bench.pairs)} pairs, computed, validation included"
        records.append(
            {"setting": setting, "baseline": words, "baseline_flops": flops, "method": method, "method_flops": cost}
        )
    return records


def _training_words(config: TrainConfig) -> str:
    length = f"{config.n_steps} steps" if config.n_steps is not None else f"{config.n_epochs:g} epochs"
    return f"batch {config.batch_size}, {length}"


def _baseline_validation(prepared: Prepared, bench: Workbench) -> int:
    """FLOPs of scoring the baseline's grid once on validation."""
    val = prepared.val
    widths = ((val.texts[j].shape[1], val.images[i].shape[1]) for i, j in bench.pairs)
    return sum(similarity_flops(val.n_captions, val.n_images, d_txt, d_img) for d_txt, d_img in widths)


def _training(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Fields of `TrainConfig`; a number of steps takes the place of a number of epochs, and the other way round."""
    values = _known(TrainConfig, given, where)
    if values.get("n_steps") is not None:
        values.setdefault("n_epochs", None)
    if values.get("n_epochs") is not None:
        values.setdefault("n_steps", None)
    return {name: tuple(value) if name == "betas" else value for name, value in values.items()}


def _known(cls: type, given: Mapping[str, Any], where: str) -> dict[str, Any]:
    known = {f.name for f in fields(cls)}
    for name in given:
        if name not in known:
            raise ValueError(f"unknown setting {where}.{name}; known are {', '.join(sorted(known))}")
    return dict(given)
