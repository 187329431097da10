"""Searches from Python: data frames in; tables, a page and a model out.

pairs = pandas.read_csv("pairs.csv")
found = hyperalign.search(pairs, budget="30M")
model = hyperalign.load(found.export("winner"))
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from hyperalign import pipeline
from hyperalign.config import place_words
from hyperalign.embed.consent import Written
from hyperalign.embed.frames import Frame, write_frame
from hyperalign.request import from_record
from hyperalign.run import Run, load_run
from hyperalign.show.page import write_page
from hyperalign.show.progress import on_stderr
from hyperalign.show.words import clean, flops
from hyperalign.use.dual import DualEncoder, open_pair
from hyperalign.use.export import export

__all__ = ["SearchResult", "open_result", "search"]

_RANGES = {"budget", "text_budget", "pair_budget", "max_gflops", "max_latency", "dim"}  # a number is as good as a text
_SHOWN = 10  # pairs in a notebook's cell
_COLUMNS = ("position", "rank", "image_encoder", "text_encoder", "method", "score", "score_low", "score_high", "p_best")


@dataclass(frozen=True, eq=False)
class SearchResult:
    """A finished search.

    Attributes:
        run: The run on disk.
    """

    run: Run

    @property
    def path(self) -> Path:
        """Folder of the run."""
        return self.run.path

    @property
    def leaderboard(self) -> pd.DataFrame:
        """One row for each pair, method and seed; the pairs of the method that answers by position."""
        return self.run.leaderboard

    @property
    def ledger(self) -> pd.DataFrame:
        """What it cost, line by line."""
        return self.run.ledger

    @property
    def answer(self) -> list[str]:
        """The winner, and who cannot be told from it, as sentences."""
        return list(self.run.result["answer"])

    @property
    def winner(self) -> "pd.Series[Any]":
        """The row of the first pair of the method that answers; its name is `IMAGE+TEXT`."""
        row = self._own().iloc[0]
        return row.rename(f"{row['image_encoder']}+{row['text_encoder']}")

    def model(
        self,
        pair: str | int | None = None,
        *,
        method: str | None = None,
        device: str | None = None,
        trust_code: bool = False,
    ) -> DualEncoder:
        """A pair as a model: the winner, or any by its name or position."""
        return open_pair(self.path, pair, method=method, device=device, trust_code=trust_code)

    def export(self, to: str | Path, pair: str | int | None = None, **options: Any) -> Path:
        """Write a pair as a folder that runs by itself; the winner, or any by its name or position.

        Args:
            to: Folder to write; must not be there, or be empty.
            pair: `IMAGE+TEXT`, or its position in the table.
            options: `method`, `with_weights`, `format`, `zoo` and `trust_code` of `hyperalign.export`.
        """
        return export(self.path, to, pair, **options)

    def __repr__(self) -> str:
        """What was found, in words."""
        rows = self._own()[[*_COLUMNS]].head(_SHOWN).to_string(index=False, float_format="%.2f")
        return "\n".join(
            [*map(clean, self.answer), "", "\n".join(map(clean, rows.splitlines())), "", f"The run is in {self.path}"]
        )

    def _repr_html_(self) -> str:
        """The same for a notebook; names are text and nothing else."""
        table = (
            self._own()[[*_COLUMNS]]
            .head(_SHOWN)
            .to_html(index=False, escape=True, border=0, float_format="{:.2f}".format)
        )
        said = "".join(f"<p>{escape(clean(sentence))}</p>" for sentence in self.answer)
        totals = self.run.result["totals"]
        cost = f"{flops(totals['search_flops'])} for the search, {flops(totals['all_flops'])} for all that ran"
        return f"{said}{table}<p>{escape(cost)}; the run is in <code>{escape(clean(self.path))}</code></p>"

    def _own(self) -> pd.DataFrame:
        """Rows of the method that answers, by position."""
        board = self.run.leaderboard
        own: pd.DataFrame = board[board["method"] == self.run.result["method"]]
        return own.sort_values("position", kind="stable")


def search(
    data: str | Path | Frame = "scenes",
    *,
    zoo: str | Path | Sequence[str | Path] = "embedded",
    cache_dir: str | Path | None = None,
    out: str | Path | None = None,
    quiet: bool = False,
    **words: Any,
) -> SearchResult:
    """Rank every pair of encoders within limits, and keep the run.

    Args:
        data: What `--data` takes, or a data frame with a column of pictures (paths, PIL pictures, bytes) and one of
            captions, called `image` and `caption` or as in a table.
        zoo: Names of shipped zoos or paths of zoo files.
        cache_dir: Where embeddings are kept; `$HYPERALIGN_CACHE`, else ./cache.
        out: Where runs are kept; `$HYPERALIGN_REPORTS`, else ./reports.
        quiet: Show no progress.
        words: The options of `hyperalign search`, with underscores: `budget="30M"`, `max_latency="20"`,
            `method="ape,hypernet"`, `steps=150`, `seed=1` and so on.

    Raises:
        ValueError: If an option is unknown or of no use; the sentence says which and what to do.
        FileNotFoundError: If data, a zoo or a checkpoint is missing.
    """
    cache = Path(cache_dir or os.environ.get("HYPERALIGN_CACHE") or "cache")
    runs = Path(out or os.environ.get("HYPERALIGN_REPORTS") or "reports")
    source = Written(data) if isinstance(data, str | Path) else str(write_frame(data, cache / ".frames"))
    zoos = [zoo] if isinstance(zoo, str | Path) else list(zoo)
    ceiling = words.pop("ceiling", None) or ()
    ceiling = ceiling.split(",") if isinstance(ceiling, str) else ceiling
    given = {name: _typed(name, value) for name, value in words.items() if value is not None}
    own = {"zoo": zoos, "ceiling": [ceiling] if isinstance(ceiling, Path) else list(ceiling)}
    marked = {name: tuple(Written(one) for one in names) for name, names in own.items()}
    config = from_record(place_words({**given, "data": source, **marked}))
    with on_stderr(quiet=quiet) as display:
        path = pipeline.search(config, cache_dir=cache, out=runs, progress=display.progress, say=display.say)
    write_page(load_run(path))
    return open_result(path)


def open_result(run: str | Path) -> SearchResult:
    """A finished run as `search` returns it.

    Raises:
        FileNotFoundError: If the folder is no run.
        ValueError: If the run was cut short.
    """
    return SearchResult(load_run(Path(run)))


def _typed(name: str, value: Any) -> Any:
    """An option as it would be typed."""
    if name in _RANGES and isinstance(value, int | float):
        return f"{value:f}" if isinstance(value, float) else str(value)
    return str(value) if isinstance(value, Path) else value
