"""Every encoder left out of a search in turn and adopted into it, against a full search that had it from the start."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hyperalign.align.adoption import adopt, meet
from hyperalign.align.canonical_grid import build_canonical_grid
from hyperalign.align.grid import Grid, PairIndex
from hyperalign.align.polish import POLISH, solve_polished
from hyperalign.align.residual import solve_residual
from hyperalign.align.solution import Kept, Solution
from hyperalign.bench.opened import open_bench
from hyperalign.bench.sheet import Asked, Sheet
from hyperalign.grids import Prepared
from hyperalign.packing import restrict
from hyperalign.rank.metrics import recall
from hyperalign.scoring import first_captions, mean_score, retrieval, scoring_flops
from hyperalign.solve import Recipe

__all__ = ["measure"]

_MUST = 0.95  # share of a full search's score that an adopted encoder must have


class _Found(NamedTuple):
    """A newcomer's pairs, with what finding them cost.

    Attributes:
        scores: Test scores of its pairs in per cent.
        taken: Test score of the connector that is taken of the best of them, in per cent.
        flops: Set-up, training and validation.
        search_flops: The same of the search that it was adopted into.
        unchanged: Whether what that search left is the same to the last bit.
    """

    scores: NDArray[np.float64]
    taken: float
    flops: int
    search_flops: int
    unchanged: bool


def measure(asked: Asked) -> list[Sheet]:
    """Adopt every encoder of a zoo, each seed with searches of its own."""
    opened, recipe = open_bench(asked), asked.config.recipe()
    names = {
        "image": [spec.name for spec in opened.candidates.images],
        "text": [spec.name for spec in opened.candidates.texts],
    }
    sides = [(side, k) for side in names for k in range(len(names[side])) if len(names[side]) > 1]
    rows = []
    for seed in asked.seeds():
        full = _search(opened.prepared, recipe, seed)
        score = _scores(full, opened.prepared.test).reshape(opened.prepared.train.shape)
        for done, (side, k) in enumerate(sides, start=1):
            found = _adopted(opened.prepared, recipe, side, k, seed)
            whole = score[k] if side == "image" else score[:, k]
            own = [pair for pair in full.pairs if pair[side == "text"] == k]
            taken = _taken(opened.prepared, full, own, full.kept, recipe, seed)
            rows.append({"encoder": names[side][k], "side": side, "seed": seed, **_row(found, whole, taken)})
            asked.progress(f"adoption, seed {seed}", done, len(sides))
    return [_by_encoder(rows), _summary(rows)]


def _row(found: _Found, whole: NDArray[np.float64], taken: float) -> dict[str, Any]:
    return {
        "adopted_score": float(found.scores.mean()),
        "full_score": float(whole.mean()),
        "of_full_share": float(found.scores.mean() / whole.mean()) if whole.any() else float("nan"),
        "adopted_taken": found.taken,
        "full_taken": taken,
        "adoption_flops": found.flops,
        "search_flops": found.search_flops,
        "of_search_share": found.flops / found.search_flops,
        "others_unchanged": found.unchanged,
    }


def _by_encoder(rows: Sequence[Mapping[str, Any]]) -> Sheet:
    """Every row, the worst first."""
    ordered = sorted(rows, key=lambda row: row["of_full_share"])
    notes = [
        "Scores are means over the encoder's pairs on the test items; full is a search that had it from the start.",
        "Taken is the encoder's best pair by validation, with the better of its own and a polished connector.",
        "FLOPs are set-up, training and validation, of the adoption and of the search that it was adopted into.",
    ]
    return Sheet("Each encoder left out of the search and adopted", ordered, notes)


def _summary(rows: Sequence[Mapping[str, Any]]) -> Sheet:
    """Mean over seeds of each encoder, and the worst of them."""
    names = list(dict.fromkeys(row["encoder"] for row in rows))
    shares, taken = _shares(rows, "score"), _shares(rows, "taken")
    worst = min(shares, key=lambda name: shares[name])
    row = {
        "worst_encoder": worst,
        "worst_share": shares[worst],
        "mean_share": float(np.mean([*shares.values()])),
        "encoders": len(names),
        "below_the_aim": sum(share < _MUST for share in shares.values()),
        "mean_share_taken": float(np.mean([*taken.values()])),
        "taken_below_the_aim": sum(share < _MUST for share in taken.values()),
        "adoption_of_search_share": float(np.mean([row["of_search_share"] for row in rows])),
        "all_others_unchanged": all(row["others_unchanged"] for row in rows),
    }
    notes = [f"The aim is {100 * _MUST:.0f} % of the full score; no step is trained."]
    return Sheet("Adoption in short, seeds pooled", [row], notes)


def _shares(rows: Sequence[Mapping[str, Any]], what: str) -> dict[str, float]:
    """By encoder what the adopted one has of the full search's, its seeds together."""
    sums: dict[str, list[float]] = {}
    for row in rows:
        own = sums.setdefault(row["encoder"], [0.0, 0.0])
        own[0], own[1] = own[0] + row[f"adopted_{what}"], own[1] + row[f"full_{what}"]
    return {name: adopted / max(full, 1e-12) for name, (adopted, full) in sums.items()}


