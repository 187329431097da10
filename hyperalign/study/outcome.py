"""What came of a study, as a plain record: what a page or a table draws, and the command that repeats a trial.

`study.json` holds it beside the study. Its keys are those of `Findings`; every list is in the order of the trials.
"""

import shlex
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from hyperalign.embed.declaring import declare, to_toml, toml_lines
from hyperalign.embed.streams import is_command
from hyperalign.embed.zoo import Limits, Range, find_encoder, load_zoos
from hyperalign.request import SearchConfig
from hyperalign.run import write_whole
from hyperalign.study.asked import StudyConfig, tuned
from hyperalign.study.findings import Findings, TrialRecord
from hyperalign.study.pairs import IMAGE, TEXT
from hyperalign.study.seats import BEGUN, ERROR, SEAT, TRIED, WORKER, counted, finished, is_gone
from hyperalign.study.tuning import training_of

__all__ = ["best_trials", "describe", "metric_names", "trial_in_words", "write_best"]


_STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
}
_NOT_FACTS = {SEAT, WORKER, ERROR, TRIED, BEGUN}


def metric_names(asked: StudyConfig) -> list[str]:
    """What the values of a trial are, with their units."""
    score = "score on validation / %"
    if asked.over == "pairs":
        return [score, "picture and caption / GFLOP"][: len(asked.objectives)]
    return [f"mean {score}", "search / TFLOP"][: len(asked.objectives)]


def describe(study: optuna.Study, asked: StudyConfig, *, stopped: str = "") -> Findings:
    """Everything that a table or a page shows of a study.

    Args:
        study: The study.
        asked: What it is asked for.
        stopped: Why no further trial was begun.
    """
    trials = counted(study)
    records = [_trial_record(trial) for trial in trials]
    gone = [trial for trial in study.get_trials(deepcopy=False, states=(TrialState.FAIL,)) if is_gone(trial)]
    names = [record["state"] for record in records]
    return {
        "objectives": metric_names(asked),
        "directions": [direction.name.lower() for direction in study.directions],
        "n_trials": {state: names.count(state) for state in sorted(set(names))},
        "trials": records,
        "n_given_back": len(gone),
        "best": [trial.number for trial in best_trials(study)],
        "history": _history(trials) if len(asked.objectives) == 1 else [],
        "importances": _importances(study),
        "scales": _scales(trials),
        "spent_tflop": _spent(records),
        "stopped": stopped,
    }


def best_trials(study: optuna.Study) -> list[FrozenTrial]:
    """The best trial within all limits; of two objectives the Pareto front, from the highest score on."""
    done = [trial for trial in counted(study) if trial.state == TrialState.COMPLETE and _is_feasible(trial)]
    if len(study.directions) == 1:
        return [max(done, key=lambda trial: (trial.value, -trial.number))] if done else []
    front = [one for one in done if not any(_dominates(other.values, one.values) for other in done)]
    return sorted(front, key=lambda trial: (-trial.values[0], trial.values[1], trial.number))


def trial_in_words(trial: FrozenTrial, best: Sequence[FrozenTrial]) -> str:
    """One line for whoever waits."""
    name, setting = f"trial {trial.number}", trial.user_attrs.get("setting", "")
    took = f", {trial.duration.total_seconds():.1f} s" if trial.duration else ""
    if trial.state == TrialState.FAIL:
        return f"{name} failed: {setting}: {trial.user_attrs.get(ERROR, '')}"
    if trial.state == TrialState.PRUNED:
        return f"{name} pruned: {setting}{took}"
    values = " at ".join(f"{value:.4g}" for value in trial.values)
    one = len(best) == 1 and len(trial.values) == 1
    last = f"; the best is {best[0].value:.4g} of trial {best[0].number}" if one else ""
    return f"{name}: {setting}: {values}{took}{last}"


def write_best(folder: Path, trial: FrozenTrial, asked: StudyConfig, config: SearchConfig) -> str:
    """Write what repeats a trial beside the study, and give the command.

    Data that is a command is no part of the file: whoever repeats the trial sees it and types it, see `embed.streams`.

    Args:
        folder: Of the study.
        trial: Which.
        asked: What the study is asked for.
        config: Its configuration.

    Returns:
        As in `hyperalign search --config RUN/trial-7.toml`.
    """
    path = folder / f"trial-{trial.number}.toml"
    if asked.over == "pairs":
        specs = load_zoos(config.zoo)
        both = [find_encoder(specs, str(trial.params[name])) for name in (IMAGE, TEXT)]
        zoo = folder / f"trial-{trial.number}-zoo.toml"
        write_whole(zoo, "\n".join(declare(spec) for spec in both).encode())
        config = replace(config, zoo=(str(zoo),), limits=Limits(latency_ms=None))
        tables: dict[str, Mapping[str, Any]] = {}
    else:
        tables = {tuned(config).table: training_of(asked, config, trial.params)}
    write_whole(path, _config_file(config, tables, f"trial {trial.number} of {folder.name}").encode())
    typed = f" --data {shlex.quote(config.data)}" if is_command(config.data) else ""
    return f"hyperalign search --config {path}{typed}"


