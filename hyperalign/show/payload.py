"""What the page of a run knows: columns of numbers, as plain data. Nothing but the run's files goes in.

Facts of an encoder stand once; a pair names its two encoders by their places. Numbers are cut to the decimals that
a person reads, so that 9,000 pairs take a megabyte.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypedDict

import numpy as np

from hyperalign.embed.plain import misfit, parse_json
from hyperalign.record import PICTURES, Result, distinct_ratios
from hyperalign.run import Run, read_log
from hyperalign.show import words
from hyperalign.show.against import hold_against
from hyperalign.show.chances import Chances
from hyperalign.show.view import Board, costs, draw_board

__all__ = ["describe"]

_RECALLS = tuple(f"{way}_recall_at_{k}" for way in ("t2i", "i2t") for k in (1, 5, 10))
_DECIMALS = {
    **dict.fromkeys(("position", "rank", "train_flops", "n_train"), 0),
    **dict.fromkeys(("score", "score_low", "score_high", "validation_score", *_RECALLS, "zero_shot_top_1"), 3),
    **dict.fromkeys(("p_best", "cka", "mutual_knn"), 4),
}
_SIDE_FACTS = {
    "image": ("n_params_image", "gflops_image", "latency_ms", "image_dim", "license_image"),
    "text": ("n_params_text", "gflops_text", None, "text_dim", "license_text"),
}
_FACTS = ("n_params", "gflops", "latency_ms", "dim", "license")
_IDENTITY = (
    *("loader", "architecture", "checkpoint", "revision", "factory", "input_size", "pooling", "prompt"),
    *("truncate_dim", "weights"),
)
_LONGEST = 200  # characters of a fact that the page shows


class _Caption(TypedDict):
    caption: str
    image: int


class _Pictures(TypedDict):
    captions: list[_Caption]
    thumbnails: list[str]
    pairs: dict[str, list[list[int]]]


def describe(run: Run, chances: Chances | None, others: Sequence[Run] = ()) -> dict[str, Any]:
    """Everything that the page's own code draws from.

    Args:
        run: A finished run.
        chances: Its comparisons and draws, where it has kept its hits; the draws themselves stand elsewhere.
        others: Runs that it is held against.
    """
    result, board = run.result, draw_board(run)
    images, texts = (_encoders(board, result, side) for side in ("image", "text"))
    places = [{name: k for k, name in enumerate(side["name"])} for side in (images, texts)]
    test = result.get("data", {}).get("splits", {}).get("test", {})
    return {
        "name": words.clean(result["name"]),
        "folder": words.clean(run.path.name),
        "method": board.method,
        "measure": board.measure,
        "n_test": test.get("n_images"),
        "images": images,
        "texts": texts,
        "image": [places[0][row.image] for row in board.rows],
        "text": [places[1][row.text] for row in board.rows],
        "columns": {name: _column((row.facts[name] for row in board.rows), n) for name, n in _DECIMALS.items()},
        "others": [
            {"name": name, "score": _column((row.others[k] for row in board.rows), 3)}
            for k, name in enumerate(board.others)
        ],
        "reference": _reference(run, board),
        "agreement": [_plain(item) for item in result.get("agreement", [])],
        "costs": [asdict(line) for line in costs(run)],
        "ratios": [_plain(item) for item in distinct_ratios(run.result.get("ratios", []))],
        "curves": _curves(run),
        "pictures": _pictures(run),
        "against": [hold_against(run, other) for other in others],
        "chances": None if chances is None else _packed(chances),
    }


def _packed(chances: Chances) -> dict[str, Any]:
    return {
        "n_draws": chances.n_draws,
        "mean": _column(chances.mean, 4),
        "step": _column(chances.step, 6),
        "by_score": chances.by_score.tolist(),
        "better": chances.better,
    }


def _encoders(board: Board, result: Result, side: str) -> dict[str, list[Any]]:
    """Name, facts and identity of the encoders of a side, in the order in which they appear."""
    records = {words.clean(record.get("name")): record for record in result.get("encoders", [])}
    first = {getattr(row, side): row for row in reversed(board.rows)}
    names = list(dict.fromkeys(getattr(row, side) for row in board.rows))
    found: dict[str, list[Any]] = {"name": names}
    for fact, column in zip(_FACTS, _SIDE_FACTS[side], strict=True):
        values = [None if column is None else first[name].facts[column] for name in names]
        found[fact] = [words.clean(value) for value in values] if fact == "license" else _column(values, 12)
    found["identity"] = [_identity(records.get(name, {})) for name in names]
    return found


def _identity(record: Mapping[str, Any]) -> dict[str, str]:
    """What an encoder is, in words; what is not declared is left out."""
    told = {name: record.get(name) for name in _IDENTITY}
    return {name: words.clean(value)[:_LONGEST] for name, value in told.items() if value not in (None, "", {})}


def _reference(run: Run, board: Board) -> dict[str, Any] | None:
    """Each seed's scores by the baseline, where it has seen three pairs or more; text-sided before both-sided."""
    table = run.leaderboard[run.leaderboard["method"] == "ape"]
    if board.method.startswith("ape") or not len(table):
        return None
    sides = sorted(table["sides"].unique(), reverse=True)[0]
    table = table[table["sides"] == sides]
    places = {(row.image, row.text): k for k, row in enumerate(board.rows)}
    seeds: dict[int, list[float]] = {}
    for row in table.itertuples():
        place = places.get((words.clean(row.image_encoder), words.clean(row.text_encoder)))
        if place is not None:
            seeds.setdefault(int(row.seed), [math.nan] * len(board.rows))[place] = float(row.score)
    if max((np.isfinite(scores).sum() for scores in seeds.values()), default=0) < 3:
        return None
    return {"name": f"ape · {words.clean(sides)}", "seeds": [_column(seeds[seed], 3) for seed in sorted(seeds)]}


