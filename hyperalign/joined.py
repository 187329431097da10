"""A finished run and a newcomer's pairs as one run: tensors, the table, and what it says of itself.

Rows of the run stay as they are, scores and intervals to the last bit; position, rank and the chance of being the best
are found for all together, by every method that has pairs of both, from the hits that the run has kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hyperalign.account import describe_checked, sum_up
from hyperalign.align.solution import Kept
from hyperalign.board import Tested
from hyperalign.candidates import Candidates
from hyperalign.embed.zoo import EncoderSpec
from hyperalign.ledger import Line
from hyperalign.machine import measure_matmul
from hyperalign.packing import pack, pack_kept
from hyperalign.rank.ranking import answer, rank_pairs, reorder
from hyperalign.rank.resampling import Contributions, bootstrap
from hyperalign.record import LEADERBOARD_COLUMNS, Result
from hyperalign.relimit import contributions_of
from hyperalign.request import SearchConfig
from hyperalign.run import Run, load_tensors, log_event, read_log, write_tensors
from hyperalign.solve import Solved, pairs_in_words

__all__ = ["Arrays", "Earlier", "longer_hits", "of_side", "placed", "table_together", "told_together", "write_together"]

Arrays = dict[str, NDArray[Any]]

_OWN = ("rank", "position", "p_best")  # of a pair among others; all else in a row is its own


class Earlier(NamedTuple):
    """A finished run and what it has kept.

    Attributes:
        run: As read back.
        encoders: Everyone that took part, in its order.
        images: Its image encoders that were embedded whole, in its order.
        texts: Its text encoders that were.
        kept: What adoption starts from.
        pairs: (P, 2), in the order of the hits.
        hits: Arrays of `hits.safetensors`.
    """

    run: Run
    encoders: tuple[EncoderSpec, ...]
    images: tuple[EncoderSpec, ...]
    texts: tuple[EncoderSpec, ...]
    kept: Kept
    pairs: NDArray[np.int64]
    hits: Arrays


def of_side(side: str, encoders: Sequence[EncoderSpec]) -> tuple[EncoderSpec, ...]:
    """Those of one side, in their order."""
    return tuple(one for one in encoders if one.modality == side)


def longer_hits(before: Arrays, tested: Sequence[Tested]) -> Arrays:
    """Hits of pairs that the run had, by whichever method, with those of the newcomer's behind them."""
    new = {key: array for one in tested for key, array in one.hits.items()}
    return {key: np.concatenate([before[key], array]) if key in before else array for key, array in new.items()}


def placed(earlier: Earlier, beside: Candidates, spec: EncoderSpec) -> NDArray[np.int64]:
    """The new pairs among all encoders, the newcomer behind the others of its side."""
    if spec.modality == "image":
        return np.array([(len(earlier.images), earlier.texts.index(one)) for one in beside.texts])
    return np.array([(earlier.images.index(one), len(earlier.texts)) for one in beside.images])


def write_together(  # noqa: PLR0913 - what the run had, and what is new
    folder: Path,
    earlier: Earlier,
    beside: Candidates,
    spec: EncoderSpec,
    made: Sequence[Solved],
    pairs: NDArray[np.int64],
    hits: Arrays,
) -> dict[str, list[tuple[str, str]]]:
    """Write hits, connectors and what the next adoption starts from: the run's, and the newcomer's behind them.

    Args:
        folder: Of the new run.
        earlier: The run.
        beside: The newcomer and its partners.
        spec: The newcomer.
        made: Its pairs by the method that answers, and some of them polished.
        pairs: (P, 2), all pairs of the method that answers among all encoders, in the order of the hits.
        hits: Of all of them.

    Returns:
        By method the names of its pairs, in the order of its hits.
    """
    solved, side = made[0], "images" if spec.modality == "image" else "texts"
    assert solved.solution.kept is not None, "a newcomer leaves what it was given"
    longer: dict[str, Any] = {side: [*getattr(earlier.kept, side), getattr(solved.solution.kept, side)[-1]]}
    write_tensors(folder / "kept.safetensors", {**pack_kept(earlier.kept._replace(**longer)), "pairs": pairs})
    write_tensors(folder / "hits.safetensors", hits)
    polished = [*_copy_connectors(folder, earlier), *_add_connectors(folder, earlier, beside, spec, made)]
    names = {"images": [one.name for one in earlier.images], "texts": [one.name for one in earlier.texts]}
    names[side].append(spec.name)
    return {solved.method.name: _named(names, pairs.tolist()), "polished": polished}


def _copy_connectors(folder: Path, earlier: Earlier) -> list[tuple[str, str]]:
    """Note what the run has kept in the new one too; the names of its polished pairs, in the order of their hits."""
    polished = dict[str, list[tuple[str, str]]]()  # by prefix: a run that was cut short has noted some twice
    for line in read_log(earlier.run.path):
        if line.get("event") == "connectors":
            log_event(folder, "connectors", **{key: line[key] for key in line if key not in ("time", "event")})
            if line.get("method") == "polished":  # hits are in the order of the grid, connectors the best first
                polished[line["prefix"]] = _named(line, sorted(line["solution"]["pairs"]))
    return [pair for some in polished.values() for pair in some]


