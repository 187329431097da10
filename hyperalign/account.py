"""What a run says of itself: its data and encoders, what the baseline says of the winners, and what it all cost.

Plain records for `result.json`; every number in them is one of the ledger or of the table.
"""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, cast

from hyperalign.align.grid import Grid, PairIndex
from hyperalign.align.train import TrainConfig
from hyperalign.board import Tested
from hyperalign.candidates import Candidates
from hyperalign.embed.data import Dataset, LabelSet
from hyperalign.forecast import forecast
from hyperalign.grids import Prepared
from hyperalign.ledger import Line, search_flops, total_flops
from hyperalign.prepare import SPLITS, Job
from hyperalign.record import RatioRecord
from hyperalign.scoring import scoring_flops
from hyperalign.solve import Method, Recipe, Solved, Workbench, pairs_in_words

__all__ = [
    "compute_ratios",
    "describe_checked",
    "describe_data",
    "describe_encoders",
    "note_left_out",
    "note_unfinished",
    "sum_up",
]

_POLISHED = "polished connector"


def describe_data(dataset: Dataset, labels: LabelSet | None, prepared: Prepared) -> dict[str, Any]:
    """Names, sizes after unreadable pictures are left out, and digests of the content."""
    grids = zip(SPLITS, (prepared.train, prepared.val, prepared.test), strict=True)
    splits = {
        name: {
            "n_images": grid.n_images,
            "n_captions": grid.n_captions,
            "image_digest": dataset.splits[name].image_digest,
            "text_digest": dataset.splits[name].text_digest,
        }
        for name, grid in grids
    }
    label_set = None if labels is None else {"name": labels.name, "digest": labels.image_digest}
    return {"name": dataset.name, "splits": splits, "label_set": label_set}