def _curves(run: Run) -> list[dict[str, Any]]:
    """What the log says of each network's training: losses, looks at validation, and how it ended."""
    found: dict[str, dict[str, Any]] = {}
    for line in read_log(run.path):
        if line.get("event") not in ("look", "losses", "rolled back", "diverged") or "stage" not in line:
            continue
        curve = found.setdefault(
            str(line["stage"]), {"looks": [], "losses": [], "kept": None, "n_steps": None, "diverged": None}
        )
        if line["event"] == "look":
            curve["looks"].append([line.get("step"), line.get("validation")])
            if line.get("loss") is not None and line.get("step"):
                curve["losses"].append([line["step"], line["loss"]])
        elif line["event"] == "losses":
            curve["losses"] += line.get("curve", [])
        elif line["event"] == "rolled back":
            curve |= {"kept": line.get("to_step"), "n_steps": line.get("of")}
        else:
            curve["diverged"] = line.get("at_step")
    for curve in found.values():
        curve["losses"] = [[step, round(loss, 4)] for step, loss in sorted({a: b for a, b in curve["losses"]}.items())]
    return [{"name": words.clean(name), **curve} for name, curve in found.items()]


def _pictures(run: Run) -> dict[str, Any] | None:
    """What the first pairs retrieve, where the run has been asked for it."""
    path = run.path / PICTURES
    if not path.is_file():
        return None
    try:
        kept = parse_json(path.read_bytes())
        fault = misfit(kept, _Pictures)
        if fault is not None:
            raise ValueError(fault)
        return {
            "captions": [{**one, "caption": words.clean(one["caption"])} for one in kept["captions"]],
            "thumbnails": kept["thumbnails"],
            "pairs": {words.clean(name): found for name, found in kept["pairs"].items()},
        }
    except ValueError as error:
        raise ValueError(f"{path} cannot be read ({error}); make it again with `report --pictures`") from None


def _column(values: Iterable[Any], decimals: int) -> list[float | int | None]:
    """Numbers cut to so many decimals, whole ones as such; None where there is none."""
    return [_cut(value, decimals) for value in values]


def _cut(value: Any, decimals: int) -> float | int | None:
    if value is None or not math.isfinite(value):
        return None
    number = round(float(value), decimals)
    return int(number) if number == int(number) else number


def _plain(item: Mapping[str, Any]) -> dict[str, Any]:
    """A record with its words made safe and its numbers as they are."""
    return {key: words.clean(value) if isinstance(value, str) else _finite(value) for key, value in item.items()}


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
