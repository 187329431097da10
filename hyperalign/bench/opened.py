"""What a measurement was asked for as rows: encoders, and the grids of all splits."""

from typing import NamedTuple

from hyperalign.bench.sheet import Asked
from hyperalign.candidates import Candidates
from hyperalign.grids import Prepared
from hyperalign.pipeline import ask, prepare_rows

__all__ = ["Opened", "open_bench"]


class Opened(NamedTuple):
    """What measurements work on.

    Attributes:
        candidates: Encoders and pairs within the limits.
        prepared: Their rows.
    """

    candidates: Candidates
    prepared: Prepared


def open_bench(asked: Asked) -> Opened:
    """Find encoders and data, and embed what is not in the cache yet."""
    config, cache_dir = asked.config, asked.cache_dir
    found = ask(config, cache_dir=cache_dir, progress=asked.progress)
    for sentence in found.candidates.counts:
        asked.say(sentence)
    prepared, _ = prepare_rows(found, config, cache_dir, asked.progress)
    return Opened(found.candidates, prepared)
