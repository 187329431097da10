"""Which measurements there are, and how one becomes a file that others can check.

A measurement is a module of this room with a function `measure(asked) -> list[Sheet]`; HyperCLIP's stand with it.
"""

import importlib
import time
from dataclasses import asdict
from typing import Any

from hyperalign.bench.sheet import Asked, Sheet
from hyperalign.machine import find_commits, find_hardware, find_versions, measure_matmul, peak_bytes

__all__ = ["MEASURES", "take"]

MEASURES = {
    "speed": "this machine: products, methods, embedding, memory, and the account of the method's authors",
    "grid": "a synthetic grid with planted truth",
    "scale": "what a search costs on so many pictures, computed",
    "poster": "best score against FLOPs for growing zoos, and by scale",
    "curve": "score against FLOPs, every method on it",
    "coordinates": "what a larger budget is better spent on: wider coordinates or longer training",
    "finalists": "choosing among polished pairs: what it costs, and how much better the choice is",
    "sweep": "batch and epochs of the baseline",
    "collapse": "thirty trainings that ought to go wrong",
    "intervals": "how often intervals hold the truth, and P(best)",
    "adoption": "each encoder left out and adopted",
    "index": "indexes of many pictures: how fast a query is, and what it finds",
    "proposals": "TPE and GP over pairs, against the promoted grid",
    "hyperclip": "HyperCLIP against its baseline on held-out class sets",
    "overhead": "training steps of the eight architectures without and with the hypernetwork",
    "promotion": "embedding samples first, against embedding everything",
}

_ELSEWHERE = {"hyperclip": "hyperalign.hyperclip.effect", "overhead": "hyperalign.hyperclip.eight"}


def take(name: str, asked: Asked) -> dict[str, Any]:
    """Take one measurement.

    Args:
        name: Of `MEASURES`.
        asked: What it is asked for.

    Returns:
        The sheets as plain records, with where, when and by which commit they were made.
    """
    start = time.perf_counter()
    module = _ELSEWHERE.get(name, f"hyperalign.bench.{name}")
    sheets: list[Sheet] = importlib.import_module(module).measure(asked)
    return {
        "measure": name,
        "about": MEASURES[name],
        "sheets": [sheet._asdict() for sheet in sheets],
        "configuration": asdict(asked.config),
        "n_seeds": asked.n_seeds,
        "shape": asked.shape,
        "commit": find_commits(),
        "versions": find_versions(),
        "hardware": find_hardware(),
        "matmul_flops_per_second": measure_matmul(size=1024),
        "wall_seconds": round(time.perf_counter() - start, 1),
        "peak_bytes": peak_bytes(),
    }