def describe_encoders(candidates: Candidates, jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """Facts and identities, without where the files lie."""
    keys = {job.spec.name: job.key for job in jobs}
    records = []
    for spec in (*candidates.images, *candidates.texts):
        facts = {f.name: getattr(spec, f.name) for f in fields(spec) if f.name != "folder"}
        key = keys[spec.name]
        own = {"revision": key.revision or None, "weights": key.weights, "preprocess": key.preprocess}
        records.append({**facts, "kwargs": dict(spec.kwargs), **own})
    return records


def describe_checked(main: Tested, checked: Sequence[Tested]) -> list[str]:
    """What first pairs reach that were trained by themselves, beside the method that answers."""
    said = []
    for one in checked:
        if one.solved.method.name == "polished":
            said.append(_describe_polished(one, main, [main, *checked]))
            continue
        for row in one.table.itertuples():
            said.append(f"Verified by ape, trained for {_name(row)} alone: {_scores(row, main)}.")
    return said


def _describe_polished(one: Tested, main: Tested, every: Sequence[Tested]) -> str:
    """The pair that comes first, by the better of its two connectors, and which of these is used."""
    rows = list(one.table.itertuples())
    row: Any = max(rows, key=lambda row: max(row.validation_score, _row_of(main, row).validation_score))
    taken, among = _taken(row, every), ""
    beginning = f"Polished, made for {_name(row)} alone:"
    if len(rows) > 1:
        beginning = f"Polished, {len(rows)} pairs by themselves; {_name(row)} validates best:"
        among = f", the best of them with probability {row.p_best:.2f}" if taken == _POLISHED else ""
    return f"{beginning} {_scores(row, main, among)}. The {taken} validates better: it is the one that is used."


def _scores(row: Any, main: Tested, among: str = "") -> str:
    interval = f"95 % interval {row.score_low:.1f} to {row.score_high:.1f}"
    return f"{row.score:.1f} ({interval}){among}; {main.solved.method.name} gave {_row_of(main, row).score:.1f}"


def _taken(row: Any, every: Sequence[Tested]) -> str:
    """Whose connector of a row's pair validates best, in words; the earlier of equals."""
    scores = {
        one.solved.method.name: float(cast(Any, other).validation_score)
        for one in every
        for other in one.table.itertuples()
        if _name(other) == _name(row)
    }
    best = max(scores, key=lambda name: scores[name])
    return _POLISHED if best == "polished" else f"connector of {best}"


def _name(row: Any) -> str:
    return f"{row.image_encoder}+{row.text_encoder}"


def note_unfinished(solved: Sequence[Solved], bench: Workbench) -> list[str]:
    """What `max_minutes` cut short."""
    notes = []
    for one in solved:
        n_pairs, n_all = len(one.solution.pairs), len(bench.pairs)
        if n_pairs < n_all:
            notes.append(f"{one.method.label}: {n_pairs} of {n_all} pairs were finished in the time given")
        elif one.stopped:
            n_steps = sum(fit.n_steps for fit in one.solution.fits)
            notes.append(f"{one.method.label}: training was stopped after {n_steps:,} steps, for the time was up")
    return notes


def note_left_out(best: Solved, checked: Sequence[Solved], *, n_verified: int, n_polished: int) -> list[str]:
    """First pairs that were to be looked at more closely, where the time was up before they were."""
    made = {one.method.name: len(one.solution.pairs) for one in checked}
    wanted = {"verified by ape": ("ape", n_verified), "polished": ("polished", n_polished)}
    notes = []
    for what, (name, n_pairs) in wanted.items():
        n_made, n_first = made.get(name, 0), min(n_pairs, len(best.solution.pairs))
        if n_made < n_first:
            which = "the first pair was" if n_first == 1 else f"{n_made} of the first {n_first} pairs were"
            notes.append(f"{which} {'not ' if n_first == 1 else ''}{what} in the time given")
    return notes


def compute_ratios(
    best: Solved, lines: Sequence[Line], recipe: Recipe, pairs: Sequence[PairIndex], train: Grid, val: Grid
) -> list[RatioRecord]:
    """The baseline grid's computed cost over this search's, at matched batch and at each one's own setting.

    Args:
        best: The method that answers.
        lines: Ledger of the search.
        recipe: How methods are trained.
        pairs: Of the whole grid.
        train: Shapes of the training rows.
        val: The same of validation.
    """
    if best.method.name == "ape":
        return []
    own = recipe.sliced if best.method.name == "hypernet-sliced" else recipe.residual
    trained = "no training" if best.method.name == "closed-form" else _training_words(own)
    if best.stopped:
        trained = f"batch {own.batch_size}, stopped after {sum(fit.n_steps for fit in best.solution.fits):,} steps"
    matched = replace(recipe.ape, batch_size=own.batch_size)
    n_pairs, search, closer = pairs_in_words(len(pairs)), search_flops(lines, best.method.label), _closer_flops(lines)
    settings = [(f"matched batch {own.batch_size}", matched, 0), ("each at its own setting", recipe.ape, 0)]
    if closer:
        settings.append((f"matched batch {own.batch_size}, first pairs polished", matched, closer))
    return [
        {
            "setting": setting,
            "baseline": f"ape · text, {_training_words(config)}, {n_pairs}, computed, validation included",
            "baseline_flops": _grid_flops(replace(recipe, ape=config), pairs, train, val),
            "method": f"{best.method.label}, {trained}, {'polishing, ' if more else ''}set-up and validation included",
            "method_flops": search + more,
        }
        for setting, config, more in settings
    ]


def _closer_flops(lines: Sequence[Line]) -> int:
    """Of polishing, its validation included: what choosing among the first pairs has cost beyond the search."""
    return sum(line.flops for line in lines if line.stage == "polishing")


def sum_up(best: Solved, lines: Sequence[Line]) -> dict[str, int]:
    """The two totals: what the search by the method that answers cost, and all that ran."""
    return {"search_flops": search_flops(lines, best.method.label), "all_flops": total_flops(lines)}


def _row_of(tested: Tested, pair: Any) -> Any:
    """The row of the same pair by another method."""
    rows = tested.table
    same = (rows["image_encoder"] == pair.image_encoder) & (rows["text_encoder"] == pair.text_encoder)
    return next(rows[same].itertuples())


def _training_words(config: TrainConfig) -> str:
    return f"batch {config.batch_size}, {config.length}"


def _grid_flops(recipe: Recipe, pairs: Sequence[PairIndex], train: Grid, val: Grid) -> int:
    """What the baseline's text-sided grid costs, from shapes: training, and scoring every pair once on validation."""
    cost = forecast(Method("ape", "text", recipe.ape.seed), train, pairs, recipe)
    return cost.train_flops + scoring_flops(cost.solution, val)
