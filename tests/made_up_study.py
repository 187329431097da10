"""A study's record that was made up: no trial of it was run."""

import json
from pathlib import Path
from typing import Any

from hyperalign.study.kept import FORMAT, RECORD

__all__ = ["ATTACKS", "made_up_study"]

ATTACKS = ("<script>alert(1)</script>", "'\"><img src=x onerror=alert(1)>", "=1+1</script><script>alert(2)</script>")


def made_up_study(folder: Path, n_trials: int = 12, *, objectives: int = 1, **changes: Any) -> dict[str, Any]:
    """Write `study.json`: every third trial is pruned, the fifth failed, the last is the best.

    Args:
        folder: Made if it is not there.
        n_trials: How many.
        objectives: 1, or 2 for a front.
        changes: Keys of the record that are other than usual.
    """
    trials = [_trial(number, objectives) for number in range(n_trials)]
    done = [trial for trial in trials if trial["values"]]
    best = (
        [trial["number"] for trial in done[-1:]] if objectives == 1 else [trial["number"] for trial in reversed(done)]
    )
    states = [trial["state"] for trial in trials]
    record: dict[str, Any] = {
        "format": FORMAT,
        "version": "0.1.0",
        "name": "made-up",
        "storage": "sqlite",
        "configuration": {"data": "pairs.csv"},
        "asked": {"over": "training", "sampler": "tpe", "trials": n_trials},
        "inputs": "0",
        "status": "finished",
        "objectives": ["mean score on validation / %", "search / TFLOP"][:objectives],
        "directions": ["maximize", "minimize"][:objectives],
        "history": [],
        "n_trials": {state: states.count(state) for state in sorted(set(states))},
        "trials": trials,
        "n_given_back": 0,
        "best": best,
        "importances": {"decoy": 0.25, "learning_rate": 0.75},
        "scales": {"learning_rate": "log", "decoy": "choices", "batch_size": "choices"},
        "spent_tflop": {"search": 1.5},
        "stopped": "",
        **changes,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECORD).write_text(json.dumps(record), encoding="utf-8")
    return record


def _trial(number: int, objectives: int) -> dict[str, Any]:
    state = "failed" if number == 5 else "pruned" if number % 3 == 1 else "complete"
    values = [10.0 + number, 0.1 * (1 + number)][:objectives] if state == "complete" else None
    trial: dict[str, Any] = {"number": number, "state": state, "values": values, "curve": [], "seconds": 1.5}
    trial["params"] = {"batch_size": 64 * 2 ** (number % 3), "learning_rate": 1e-4 * (1 + number)}
    trial["params"]["decoy"] = ATTACKS[number % 3]
    trial["facts"] = {"left at": "64 + 64 pictures"} if state == "pruned" else {}
    return {**trial, "error": f"RuntimeError: {ATTACKS[1]}"} if state == "failed" else trial