def _add_connectors(
    folder: Path, earlier: Earlier, beside: Candidates, spec: EncoderSpec, made: Sequence[Solved]
) -> list[tuple[str, str]]:
    """Write those of the run and the newcomer's, whose names have a prefix; the names of its polished pairs."""
    connectors = load_tensors(earlier.run.path / "connectors.safetensors")
    names = {"images": [one.name for one in beside.images], "texts": [one.name for one in beside.texts]}
    for number, one in enumerate(made):
        tensors, record = pack(replace(one.solution, kept=None))
        prefix = f"adopted/{spec.name}" + (f"/{one.method.stage}" if number else "")
        connectors |= {f"{prefix}/{name}": array for name, array in tensors.items()}
        whose = {"method": one.method.name, "seed": one.method.seed}
        log_event(folder, "connectors", solution={**record, "fits": []}, prefix=prefix, **names, **whose)
    write_tensors(folder / "connectors.safetensors", connectors)
    return [pair for one in made[1:] for pair in _named(names, one.solution.pairs)]


def _named(names: Mapping[str, Any], pairs: Sequence[Sequence[int]]) -> list[tuple[str, str]]:
    return [(names["images"][i], names["texts"][j]) for i, j in pairs]


def table_together(
    earlier: Earlier,
    tested: Sequence[Tested],
    names: Mapping[str, Sequence[tuple[str, str]]],
    hits: Arrays,
    config: SearchConfig,
) -> pd.DataFrame:
    """The table of old rows and new ones: position, rank and chance found together, all else as it was.

    Args:
        earlier: The run.
        tested: The newcomer's pairs, by one method or by two.
        names: By method the pairs in the order of its hits.
        hits: Of all of them.
        config: What the run was asked for.
    """
    board, tables, others = earlier.run.leaderboard, list[pd.DataFrame](), earlier.run.leaderboard["score"].isna()
    for one in tested:
        method = one.solved.method
        mine = (board["method"] == method.name) & (board["seed"] == method.seed)
        rows = pd.concat([board[mine & board["score"].notna()], one.table], ignore_index=True)
        contributions = contributions_of(hits, method.stage, task=config.task)
        tables.append(_ranked(rows, names[method.name], contributions, seed=config.seed))
        others |= mine
    left, rest = board[board["score"].isna()], board[~others]
    looked_at = pd.concat([*tables[1:], rest[rest["method"] == "polished"]])
    tables[0] = reorder(tables[0], looked_at)[list(LEADERBOARD_COLUMNS)]
    left = left.assign(position=left["position"] + len(tested[0].table))
    return pd.concat([tables[0], left, rest, *tables[1:]], ignore_index=True)


def _ranked(
    rows: pd.DataFrame, names: Sequence[tuple[str, str]], contributions: Contributions, *, seed: int
) -> pd.DataFrame:
    """Rows of one method in the order of their hits, with position, rank and chance among one another."""
    order = pd.MultiIndex.from_tuples(names)
    rows = rows.set_index(["image_encoder", "text_encoder"], drop=False).loc[order].reset_index(drop=True)
    ranked = rank_pairs(rows.drop(columns=list(_OWN)), bootstrap(contributions, seed=seed))
    ranked = ranked.set_index(["image_encoder", "text_encoder"])[list(_OWN)]
    joint = rows.drop(columns=list(_OWN)).join(ranked, on=["image_encoder", "text_encoder"])
    return joint[list(LEADERBOARD_COLUMNS)].sort_values("position", ignore_index=True)


def told_together(  # noqa: PLR0913 - what a run says at its end
    earlier: Earlier,
    spec: EncoderSpec,
    tested: Sequence[Tested],
    lines: Sequence[Line],
    table: pd.DataFrame,
    record: dict[str, Any],
    added: Sequence[str],
) -> Result:
    """What the new run says: what the old one said, and what is new."""
    solved = tested[0].solved
    old, method = earlier.run.result, solved.method
    at = len(of_side("image", earlier.encoders)) if spec.modality == "image" else len(old["encoders"])
    mine = table[(table["method"] == method.name) & (table["seed"] == method.seed)]
    whole = mine[mine["score"].notna()]
    said = old["answer"][1:]
    if len(tested) > 1:  # polished pairs of both are held against each other
        every = replace(tested[1], table=table[table["method"] == "polished"])
        said = [sentence for sentence in said if not sentence.startswith("Polished")]
        said += describe_checked(replace(tested[0], table=whole), [every])
    n_pairs, into = len(solved.solution.pairs), earlier.run.path
    note = f"{spec.name} was adopted into {into.name}: {pairs_in_words(n_pairs)}; the ledger is the adoption's alone"
    here = {"encoder": spec.name, "run": str(into), "zoo": list(added)}
    result: Result = {
        "seeds": old["seeds"],
        "data": old["data"],
        "encoders": [*old["encoders"][:at], record, *old["encoders"][at:]],
        "method": method.name,
        "counts": [*old["counts"], f"adopted: {spec.name}, {pairs_in_words(n_pairs)}"],
        "answer": [
            answer(whole, n_left=len(mine) - len(whole)),
            *said,
        ],
        "notes": [note, *old["notes"]],
        "agreement": old["agreement"],
        "ratios": [],
        "totals": sum_up(solved, lines),
        "roofline": {"flops_per_second": measure_matmul(size=1024)},
        "adopted": [*old.get("adopted", []), here],
    }
    if "promotion" in old:
        result["promotion"] = old["promotion"]
    return result
