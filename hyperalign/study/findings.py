"""What `study.json` says, as types: what was asked, and what came of it."""

from collections.abc import Mapping
from typing import Any, Literal, NotRequired, Required, TypedDict

from hyperalign.embed.plain import misfit

__all__ = ["Findings", "StudyRecord", "TrialRecord", "find_fault"]


class TrialRecord(TypedDict, total=False):
    """One trial.

    Attributes:
        number: Of the trial in Optuna.
        state: `complete`, `pruned`, `failed` or `running`.
        values: One for each objective; None where it has none.
        params: What was tried, by name.
        facts: What was found, under names that carry their unit.
        constraints: How far it is beyond each limit, at most 0 within; over pairs alone.
        curve: Steps and scores on validation meanwhile.
        seconds: Wall time; None while it runs.
        error: Why it failed.
    """

    number: Required[int]
    state: Required[str]
    values: Required[list[float] | None]
    params: Required[dict[str, Any]]
    facts: dict[str, Any]
    constraints: dict[str, float]
    curve: list[tuple[int, float]]
    seconds: Required[float | None]
    error: str


class Findings(TypedDict):
    """What came of a study so far.

    Attributes:
        objectives: Names of the values with their units.
        directions: `maximize` or `minimize`, one each.
        n_trials: By state.
        trials: All but those that were given back.
        n_given_back: Trials whose worker has gone, and which others stand for.
        best: Numbers of the best trials: one, or the Pareto front from the highest score on.
        history: Number of each finished trial and the best score up to it, in the order of finishing; of one
            objective alone.
        importances: By parameter, in [0, 1] and 1 in sum: how much of the score a parameter explains (PED-ANOVA);
            empty below four finished trials.
        scales: By parameter how it was drawn: `linear`, `log` or `choices`.
        spent_tflop: FLOPs of all finished trials, by what they went to: embedding, search, and those that were pruned.
        stopped: Why no further trial was begun; empty where all were done.
    """

    objectives: list[str]
    directions: list[str]
    n_trials: dict[str, int]
    trials: list[TrialRecord]
    n_given_back: int
    best: list[int]
    history: list[tuple[int, float]]
    importances: dict[str, float]
    scales: NotRequired[dict[str, str]]
    spent_tflop: dict[str, float]
    stopped: str


class StudyRecord(TypedDict):
    """What stands in `study.json` from the first trial on, beside `Findings`.

    Attributes:
        format: Of the record.
        name: Of the study in its storage.
        storage: Where it is kept, in words.
        configuration: Of the search.
        asked: Of the study.
        inputs: Digest of encoders and data.
        warm: Folder of the study whose best trials were tried first.
        status: Whether it is done.
    """

    format: int
    name: str
    storage: str
    configuration: dict[str, Any]
    asked: dict[str, Any]
    inputs: str
    warm: NotRequired[str | None]
    status: NotRequired[Literal["running", "stopped", "finished"]]


def find_fault(record: Mapping[str, Any]) -> str | None:
    """Why a record is not one of a study, in words; None where it is."""
    fault = misfit(record, StudyRecord) or (misfit(record, Findings) if "trials" in record else None)
    if fault is not None:
        return fault
    if "trials" not in record:
        return None if record.get("status") in (None, "running") else "it has ended and lacks trials"
    scored, n_values = {trial["number"] for trial in record["trials"] if trial["values"]}, len(record["objectives"])
    if not scored.issuperset(record["best"]):
        return "its best trials are not among its trials, or have no values"
    values = [trial["values"] for trial in record["trials"] if trial["values"]]
    if any(len(some) != n_values or None in some for some in values):
        return "a trial has not one value for each objective"
    numbers = [None in record[name].values() for name in ("importances", "spent_tflop")]
    return "its importances or costs are no numbers" if any(numbers) else None
