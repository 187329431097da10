"""Methods' connectors on the test items: the leaderboard, the hits it rests on, and how far the orders agree."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hyperalign.align.grid import Grid, PairIndex, Rows, to_float
from hyperalign.align.solution import Solution
from hyperalign.candidates import Candidates
from hyperalign.embed.zoo import EncoderSpec
from hyperalign.grids import Prepared
from hyperalign.ladder import Left
from hyperalign.machine import give_back
from hyperalign.rank.agreement import agreement, noise_ceiling
from hyperalign.rank.metrics import recall
from hyperalign.rank.ranking import rank_pairs
from hyperalign.rank.resampling import Contributions, bootstrap, per_image, per_picture
from hyperalign.rank.scores import TrainingFree, cka_flops, mutual_knn_flops, training_free_scores
from hyperalign.record import LEADERBOARD_COLUMNS, AgreementRecord
from hyperalign.scoring import KS, each_retrieval, zero_shot, zero_shot_parts
from hyperalign.solve import Solved

__all__ = [
    "Tested",
    "append_left",
    "compare",
    "evaluate",
    "first_pair",
    "score_without_training",
    "training_free_flops",
]

_SAMPLE = 1000  # items that training-free scores are taken from


@dataclass(frozen=True, kw_only=True, eq=False)
class Tested:
    """A method on the test items.

    Attributes:
        solved: The method.
        table: One row per pair, `LEADERBOARD_COLUMNS`, by position.
        scores: (P,) test scores in per cent, in the order of the solution's pairs.
        contributions: What each test item adds to them.
        hits: Arrays for `hits.safetensors`.
    """

    solved: Solved
    table: pd.DataFrame
    scores: NDArray[np.float64]
    contributions: Contributions
    hits: dict[str, NDArray[Any]]


def evaluate(
    solved: Solved, prepared: Prepared, candidates: Candidates, *, task: str, free: TrainingFree | None, seed: int
) -> Tested:
    """Score every pair of a method on the test items, with intervals and ranks."""
    solution, method = solved.solution, solved.method
    recalls, t2i, i2t = _found(solution, prepared.test)
    arrays: dict[str, NDArray[Any]] = {f"{method.stage}/t2i": _small(t2i), f"{method.stage}/i2t": _small(i2t)}
    top_1 = None
    if prepared.labels is not None:
        part = zero_shot_parts(prepared.labels)[1]
        top_1 = np.stack([hits[:, 0] for hits in zero_shot(solution, prepared.labels, part)])
        arrays[f"{method.stage}/top_1"] = _small(top_1)
    if task == "zero-shot":
        assert top_1 is not None, "the task was checked when the data was opened"
        contributions = per_picture(top_1)
    else:
        contributions = per_image(t2i, i2t, prepared.test.owner)
    resampled = bootstrap(contributions, seed=seed)
    alone = solution.method == "ape"  # else one training serves all pairs
    rows = []
    for n, (i, j) in enumerate(solution.pairs):
        flops = solution.fits[n].flops if alone else solution.train_flops / len(solution.pairs)
        rows.append(
            {
                **_facts(candidates.images[i], candidates.texts[j], candidates.latencies),
                "method": method.name,
                "sides": method.sides,
                **recalls[n],
                "zero_shot_top_1": np.nan if top_1 is None else 100 * float(top_1[n].mean(dtype=np.float64)),
                "cka": np.nan if free is None else float(free.cka[i, j]),
                "mutual_knn": np.nan if free is None else float(free.mutual_knn[i, j]),
                "train_flops": round(flops),
                "seed": method.seed,
                "validation_score": float(solved.validation[n]),
                "n_train": prepared.train.n_images,
            }
        )
    table = rank_pairs(pd.DataFrame(rows), resampled)[list(LEADERBOARD_COLUMNS)]
    return Tested(solved=solved, table=table, scores=resampled.score, contributions=contributions, hits=arrays)


def append_left(table: pd.DataFrame, left: Sequence[Left], candidates: Candidates) -> pd.DataFrame:
    """Put the pairs that left before everything was embedded below the rows of the method that answers.

    They have no test score. Their place is that of the last sample they were judged on, and so are `rank`,
    `validation_score` and `n_train`.

    Args:
        table: Rows of one method and seed, `LEADERBOARD_COLUMNS`.
        left: In their order.
        candidates: All encoders.
    """
    rows: list[dict[Any, Any]] = table.to_dict("records")
    first = rows[0]
    for place, one in enumerate(left, start=len(table) + 1):
        row = dict.fromkeys(LEADERBOARD_COLUMNS, np.nan)
        row |= _facts(candidates.images[one.pair[0]], candidates.texts[one.pair[1]], candidates.latencies)
        row |= {name: first[name] for name in ("method", "sides", "seed")}
        row |= {"position": place, "rank": one.rank, "train_flops": 0, "n_train": one.n_train}
        row |= {"validation_score": one.score}
        rows.append(row)
    return pd.DataFrame(rows, columns=list(LEADERBOARD_COLUMNS))


def _found(solution: Solution, grid: Grid) -> tuple[list[dict[str, float]], NDArray[np.float32], NDArray[np.float32]]:
    """Recalls of every pair, and the hits at 1, (P, n_captions) and (P, n_images); other depths are not kept."""
    n_pairs, recalls = len(solution.pairs), []
    t2i, i2t = (np.empty((n_pairs, n), np.float32) for n in (grid.n_captions, grid.n_images))
    for n, hits in enumerate(each_retrieval(solution, grid)):
        t2i[n], i2t[n] = hits.t2i[:, 0], hits.i2t[:, 0]
        recalls.append({name: value for name, value in recall(hits, KS).items() if name != "score"})
    return recalls, t2i, i2t


def first_pair(table: pd.DataFrame, candidates: Candidates) -> PairIndex:
    """The pair at the first position, by the places of its encoders among candidates."""
    first = table.sort_values("position").iloc[0]
    names = (spec.name for spec in candidates.images), (spec.name for spec in candidates.texts)
    return [*names[0]].index(first["image_encoder"]), [*names[1]].index(first["text_encoder"])


def compare(tested: Sequence[Tested], candidates: Candidates, *, n_pairs: int, seed: int) -> list[AgreementRecord]:
    """Every method held against the whole grid of the baseline, where it was run, and the baseline against itself.

    Args:
        tested: All methods.
        candidates: The encoders whose places their pairs name.
        n_pairs: Of the whole grid.
        seed: Of the intervals.
    """
    records: list[AgreementRecord] = []
    grids: dict[str, list[Tested]] = {}
    for one in tested:
        if one.solved.method.name == "ape" and len(one.scores) == n_pairs:
            grids.setdefault(one.solved.method.sides, []).append(one)
    for sides, seeds in grids.items():
        reference = np.mean([one.scores for one in seeds], axis=0)
        hits = np.mean([one.contributions.hits for one in seeds], axis=0)
        contributions = Contributions(hits, seeds[0].contributions.trials)
        mean = f"ape · {sides}" + (f", mean of {len(seeds)} seeds" if len(seeds) > 1 else "")
        for one in tested:
            if one in seeds or len(one.scores) != n_pairs:
                continue
            chosen = one.solved.solution.pairs.index(first_pair(one.table, candidates))
            found = agreement(one.scores, reference, chosen=chosen, hits=contributions, seed=seed)
            records.append({"order": one.solved.method.label, "reference": mean, **found._asdict()})  # type: ignore[typeddict-item]
        if len(seeds) > 1:
            ceiling = noise_ceiling([one.scores for one in seeds])
            words = {"order": f"ape · {sides}", "reference": "itself under another seed (the noise ceiling)"}
            records.append({**words, **ceiling._asdict()})  # type: ignore[typeddict-item]
    return records


def score_without_training(grid: Grid) -> tuple[TrainingFree, int]:
    """Linear CKA and mutual k-NN of every pair on a sample of the training pictures, and the FLOPs of it.

    A picture's captions stand in by their mean row.
    """
    items = np.linspace(0, grid.n_images - 1, min(_SAMPLE, grid.n_images)).round().astype(np.int64)
    first = np.searchsorted(grid.owner, items, side="left")
    last = np.searchsorted(grid.owner, items, side="right")
    captions = np.concatenate([np.arange(a, b) for a, b in zip(first, last, strict=True)])
    which = np.repeat(np.arange(len(items)), last - first)
    texts = []
    for rows in grid.texts:
        values = to_float(rows[captions]).nan_to_num(0.0, 0.0, 0.0).numpy()
        total = np.zeros((len(items), values.shape[1]), np.float32)
        np.add.at(total, which, values)
        texts.append(total / (last - first)[:, None])
    return training_free_scores(_Opened(grid.images, items), texts), training_free_flops(grid)


class _Opened(Sequence[NDArray[np.float32]]):
    """Some items of each table, read when a table's turn comes: those of 300 encoders are a gigabyte."""

    def __init__(self, tables: Sequence[Rows], items: NDArray[np.int64]) -> None:
        self.tables, self.items = tables, items

    def __len__(self) -> int:
        return len(self.tables)

    def __getitem__(self, k: Any) -> Any:
        give_back()  # small tables of every width leave holes
        return to_float(self.tables[k][self.items]).nan_to_num(0.0, 0.0, 0.0).numpy()


def training_free_flops(grid: Grid) -> int:
    """FLOPs of `score_without_training`, from shapes."""
    n_items = min(_SAMPLE, grid.n_images)
    widths = [rows.shape[1] for rows in grid.images], [rows.shape[1] for rows in grid.texts]
    return cka_flops(n_items, *widths) + mutual_knn_flops(n_items, *widths)


def _facts(image: EncoderSpec, text: EncoderSpec, latencies: Any) -> dict[str, Any]:
    return {
        "image_encoder": image.name,
        "text_encoder": text.name,
        "n_params_image": image.n_params,
        "n_params_text": text.n_params,
        "gflops_image": np.nan if image.gflops is None else image.gflops,
        "gflops_text": np.nan if text.gflops is None else text.gflops,
        "latency_ms": latencies.get(image.name, np.nan),
        "image_dim": image.embed_dim,
        "text_dim": text.embed_dim,
        "license_image": image.license or "",
        "license_text": text.license or "",
    }


def _small(hits: NDArray[np.float32]) -> NDArray[Any]:
    """Whole hits in a byte each; ties are fractions, and their sums must be the score's to a thousandth of a point."""
    return hits.astype(np.uint8) if np.array_equal(hits, hits.round()) else hits
