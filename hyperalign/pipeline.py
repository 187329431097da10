"""The search: from what was asked to a run on disk, in the order in which things happen.

Rows are embedded once, every method is solved on them, validation chooses, the test items say how good the choice
is, and the ledger says what it cost beside what the baseline's grid would have cost.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hyperalign.account import (
    compute_ratios,
    describe_checked,
    describe_data,
    describe_encoders,
    note_left_out,
    note_unfinished,
    sum_up,
)
from hyperalign.align.grid import Grid
from hyperalign.align.solution import Solution
from hyperalign.board import Tested, append_left, compare, evaluate, first_pair, score_without_training
from hyperalign.candidates import Candidates, find_candidates, recall_latency
from hyperalign.ceiling import open_ceiling, score_ceiling
from hyperalign.embed.data import Dataset, LabelSet
from hyperalign.embed.locks import Claim, make_room
from hyperalign.footprint import Heights, ample_bytes, dearest, heights, lacking
from hyperalign.forecast import forecast, hollow_grid
from hyperalign.grids import Prepared, note_near_duplicates, open_grids
from hyperalign.ladder import Ladder
from hyperalign.ledger import Line
from hyperalign.machine import available_bytes, give_back, measure_matmul, peak_bytes
from hyperalign.packing import pack, pack_kept, restrict
from hyperalign.prepare import Job, embedding_jobs, fill_cache, open_data
from hyperalign.processes import ALONE, Crew
from hyperalign.promote import is_worthwhile, narrow, promote, promotion_record, saved_in_words
from hyperalign.rank.ranking import answer, reorder
from hyperalign.record import Result
from hyperalign.request import METHODS, SearchConfig, from_record
from hyperalign.run import (
    at_work_on,
    create_run,
    earlier_seconds,
    find_cut_short,
    finish_run,
    load_stage,
    log_event,
    read_log,
    read_result,
    resume_run,
    save_stage,
    write_tensors,
)
from hyperalign.scoring import scoring_flops, zero_shot_flops, zero_shot_parts
from hyperalign.solve import Solved, Workbench, pairs_in_words, polish, solve, verify
from hyperalign.together import begin_together, division_in_words, split_note, train_together

__all__ = [
    "METHODS",
    "Asked",
    "Promoted",
    "SearchConfig",
    "ask",
    "digest_inputs",
    "embed",
    "n_first",
    "open_asked_data",
    "prepare_rows",
    "score_on_test",
    "search",
    "with_latencies",
]

Progress = Callable[[str, int, int], None]
Say = Callable[[str], None]

_KEPT = 10  # connectors of each method's first pairs go into the run folder, and more of them
_KEPT_BYTES = 16 * 2**20  # while a method's are no larger than this


class Asked(NamedTuple):
    """What a configuration stands for, before anything is computed.

    Attributes:
        candidates: Encoders and pairs within the limits.
        dataset: Pictures and captions.
        labels: Label set, where one was asked for.
        jobs: Every entry of the cache that the search needs.
    """

    candidates: Candidates
    dataset: Dataset
    labels: LabelSet | None
    jobs: list[Job]


class Promoted(NamedTuple):
    """What promotion made of a search.

    Attributes:
        config: What is asked, with whether pairs could leave.
        asked: The encoders and pairs that stayed; everything where none could leave.
        ladder: Who left, and when; None where none could.
        lines: What the samples cost.
    """

    config: SearchConfig
    asked: Asked
    ladder: Ladder | None
    lines: list[Line]


def search(  # noqa: PLR0913 - what, where, and who does it and is told
    config: SearchConfig,
    *,
    cache_dir: Path,
    out: Path,
    resume: Path | None = None,
    fresh: bool = False,
    progress: Progress,
    say: Say,
    crew: Crew = ALONE,
) -> Path:
    """Rank every pair within the limits and write the run.

    Args:
        config: What is asked.
        cache_dir: Where embeddings are kept.
        out: Where runs are kept.
        resume: Folder of an unfinished run of the same configuration; None goes on with one that lies in `out` and
            that nobody is at work on, or begins anew.
        fresh: Begin anew in any case.
        progress: Told `(stage, done, total)`.
        say: Told sentences meanwhile.
        crew: Processes that do it together; this one is the first, the others `assist`.

    Returns:
        Folder of the finished run.
    """
    with ExitStack() as held:
        return _search(
            config,
            held,
            cache_dir=cache_dir,
            out=out,
            resume=resume,
            fresh=fresh,
            progress=progress,
            say=say,
            crew=crew,
        )


def _search(  # noqa: PLR0913 - as above
    config: SearchConfig,
    held: ExitStack,
    *,
    cache_dir: Path,
    out: Path,
    resume: Path | None,
    fresh: bool,
    progress: Progress,
    say: Say,
    crew: Crew,
) -> Path:
    """The search, in the order in which things happen; the run it writes is held while it does."""
    begin, spent = time.perf_counter(), 0.0
    if resume is not None:
        spent = _take_up(resume, held)
    asked = ask(config, cache_dir=cache_dir, progress=progress)
    if resume is None:
        make_room(out, "--out")
    for sentence in (*asked.candidates.counts, *division_in_words(crew.size)):
        say(sentence)
    begin_together(crew, asked.candidates, cache_dir)
    held.enter_context(Claim(cache_dir, [job.key.folder for job in asked.jobs if job.spec.loader != "rows"]))
    if resume is None and not fresh:
        resume = find_cut_short(out, asdict(config), inputs=digest_inputs(asked.jobs))
        if resume is not None:
            spent = _take_up(resume, held)
            was = from_record(read_result(resume)["configuration"])
            config = replace(was, zoo=config.zoo, data=config.data, ceiling=config.ceiling)  # the same in his own words
            say(f"going on with {resume}, which was asked for the same and cut short")
    config, staying, ladder, lines = _promote(asked, config, cache_dir, progress, crew)
    prepared, embedding = prepare_rows(staying, config, cache_dir, progress, crew)
    give_back()  # here and below: what one part has freed must not stand beside what the next one takes
    config = _fit_memory(config, staying, prepared, say)  # of a run that is gone on with too: less may be free now
    if resume is None:
        run = create_run(out, label=Path(config.data).stem or config.data, configuration=asdict(config))
        held.enter_context(at_work_on(run))
    else:
        run = resume
    _hold_to_inputs(run, asked.jobs)
    lines, prepared = _with_earlier(run, [*lines, *embedding], prepared)

    deadline = None if config.max_minutes is None else begin + 60 * config.max_minutes
    bench = Workbench(
        prepared,
        staying.candidates.pair_indices(),
        config.recipe(),
        run=run,
        task=config.task,
        progress=progress,
        should_stop=lambda: deadline is not None and time.perf_counter() > deadline,
    )
    bench.share = partial(train_together, crew, staying.candidates, deadline, bench)
    every = [solve(method, bench) for method in config.plan_methods()]
    solved = [one for one in every if one.solution.pairs]
    if not solved:
        raise ValueError(f"no pair was finished in {config.max_minutes:g} minutes; go on with more, as --max-minutes")
    answering = config.answering([one.method for one in solved])
    best = next(one for one in solved if one.method == answering)
    checked = _look_closer(config, best, bench)
    lines += [line for one in (*solved, *checked) for line in one.lines]

    candidates, everyone = (with_latencies(one.candidates, cache_dir) for one in (staying, asked))
    tested, test_lines = score_on_test([*solved, *checked], prepared, candidates, config, progress)
    tested = _reordered(tested, best)
    lines += test_lines
    ceilings = [
        score_ceiling(
            zoo,
            asked.dataset,
            cache_dir=cache_dir,
            progress=progress,
            autocast=config.autocast,
            strict=config.strict,
            seed=config.seed,
        )
        for zoo in config.ceiling
    ]
    lines += [line for one in ceilings for line in one.lines]
    _write_tensors(run, [best, *(one for one in (*solved, *checked) if one is not best)], tested, prepared, candidates)
    main = next(one for one in tested if one.solved is best)
    n_left = len(everyone.pairs) - len(candidates.pairs)
    result: Result = {
        "seeds": sorted({one.method.seed for one in solved}),
        "wall_seconds": round(spent + time.perf_counter() - begin, 1),
        "data": describe_data(asked.dataset, asked.labels, prepared),
        "encoders": describe_encoders(everyone, asked.jobs),
        "method": best.method.name,
        "counts": list(candidates.counts),
        "answer": [
            answer(main.table, n_left=n_left),
            *describe_checked(main, tested[len(solved) :]),
            *(one.sentence for one in ceilings),
        ],
        "notes": [
            *note_unfinished(every, bench),
            *note_left_out(best, checked, n_verified=config.n_verified(), n_polished=config.polish),
            *split_note(crew.size),
            *prepared.notes,
            *(note for one in ceilings for note in one.notes),
        ],
        "agreement": compare(tested, candidates, n_pairs=len(everyone.pairs), seed=config.seed),
        "ratios": compute_ratios(best, lines, bench.recipe, everyone.pair_indices(), *_shapes(asked, prepared, ladder)),
        "totals": sum_up(best, lines),
        "roofline": {"flops_per_second": measure_matmul(size=1024)},
    }
    if ladder is not None:
        promotion = promotion_record(ladder, everyone, first_pair(main.table, everyone), asked.dataset)
        result |= {"promotion": promotion, "notes": [*result["notes"], saved_in_words(promotion)]}
        tested[tested.index(main)] = replace(main, table=append_left(main.table, ladder.left(), everyone))
    tables = [*(one.table for one in tested), *(one.table for one in ceilings)]
    table = pd.concat(tables, ignore_index=True)
    return finish_run(run, result, leaderboard=table, ledger=lines).path


def embed(config: SearchConfig, *, cache_dir: Path, progress: Progress, say: Say, crew: Crew = ALONE) -> None:
    """Fill the cache for a search, and nothing more."""
    asked = ask(config, cache_dir=cache_dir, progress=progress)
    for sentence in (*asked.candidates.counts, *division_in_words(crew.size)):
        say(sentence)
    begin_together(crew, asked.candidates, cache_dir)
    for note in prepare_rows(asked, config, cache_dir, progress, crew)[0].notes:
        say(note)


def ask(config: SearchConfig, *, cache_dir: Path, progress: Progress, dry: bool = False) -> Asked:
    """Find encoders, data and what must be embedded; a user's mistakes come to light before anything is computed.

    Args:
        config: What is asked.
        cache_dir: Where embeddings are kept.
        progress: Told `(stage, done, total)`.
        dry: Measure no latency that a limit asks for, and ask no hub for the commit of weights.
    """
    candidates = find_candidates(config.zoo, config.limits, cache_dir=cache_dir, progress=progress, measure=not dry)
    dataset, labels = open_asked_data(config, cache_dir, progress)
    jobs = embedding_jobs(candidates, dataset, labels, cache_dir=cache_dir, autocast=config.autocast, ask_hub=not dry)
    for zoo in config.ceiling:
        open_ceiling(zoo, dataset, cache_dir=cache_dir, autocast=config.autocast, ask_hub=not dry)
    return Asked(candidates, dataset, labels, jobs)


def open_asked_data(config: SearchConfig, cache_dir: Path, progress: Progress) -> tuple[Dataset, LabelSet | None]:
    """The data set that a configuration names, and its label set where it names one."""
    return open_data(
        config.data,
        strict=config.strict,
        seed=config.seed,
        limit=config.limit,
        labels=config.labels,
        task=config.task,
        cache_dir=cache_dir,
        progress=progress,
    )


def _fit_memory(config: SearchConfig, asked: Asked, prepared: Prepared, say: Say) -> SearchConfig:
    """The configuration, with coordinates made again where they are needed if keeping them takes more than is free.

    What is still too much is said: a search that is killed for its memory tells nobody why.
    """
    grids, pairs, free = (
        (prepared.train, prepared.val, prepared.test),
        asked.candidates.pair_indices(),
        available_bytes(),
    )
    larger = max(prepared.val, prepared.test, key=lambda grid: grid.n_images)
    if free is None or ample_bytes(prepared.train, larger, config.recipe(), config.plan_methods()) < free:
        return config  # found out without the 70 MB that torch takes for shapes without numbers

    def parts(config: SearchConfig) -> Heights:
        recipe = config.recipe()
        made = [(method, forecast(method, prepared.train, pairs, recipe)) for method in config.plan_methods()]
        tried, polished = pairs if config.n_verified() else [], dearest(grids[0], pairs)[: config.polish]
        return heights(made, *grids, recipe, tried, polished)

    found, thrifty = parts(config), replace(config, canonical={**config.canonical, "store_bytes": 0})
    less = parts(thrifty) if lacking(found, free) else found
    if max(less.values()) < max(found.values()):
        say("coordinates are made again where they are needed, since keeping them takes more memory than is free")
        config, found = thrifty, less
    if left := lacking(found, free):
        say(f"note: {left}")
    return config


def _promote(asked: Asked, config: SearchConfig, cache_dir: Path, progress: Progress, crew: Crew) -> Promoted:
    """Who is worth embedding whole; everyone, where promotion is not wanted or would save little."""
    if config.exhaustive is None:
        given = asked.candidates, asked.dataset, asked.jobs
        config = replace(config, exhaustive=not (config.may_promote() and is_worthwhile(*given, cache_dir=cache_dir)))
    if config.exhaustive:
        return Promoted(config, asked, None, [])
    ladder, lines = promote(
        asked.candidates,
        asked.dataset,
        asked.jobs,
        config.recipe().canonical,
        label=config.answering().label,
        seed=config.seed,
        cache_dir=cache_dir,
        progress=progress,
        strict=config.strict,
        autocast=config.autocast,
        crew=crew,
    )
    candidates = narrow(asked.candidates, ladder.pairs)
    chosen = {spec.name for spec in (*candidates.images, *candidates.texts)}
    jobs = [job for job in asked.jobs if job.spec.name in chosen]
    return Promoted(config, asked._replace(candidates=candidates, jobs=jobs), ladder, lines)


def _shapes(asked: Asked, prepared: Prepared, ladder: Ladder | None) -> tuple[Grid, Grid]:
    """Training and validation grids of all pairs; only their shapes where not everyone was embedded."""
    if ladder is None:
        return prepared.train, prepared.val
    images, texts = (
        [spec.embed_dim or 0 for spec in side] for side in (asked.candidates.images, asked.candidates.texts)
    )
    train, val = (hollow_grid(images, texts, grid.owner) for grid in (prepared.train, prepared.val))
    return train, val


def prepare_rows(
    asked: Asked, config: SearchConfig, cache_dir: Path, progress: Progress, crew: Crew = ALONE
) -> tuple[Prepared, list[Line]]:
    """Rows of every encoder on the same items, and what embedding them cost.

    Args:
        asked: Encoders, data and what must be embedded.
        config: What is asked.
        cache_dir: Where embeddings are kept.
        progress: Told `(stage, done, total)`.
        crew: Processes that do it together.
    """
    entries, lines, notes = fill_cache(
        asked.jobs, cache_dir=cache_dir, progress=progress, autocast=config.autocast, crew=crew
    )
    prepared = open_grids(asked.candidates, asked.dataset, asked.labels, entries, strict=config.strict)
    notes += prepared.notes + note_near_duplicates(asked.dataset, cache_dir=cache_dir, progress=progress)
    return replace(prepared, notes=notes), lines


def digest_inputs(jobs: Sequence[Job]) -> str:
    """One digest of all that a run looks at: encoders and items, in their order."""
    return hashlib.sha256(" ".join(job.key.digest for job in jobs).encode()).hexdigest()


def _take_up(run: Path, held: ExitStack) -> float:
    """Hold an unfinished run and go on with it; the seconds that its earlier parts have taken."""
    held.enter_context(at_work_on(run))
    spent = earlier_seconds(run)
    resume_run(run)
    return spent


def _hold_to_inputs(run: Path, jobs: Sequence[Job]) -> None:
    """Note what a run looks at; a run that is resumed must look at the same.

    Raises:
        ValueError: If encoders or data have changed since the run began.
    """
    digest = digest_inputs(jobs)
    known = [line.get("digest") for line in read_log(run) if line.get("event") == "inputs"]
    if not known:
        log_event(run, "inputs", digest=digest)
    elif known[0] != digest:
        raise ValueError(
            f"the encoders or the data of {run} have changed since it began; search anew, without --resume"
        )


def _with_earlier(run: Path, lines: Sequence[Line], prepared: Prepared) -> tuple[list[Line], Prepared]:
    """Lines of the embedding, and rows with its notes, those of an earlier part of the run first."""
    kept = load_stage(run, "embedding")
    if kept is not None:
        earlier = [Line(**line) for line in kept.record["lines"]]
        again = [line if line.stage == "embedding" else line._replace(stage="failed and repeated") for line in lines]
        notes = list(dict.fromkeys([*kept.record.get("notes", []), *prepared.notes]))
        return [*earlier, *(line for line in again if line.flops or line.seconds)], replace(prepared, notes=notes)
    record = {"lines": [line._asdict() for line in lines], "notes": prepared.notes}
    save_stage(run, "embedding", tensors={}, record=record)
    return list(lines), prepared


def with_latencies(candidates: Candidates, cache_dir: Path) -> Candidates:
    """What embedding has measured meanwhile."""
    found = {spec.name: recall_latency(spec, cache_dir) for spec in candidates.images}
    return replace(candidates, latencies={name: ms for name, ms in found.items() if ms is not None})


def _look_closer(config: SearchConfig, best: Solved, bench: Workbench) -> list[Solved]:
    """The first pairs by the baseline, unless its grid was run anyway, and as good as they get."""
    order = (-best.validation).argsort(kind="stable")
    checked = []
    for look, n_pairs in ((verify, config.n_verified()), (polish, config.polish)):
        if n_pairs:
            first = sorted(order[:n_pairs].tolist())  # in the order of the grid
            checked.append(look([best.solution.pairs[n] for n in first], bench, best))
    return [one for one in checked if one.solution.pairs]


def _reordered(tested: Sequence[Tested], best: Solved) -> list[Tested]:
    """The method that answers with its first pairs in the order that polishing has given; the others as they are."""
    closer = [one.table for one in tested if one.solved.method.name == "polished"]
    return [
        replace(one, table=reorder(one.table, pd.concat(closer))) if closer and one.solved is best else one
        for one in tested
    ]


def score_on_test(
    solved: Sequence[Solved], prepared: Prepared, candidates: Candidates, config: SearchConfig, progress: Progress
) -> tuple[list[Tested], list[Line]]:
    """Every method on the test items, with what that cost."""
    lines, free = [], None
    if config.scores:
        start = time.perf_counter()
        free, flops = score_without_training(prepared.train)
        seconds = time.perf_counter() - start
        lines.append(Line("test evaluation", "", "training-free scores", flops, seconds, peak_bytes()))
        give_back()
    tested = []
    for done, one in enumerate(solved, start=1):
        start = time.perf_counter()
        tested.append(evaluate(one, prepared, candidates, task=config.task, free=free, seed=config.seed))
        seconds, flops = time.perf_counter() - start, scoring_flops(one.solution, prepared.test)
        if prepared.labels is not None:
            flops += zero_shot_flops(one.solution, prepared.labels, zero_shot_parts(prepared.labels)[1])
        what = pairs_in_words(len(one.solution.pairs))
        lines.append(Line("test evaluation", one.method.label, what, flops, seconds, peak_bytes()))
        give_back()
        progress("test evaluation, methods", done, len(solved))
    return tested, lines


def _write_tensors(
    run: Path, solved: Sequence[Solved], tested: Sequence[Tested], prepared: Prepared, candidates: Candidates
) -> None:
    """Connectors of every method's first pairs, and the hits that intervals and ranks are made from.

    Args:
        run: Folder of the run.
        solved: The method that answers, then the others; their tensors have a prefix.
        tested: The same on the test items.
        prepared: Rows.
        candidates: Encoders.
    """
    names = {
        "images": [spec.name for spec in candidates.images],
        "texts": [spec.name for spec in candidates.texts],
    }
    connectors: dict[str, NDArray[Any]] = {}
    for number, one in enumerate(solved):
        tensors, record = pack(_first(one))
        prefix = f"{one.method.stage}/" if number else ""
        connectors |= {f"{prefix}{name}": array for name, array in tensors.items()}
        facts = {"prefix": prefix.rstrip("/")} if number else {}
        whose = {"method": one.method.name, "seed": one.method.seed}
        log_event(run, "connectors", solution={**record, "fits": []}, **names, **whose, **facts)
    write_tensors(run / "connectors.safetensors", connectors)
    best = solved[0]
    kept = best.solution.kept
    if kept is not None:
        write_tensors(run / "kept.safetensors", {**pack_kept(kept), "pairs": np.array(best.solution.pairs)})
    hits = {name: array for one in tested for name, array in one.hits.items()}
    write_tensors(run / "hits.safetensors", {**hits, "owner": prepared.test.owner})


def n_first(solution: Solution) -> int:
    """Of how many of its first pairs a method's connectors are kept."""
    n_bytes = max(4 * weight.numel() for weight in solution.weights)
    return min(len(solution.pairs), max(_KEPT, _KEPT_BYTES // n_bytes))


def _first(one: Solved) -> Solution:
    """A method's connectors of its first pairs, with the coordinates of their encoders alone."""
    solution = one.solution
    order = (-one.validation).argsort(kind="stable")
    if one.method.name != "polished":  # these are few, and an adoption reads their order from what was kept
        order = order[: n_first(solution)]
    first = restrict(solution, [solution.pairs[n] for n in order])
    images, texts = ({pair[side] for pair in first.pairs} for side in (0, 1))
    return replace(
        first,
        kept=None,
        images=[side if k in images else None for k, side in enumerate(first.images)],
        texts=[side if k in texts else None for k, side in enumerate(first.texts)],
    )
