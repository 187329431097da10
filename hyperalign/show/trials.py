"""What a page knows of a study: its trials as columns, read from `study.json` alone.

A run's folder holds a study where one was begun for that run; a study of its own has a folder of its own. Names and
choices are untrusted. A page takes the best trials and leaves the rest to the file, so that its size has a bound.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperalign.show.studied import in_words, study_lines
from hyperalign.show.words import NONE, clean, duration
from hyperalign.study.kept import RECORD, read_study

__all__ = ["StudyView", "view_study"]

_MOST = 1_000  # trials that a page shows
_LONGEST = 200  # characters of a reason
_SAID = {"training": "training settings", "pairs": "pairs of encoders"}


@dataclass(frozen=True, kw_only=True)
class StudyView:
    """What is shown of a study.

    Attributes:
        name: Of the study.
        folder: That it lies in.
        about: What was searched, on what, and by whom, in words.
        answer: What came of it, in words.
        lines: More of it, a sentence each.
        heads: Of the table of trials, and whether their cells are words.
        rows: Its cells, a row for each trial that is shown, the best first.
        first: How many of the rows are the best trial, or the front.
        data: What the page's own code draws from, as plain data.
    """

    name: str
    folder: str
    about: str
    answer: str
    lines: tuple[str, ...]
    heads: tuple[tuple[str, bool], ...]
    rows: tuple[tuple[str, ...], ...]
    first: int
    data: dict[str, Any]


def view_study(folder: Path) -> StudyView | None:
    """Read the study of a folder; None where it has none.

    Raises:
        ValueError: If `study.json` is damaged or of another release.
    """
    if not (folder / RECORD).is_file():
        return None
    record = read_study(folder)
    try:
        return _view(folder, record)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ValueError(
            f"{folder / RECORD} is damaged ({error}); go on with the study to have it written anew"
        ) from None


def _view(folder: Path, record: Mapping[str, Any]) -> StudyView:
    objectives = [clean(name) for name in record.get("objectives", ())]
    every = sorted(record.get("trials", ()), key=lambda trial: int(trial["number"]))
    places = {number: place for place, number in enumerate(record.get("best", ()))}
    shown = sorted(every, key=lambda trial: _place(trial, places))[:_MOST]
    names = _by_importance(shown, record.get("importances", {}))
    asked, configuration = record["asked"], record["configuration"]
    about = (
        f"Optuna ({clean(asked['sampler'])}) searched {_SAID.get(asked['over'], clean(asked['over']))} on "
        f"{clean(configuration['data'])}"
    )
    lines, remarks = study_lines(record) if every else [], any(map(_remark, shown))
    heads = [("trial", False), ("state", True), *((name, False) for name in objectives)]
    heads += [(clean(name).replace("_", " "), not _is_number(name, shown)) for name in names]
    heads += [("time", False), *([("remark", True)] if remarks else [])]
    if len(every) > len(shown):
        lines.append(f"shown: the best {len(shown):,} of {len(every):,} trials; {RECORD} has all")
    return StudyView(
        name=clean(record["name"]),
        folder=clean(folder.name),
        about=f"{about}, {len(every):,} of {int(asked['trials']):,} trials.",
        answer=_answer(record, every, objectives),
        lines=tuple(clean(line) for line in lines),
        heads=tuple(heads),
        rows=tuple(_row(trial, objectives, names, remarks=remarks) for trial in shown),
        first=sum(trial["number"] in places for trial in shown),
        data=_data(record, every, shown, names, objectives),
    )


def _place(trial: Mapping[str, Any], best: Mapping[int, int]) -> tuple[float, ...]:
    """Where a trial stands: the best ones, then by score, then those that have none, by number."""
    score = -trial["values"][0] if trial["values"] else math.inf
    return best.get(trial["number"], math.inf), score, trial["number"]


def _by_importance(trials: Sequence[Mapping[str, Any]], importances: Mapping[str, float]) -> list[str]:
    names = dict.fromkeys(name for trial in trials for name in trial["params"])
    return sorted(names, key=lambda name: -importances.get(name, 0.0))


def _answer(record: Mapping[str, Any], every: Sequence[Mapping[str, Any]], objectives: Sequence[str]) -> str:
    best = [trial for number in record.get("best", ()) for trial in every if trial["number"] == number]
    if not best:
        return "No trial is finished and within the limits yet."
    if len(objectives) == 1:
        params = ", ".join(f"{clean(name)} {in_words(value)}" for name, value in best[0]["params"].items())
        name = objectives[0].partition(" / ")[0]
        return f"Trial {best[0]['number']} is the best, with a {name} of {_measured(best[0], objectives)}: {params}."
    ends = [_measured(trial, objectives) for trial in (best[0], best[-1])]
    span = f"from {ends[0]} to {ends[1]}" if len(best) > 1 else ends[0]
    names = " at ".join(name.partition(" / ")[0] for name in objectives)
    return f"The Pareto front ({names}) holds {len(best)} of {len(every)} trials: {span}."


def _measured(trial: Mapping[str, Any], objectives: Sequence[str]) -> str:
    """Its values with their units, as in `70.4 % at 0.12 TFLOP`."""
    units = [name.partition(" / ")[2] for name in objectives]
    return " at ".join(f"{value:.4g} {unit}".strip() for value, unit in zip(trial["values"], units, strict=True))


def _row(
    trial: Mapping[str, Any], objectives: Sequence[str], names: Sequence[str], *, remarks: bool
) -> tuple[str, ...]:
    values = [f"{value:.4g}" for value in trial["values"]] if trial["values"] else [NONE] * len(objectives)
    params = [in_words(trial["params"].get(name)) for name in names]
    cells = (str(int(trial["number"])), clean(trial["state"]), *values, *params, duration(trial["seconds"]))
    return (*cells, _remark(trial)) if remarks else cells


def _remark(trial: Mapping[str, Any]) -> str:
    """Why a trial has no score, or how it is beyond a limit."""
    beyond = [f"{clean(name)} {100 * share:.0f} % beyond" for name, share in _beyond(trial).items()]
    left = [f"left at {clean(trial['facts']['left at'])}"] if "left at" in trial["facts"] else []
    return "; ".join([*([clean(trial["error"])] if trial.get("error") else []), *beyond, *left])[:_LONGEST]


def _beyond(trial: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(over) for name, over in trial.get("constraints", {}).items() if over > 0}


def _data(
    record: Mapping[str, Any],
    every: Sequence[Mapping[str, Any]],
    shown: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    objectives: Sequence[str],
) -> dict[str, Any]:
    """Columns over the trials that are shown, in the order of the table."""
    scales, importances = record.get("scales", {}), record.get("importances", {})
    return {
        "objectives": objectives,
        "best": len([trial for trial in shown if trial["number"] in record.get("best", ())]),
        "number": [int(trial["number"]) for trial in shown],
        "state": [clean(trial["state"]) for trial in shown],
        "values": [[_value(trial, k) for trial in shown] for k in range(len(objectives))],
        "last": [_finite(trial["curve"][-1][1]) if trial["curve"] else None for trial in shown],
        "within": [not _beyond(trial) for trial in shown],
        "seconds": [_finite(trial["seconds"]) for trial in shown],
        "rising": _best_so_far(every) if len(objectives) == 1 else [],
        "params": [
            {
                "name": clean(name).replace("_", " "),
                "scale": scales.get(name, "linear") if _is_number(name, shown) else "choices",
                "importance": _finite(importances.get(name)),
                "values": [_plain(trial["params"].get(name)) for trial in shown],
            }
            for name in names
        ],
    }


def _best_so_far(every: Sequence[Mapping[str, Any]]) -> list[tuple[int, float]]:
    """Number and score of each trial that was better than all before it."""
    found: list[tuple[int, float]] = []
    for trial in every:
        score = _value(trial, 0)
        if score is not None and not _beyond(trial) and (not found or score > found[-1][1]):
            found.append((int(trial["number"]), score))
    return found


def _value(trial: Mapping[str, Any], place: int) -> float | None:
    return _finite(trial["values"][place]) if trial["values"] else None


def _is_number(name: str, trials: Sequence[Mapping[str, Any]]) -> bool:
    values = [trial["params"][name] for trial in trials if name in trial["params"]]
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _plain(value: Any) -> float | str | None:
    """A number to six figures, or a choice in words."""
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return _finite(value)
    return clean(value)[:_LONGEST]


def _finite(value: Any) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")