def _trial_record(trial: FrozenTrial) -> TrialRecord:
    values = trial.values if trial.state == TrialState.COMPLETE else None
    facts = {name: value for name, value in trial.user_attrs.items() if name not in _NOT_FACTS}
    record: TrialRecord = {
        "number": trial.number,
        "state": _STATES[trial.state],
        "values": None if values is None else [float(value) for value in values],
        "params": dict(trial.params),
        "facts": facts,
        "curve": [(int(step), float(score)) for step, score in sorted(trial.intermediate_values.items())],
        "seconds": None if trial.duration is None else round(trial.duration.total_seconds(), 3),
    }
    if trial.constraints:
        record["constraints"] = {name: float(value) for name, value in trial.constraints.items()}
    if ERROR in trial.user_attrs:
        record["error"] = str(trial.user_attrs[ERROR])
    return record


def _is_feasible(trial: FrozenTrial) -> bool:
    return all(value <= 0 for value in trial.constraints.values())


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether values are no worse in score and cost, and better in one of them."""
    return one[0] >= other[0] and one[1] <= other[1] and tuple(one) != tuple(other)


def _history(trials: Sequence[FrozenTrial]) -> list[tuple[int, float]]:
    best, found = float("-inf"), []
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE and _is_feasible(trial)]
    for trial in sorted(done, key=lambda trial: (trial.datetime_complete, trial.number)):
        best = max(best, trial.values[0])
        found.append((trial.number, float(best)))
    return found


def _importances(study: optuna.Study) -> dict[str, float]:
    """How much of the score each parameter explains; nothing where too few trials say so."""
    done = [trial for trial in finished(study) if trial.state == TrialState.COMPLETE]
    if len(done) < 4 or len({trial.values[0] for trial in done}) < 2:
        return {}
    two = len(study.directions) > 1
    try:
        with warnings.catch_warnings():  # of a target that is named it explains the low values, and says so each time
            warnings.filterwarnings("ignore", message="PedAnovaImportanceEvaluator computes", category=UserWarning)
            target = (lambda trial: -trial.values[0]) if two else None
            found = optuna.importance.get_param_importances(study, target=target)
    except (ValueError, RuntimeError):  # no parameter that all trials have
        return {}
    return {name: round(float(share), 4) for name, share in found.items()}


def _scales(trials: Sequence[FrozenTrial]) -> dict[str, str]:
    """How each parameter was drawn."""
    drawn = {name: found for trial in trials for name, found in trial.distributions.items()}
    return {
        name: "choices" if hasattr(found, "choices") else "log" if found.log else "linear"
        for name, found in drawn.items()
    }


def _spent(records: Sequence[TrialRecord]) -> dict[str, float]:
    """TFLOP by what they went to."""
    spent = {"embedding": 0.0, "search": 0.0, "pruned": 0.0}
    for record in records:
        facts = record["facts"]
        embedding, all_of_it = facts.get("embedding / TFLOP", 0.0), facts.get("spent / TFLOP", 0.0)
        spent["embedding"] += embedding
        spent["pruned" if record["state"] == "pruned" else "search"] += max(all_of_it - embedding, 0.0)
    return {name: float(f"{value:.6g}") for name, value in spent.items()}


def _config_file(config: SearchConfig, tables: Mapping[str, Mapping[str, Any]], title: str) -> str:
    """A configuration file for `hyperalign search`: what differs from the defaults."""
    plain, lines = SearchConfig(), [f"# {title}"]
    words = {"methods": "method"}
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name in ("limits", "train", "baseline", "baseline_both", "canonical", "exhaustive", "max_minutes"):
            continue
        if field.name == "data" and is_command(value):
            continue
        if value is not None and (value != getattr(plain, field.name) or field.name in ("zoo", "data", "seed")):
            lines.append(f"{words.get(field.name, field.name)} = {to_toml(_joined(field.name, value))}")
    lines += [f"{word} = {to_toml(text)}" for word, text in _limit_words(config.limits).items()]
    lines.append("exhaustive = true")
    given = {name: dict(getattr(config, name)) for name in ("train", "baseline", "baseline_both", "canonical")}
    for name, table in {**given, **tables}.items():
        if table:
            lines += ["", f"[{name}]", *toml_lines(table)]
    return "\n".join(lines) + "\n"


def _joined(name: str, value: Any) -> Any:
    return ",".join(value) if name == "methods" else value


def _limit_words(limits: Limits) -> dict[str, str]:
    """Limits as they are typed."""
    places = {"image_params": "budget", "text_params": "text_budget", "pair_params": "pair_budget"}
    places |= {"gflops": "max_gflops", "latency_ms": "max_latency", "dim": "dim"}
    found = {word: _range_words(bound) for field, word in places.items() if (bound := getattr(limits, field))}
    return {**found, **({"license": ",".join(limits.licenses)} if limits.licenses else {})}


def _range_words(bound: Range) -> str:
    low, high = ("" if end is None else repr(end) for end in (bound.low, bound.high))
    return f"{low}:{high}"