def _search(prepared: Prepared, recipe: Recipe, seed: int) -> Solution:
    """The default search, as `solve` runs it."""
    canonical, watch = build_canonical_grid(prepared.train, recipe.canonical), first_captions(prepared.val)
    config = replace(recipe.residual, seed=seed)
    return solve_residual(prepared.train, canonical, config, validate=lambda found: mean_score(found, watch))


def _adopted(prepared: Prepared, recipe: Recipe, side: str, k: int, seed: int) -> _Found:
    """Search without an encoder, then adopt it."""
    without, alone = (_splits(prepared, side, k, own=own) for own in (False, True))
    search = _search(without, recipe, seed)
    assert search.kept is not None, "the residual hypernetwork leaves what adoption starts from"
    before = _numbers(search)
    met = meet(alone.train, side, search.kept, recipe.canonical)
    solution = adopt(side, met, search.kept, recipe.canonical)
    assert solution.kept is not None, "a newcomer leaves what it was given"
    return _Found(
        scores=_scores(solution, alone.test),
        taken=_taken(alone, solution, solution.pairs, solution.kept.of_last(side), recipe, seed),
        flops=_flops(solution, alone.val),
        search_flops=_flops(search, without.val),
        unchanged=all(torch.equal(a, b) for a, b in zip(before, _tensors(search), strict=True)),
    )


def _taken(
    prepared: Prepared, solution: Solution, pairs: Sequence[PairIndex], kept: Kept | None, recipe: Recipe, seed: int
) -> float:
    """Test score of the pair that validates best, by the better of its own connector and a polished one."""
    own = restrict(solution, pairs)
    best = pairs[int(_scores(own, prepared.val).argmax())]
    polished = solve_polished(prepared.train, [best], recipe.canonical, replace(POLISH, seed=seed), kept=kept)
    connectors = (restrict(solution, [best]), polished)
    better = max(connectors, key=lambda one: float(_scores(one, prepared.val)[0]))
    return float(_scores(better, prepared.test)[0])


def _splits(prepared: Prepared, side: str, k: int, *, own: bool) -> Prepared:
    """All three splits with one encoder alone on its side, or without it."""
    train, val, test = (_part(grid, side, k, own=own) for grid in (prepared.train, prepared.val, prepared.test))
    return replace(prepared, train=train, val=val, test=test)


def _part(grid: Grid, side: str, k: int, *, own: bool) -> Grid:
    tables, ok = (grid.images, grid.image_ok) if side == "image" else (grid.texts, grid.text_ok)
    chosen = [n for n in range(len(tables)) if (n == k) == own]
    left = tuple(tables[n] for n in chosen)
    if side == "image":
        return replace(grid, images=left, image_ok=ok[chosen])
    return replace(grid, texts=left, text_ok=ok[chosen])


def _scores(solution: Solution, grid: Grid) -> NDArray[np.float64]:
    """(P,) mean of the two recall@1 in per cent."""
    return np.array([recall(hits, (1,))["score"] for hits in retrieval(solution, grid, ks=(1,))])


def _flops(solution: Solution, val: Grid) -> int:
    """Set-up, training, the looks while training, and one look with all captions, as the ledger books a search."""
    n_looks = sum(look.validation == look.validation for fit in solution.fits for look in fit.looks)
    watched = n_looks * scoring_flops(solution, first_captions(val))
    return solution.setup_flops + solution.train_flops + watched + scoring_flops(solution, val)


def _tensors(search: Solution) -> Iterator[Tensor]:
    """Everything that the scores of a search's pairs rest on, and what it leaves."""
    yield from search.weights
    yield from search.biases
    for canonical in (*search.images, *search.texts):
        assert canonical is not None, "a solution between canonical coordinates has whitenings"
        yield from (canonical.mean, canonical.projection, canonical.features)
    assert isinstance(search.kept, Kept), "checked before"
    for one in (*search.kept.images, *search.kept.texts):
        yield from (one.whitening.mean, one.whitening.root, one.whitening.features, one.basis, one.transform)
        yield from one.directions or ()


def _numbers(search: Solution) -> list[Tensor]:
    return [tensor.clone() for tensor in _tensors(search)]
