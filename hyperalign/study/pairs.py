"""A study over pairs: every trial is a pair of encoders, for zoos too large to embed.

Nothing is embedded but what a trial needs, and where trials can be ended early samples come first: a pair is judged on
growing samples as promotion judges it, and only one that is worth it is embedded whole. Limits are constraints of the
study: at most 0 is within them. Pairs that declared facts put beyond a limit are never proposed, for that costs no
trial to know; a latency is measured before anything is embedded.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState

from hyperalign.align.grid import Grid
from hyperalign.candidates import Candidates, find_candidates, recall_latency, remember_latency
from hyperalign.embed.data import Dataset, take
from hyperalign.embed.zoo import EncoderSpec, Limits, Range
from hyperalign.grids import Prepared, open_grid
from hyperalign.ladder import PROMOTION, Items
from hyperalign.ledger import SEARCH_STAGES, Line
from hyperalign.pipeline import open_asked_data
from hyperalign.prepare import Job, embedding_jobs, fill_cache
from hyperalign.promote import Samples, draw_samples, judge, narrow, sampled
from hyperalign.request import SearchConfig
from hyperalign.solve import Progress, Workbench, solve
from hyperalign.study.asked import StudyConfig
from hyperalign.study.samplers import FreshSampler, make_sampler
from hyperalign.study.seats import is_gone
from hyperalign.study.task import Outcome, Task, book

__all__ = ["IMAGE", "TEXT", "Pairs", "draw_trial_samples", "excesses", "open_pairs", "pairs_task", "untried"]

IMAGE, TEXT = "image_encoder", "text_encoder"
_PARTS = ("train", "val")  # a study looks at no test item
_GROWTH = 4  # of the samples: a trial has few of them
_SAMPLES = replace(PROMOTION, growth=_GROWTH)


@dataclass(frozen=True, kw_only=True, eq=False)
class Pairs:
    """What trials over pairs work on.

    Attributes:
        asked: What the study is asked for.
        config: Encoders, data and method.
        candidates: All encoders, and the pairs within the limits that are known without measuring.
        dataset: Pictures and captions.
        samples: What a trial embeds first; None where no trial is ended early.
        cache_dir: Where embeddings are kept.
        progress: Told `(stage, done, total)`.
    """

    asked: StudyConfig
    config: SearchConfig
    candidates: Candidates
    dataset: Dataset
    samples: Samples | None
    cache_dir: Path
    progress: Progress


def open_pairs(asked: StudyConfig, config: SearchConfig, *, cache_dir: Path, progress: Progress) -> Pairs:
    """Find encoders and data; nothing is embedded.

    Raises:
        ValueError: If the configuration is one that pairs cannot be judged by, one by one.
    """
    if config.task != "retrieval":
        raise ValueError(f"a study over pairs scores retrieval, got task {config.task!r}; leave --task out")
    limits = replace(config.limits, latency_ms=None)
    candidates = find_candidates(config.zoo, limits, cache_dir=cache_dir, progress=progress)
    dataset, _ = open_asked_data(config, cache_dir, progress)
    owners = [dataset.splits[name].owner for name in _PARTS]
    samples = None if asked.pruning == "none" else draw_trial_samples(*owners, seed=config.seed)
    return Pairs(
        asked=asked,
        config=config,
        candidates=candidates,
        dataset=dataset,
        samples=samples,
        cache_dir=cache_dir,
        progress=progress,
    )


def draw_trial_samples(train: NDArray[np.int64], val: NDArray[np.int64], *, seed: int) -> Samples:
    """The pictures that trials embed before they embed all.

    Args:
        train: (n_captions,) owner of each training caption.
        val: The same for validation.
        seed: Of their order.
    """
    return draw_samples(train, val, seed=seed, config=_SAMPLES)


def pairs_task(found: Pairs) -> Task:
    """Trials that are pairs; their score is that of the pair on validation."""
    names = [(pair.image.name, pair.text.name) for pair in found.candidates.pairs]
    space = {
        IMAGE: CategoricalDistribution([spec.name for spec in found.candidates.images]),
        TEXT: CategoricalDistribution([spec.name for spec in found.candidates.texts]),
    }
    return Task(
        choose=partial(_choose, space),
        judge=partial(_judge, found),
        sampler=partial(_sampler, found, space, names),
        fits=lambda params: (params.get(IMAGE), params.get(TEXT)) in names,
        n_possible=len(names),
    )


def excesses(image: EncoderSpec, text: EncoderSpec, limits: Limits, latency: float | None) -> dict[str, float]:
    """How far a pair is beyond each limit, as a share of the limit; at most 0 is within it.

    Args:
        image: The image encoder, facts known.
        text: The text encoder, facts known.
        limits: What it should keep to.
        latency: Milliseconds of one picture, where they are known.
    """
    both = None if image.n_params is None or text.n_params is None else image.n_params + text.n_params
    found = {
        "image parameters": _excess(image.n_params, limits.image_params),
        "text parameters": _excess(text.n_params, limits.text_params),
        "parameters of both": _excess(both, limits.pair_params),
        "GFLOP of a picture": _excess(image.gflops, limits.gflops),
        "ms of a picture": _excess(latency, limits.latency_ms),
        "image width": _excess(image.embed_dim, limits.dim),
    }
    if limits.licenses:
        allowed = {name.lower() for name in limits.licenses}
        found["licences"] = float(sum((spec.license or "").lower() not in allowed for spec in (image, text)))
    return {name: value for name, value in found.items() if value is not None}


def _excess(value: float | None, bound: Range | None) -> float | None:
    if bound is None or value is None:
        return None
    over = -1.0 if bound.high is None else value / bound.high - 1
    under = -1.0 if bound.low is None else 1 - value / bound.low
    return max(over, under)


def _choose(space: Mapping[str, CategoricalDistribution], trial: optuna.Trial) -> dict[str, Any]:
    return {name: trial.suggest_categorical(name, choices.choices) for name, choices in space.items()}


def _sampler(
    found: Pairs, space: Mapping[str, CategoricalDistribution], names: Sequence[tuple[str, str]], seat: int
) -> FreshSampler:
    base = make_sampler(found.asked, found.config.seed, seat, deterministic=True)
    return FreshSampler(base, space, partial(untried, names), found.config.seed + seat)


def untried(names: Sequence[tuple[str, str]], study: optuna.Study, number: int) -> set[tuple[Any, ...]]:
    """The pairs that no other trial has had, has, or waits with."""
    taken = set[tuple[Any, ...]]()
    for trial in study.get_trials(deepcopy=False):
        if trial.number != number and not is_gone(trial):
            params = trial.system_attrs.get("fixed_params") if trial.state == TrialState.WAITING else trial.params
            taken.add(((params or {}).get(IMAGE), (params or {}).get(TEXT)))
    return set(names) - taken


def _judge(found: Pairs, trial: optuna.Trial, params: Mapping[str, Any]) -> Outcome:
    """Samples first, where there are any; then everything, and the method that was asked for."""
    chosen = narrow(found.candidates, [_index(found.candidates, params)])
    image, text = chosen.images[0], chosen.texts[0]
    trial.set_user_attr("setting", f"{image.name}+{text.name}")
    facts = {"image parameters": image.n_params, "text parameters": text.n_params, "GFLOP of a picture": image.gflops}
    book(trial, {name: value for name, value in facts.items() if value is not None})
    if not _within(found, trial, image, text):
        book(trial, {"embedding / TFLOP": 0.0, "left at": "a limit, before anything was embedded"})
        return Outcome(_values(found, chosen, 0.0), pruned=True)
    lines: list[Line] = []
    jobs = embedding_jobs(chosen, found.dataset, None, cache_dir=found.cache_dir, autocast=found.config.autocast)
    jobs = [job for job in jobs if job.part in _PARTS]
    for items in found.samples.items if found.samples else ():
        score = _judge_sample(found, chosen, jobs, items, lines)
        trial.report(score, step=items.n_train)
        if trial.should_prune():
            book(trial, {"score / %": score, "left at": f"{items.n_train} + {items.n_val} pictures"})
            return _account(found, trial, chosen, lines, score, pruned=True)
    score = _judge_whole(found, chosen, jobs, lines)
    return _account(found, trial, chosen, lines, score, pruned=False)


def _index(candidates: Candidates, params: Mapping[str, Any]) -> tuple[int, int]:
    names = ([spec.name for spec in side] for side in (candidates.images, candidates.texts))
    images, texts = names
    return images.index(params[IMAGE]), texts.index(params[TEXT])


def _within(found: Pairs, trial: optuna.Trial, image: EncoderSpec, text: EncoderSpec) -> bool:
    """Whether a pair keeps to the limits, each of them a constraint of the trial."""
    latency = None
    if found.config.limits.latency_ms is not None and image.loader != "rows":
        latency = recall_latency(image, found.cache_dir) or remember_latency(image, found.cache_dir)
        book(trial, {"latency / ms": latency})
    found_excesses = excesses(image, text, found.config.limits, latency)
    for name, value in found_excesses.items():
        trial.set_constraint(name, value)
    return all(value <= 0 for value in found_excesses.values())


def _judge_sample(found: Pairs, chosen: Candidates, jobs: Sequence[Job], items: Items, lines: list[Line]) -> float:
    """The score of a pair on a sample of validation, its connector made in closed form on a sample."""
    assert found.samples is not None, "a trial that may be ended early has samples"
    splits = [found.dataset.splits[name] for name in _PARTS]
    wanted = list(zip(splits, found.samples.pictures(items), strict=True))
    own = [job for split, pictures in wanted for job in sampled(jobs, chosen, split, pictures)]
    entries, booked, _ = fill_cache(
        own, cache_dir=found.cache_dir, progress=found.progress, autocast=found.config.autocast
    )
    grids = [
        open_grid(chosen, take(split, pictures), entries, [], strict=found.config.strict, of=found.dataset.name)
        for split, pictures in wanted
    ]
    judged = judge(grids[0], grids[1], chosen.pair_indices(), found.config.recipe().canonical)
    lines += booked
    lines.append(Line("set-up", "sample", "", judged.setup_flops, judged.setup_seconds))
    lines.append(Line("validation", "sample", "", judged.scoring_flops, judged.scoring_seconds))
    hits, trials = (part.sum(1, dtype=np.float64) for part in judged.contributions)
    return float(100 * (hits / trials[:, None]).mean())


def _judge_whole(found: Pairs, chosen: Candidates, jobs: Sequence[Job], lines: list[Line]) -> float:
    """The score of a pair on all of validation, by the method that was asked for."""
    entries, booked, _ = fill_cache(
        jobs, cache_dir=found.cache_dir, progress=found.progress, autocast=found.config.autocast
    )
    train, val = (
        open_grid(chosen, found.dataset.splits[name], entries, [], strict=found.config.strict, of=found.dataset.name)
        for name in _PARTS
    )
    lines += booked
    with tempfile.TemporaryDirectory() as folder:
        bench = Workbench(
            Prepared(train=train, val=val, test=_nothing_of(val), labels=None, notes=[]),
            chosen.pair_indices(),
            found.config.recipe(),
            run=Path(folder),
            task="retrieval",
            progress=lambda stage, done, total: None,
            should_stop=lambda: False,
        )
        solved = solve(found.config.answering(), bench)
    lines += solved.lines
    return float(solved.validation[0])


def _nothing_of(grid: Grid) -> Grid:
    """The same encoders on no items: nothing of a study can look at test."""
    return replace(
        grid,
        images=tuple(rows[:0] for rows in grid.images),
        texts=tuple(rows[:0] for rows in grid.texts),
        owner=grid.owner[:0],
        image_ok=grid.image_ok[:, :0],
        text_ok=grid.text_ok[:, :0],
    )


def _account(
    found: Pairs, trial: optuna.Trial, chosen: Candidates, lines: Sequence[Line], score: float, *, pruned: bool
) -> Outcome:
    """The score and what it cost, noted with their units."""
    embedding, search = (
        sum(line.flops for line in lines if line.stage in stages) for stages in (("embedding",), SEARCH_STAGES)
    )
    book(
        trial,
        {
            "score / %": score,
            "embedding / TFLOP": embedding / 1e12,
            "embedding / s": sum(line.seconds for line in lines if line.stage == "embedding"),
            "search / TFLOP": search / 1e12,
            "spent / TFLOP": (embedding + search) / 1e12,
        },
    )
    return Outcome(_values(found, chosen, score), pruned=pruned)


def _values(found: Pairs, chosen: Candidates, score: float) -> tuple[float, ...]:
    cost = (chosen.images[0].gflops or 0.0) + (chosen.texts[0].gflops or 0.0)
    return (score, cost)[: len(found.asked.objectives)]
