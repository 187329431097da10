"""What a measurement gives: sheets of plain rows, whose column names carry the unit.

A column ends with `flops`, `seconds`, `bytes`, `per_second`, `ratio`, `share` or `score`, or is a word or a count; the
terminal and the page read the unit off the name, and JSON keeps the bare number.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from hyperalign.request import SearchConfig

__all__ = ["Asked", "Sheet"]

Progress = Callable[[str, int, int], None]
Say = Callable[[str], None]


class Sheet(NamedTuple):
    """One table of a measurement.

    Attributes:
        title: What was measured, in words.
        rows: Plain values by column; every row has the columns of the first.
        notes: What a reader must know to judge the figures.
    """

    title: str
    rows: Sequence[Mapping[str, Any]]
    notes: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a measurement is asked for.

    Attributes:
        config: Encoders, data and settings, as a search has them.
        cache_dir: Where embeddings are kept.
        out: Where runs are kept.
        n_seeds: How often whatever is drawn is drawn anew: seeds `config.seed` and those after it.
        shape: (N, M) of a synthetic grid, or of the part of a zoo; None for the encoders as they are.
        n_items: Pictures that a cost is computed for.
        progress: Told `(stage, done, total)`.
        say: Told sentences meanwhile.
    """

    config: SearchConfig
    cache_dir: Path
    out: Path
    n_seeds: int = 3
    shape: tuple[int, int] | None = None
    n_items: int | None = None
    progress: Progress
    say: Say

    def seeds(self) -> range:
        """The seeds to use."""
        return range(self.config.seed, self.config.seed + self.n_seeds)
