"""Two encoders that were trained together, scored on the same test items: a ceiling for what a connector can reach.

They take no part in the order. Their one row of the leaderboard has the method `ceiling`, no chance of being the best,
and nothing that was trained here.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from hyperalign.align.solution import Solution
from hyperalign.board import evaluate
from hyperalign.candidates import Candidates
from hyperalign.embed.data import Dataset
from hyperalign.embed.identity import settle
from hyperalign.embed.zoo import Pair, load_zoo
from hyperalign.grids import Prepared, open_grid
from hyperalign.ledger import Line
from hyperalign.prepare import Job, embedding_jobs, fill_cache
from hyperalign.record import CEILING
from hyperalign.solve import Method, Solved

__all__ = ["Ceiling", "open_ceiling", "score_ceiling"]

Progress = Callable[[str, int, int], None]


class Ceiling(NamedTuple):
    """What a model that was trained as a whole reaches.

    Attributes:
        table: One row, `LEADERBOARD_COLUMNS`.
        lines: What embedding cost.
        sentence: The score in words.
        notes: What was left out or is a miss.
    """

    table: pd.DataFrame
    lines: list[Line]
    sentence: str
    notes: list[str]


def score_ceiling(  # noqa: PLR0913 - of what, on what, and how it is embedded
    zoo: str,
    dataset: Dataset,
    *,
    cache_dir: Path,
    progress: Progress,
    autocast: bool,
    strict: bool,
    seed: int,
) -> Ceiling:
    """Score the two encoders of a zoo, joined by nothing, on the test items of retrieval.

    Args:
        zoo: A zoo file with one image and one text encoder of the same width.
        dataset: Of the search.
        cache_dir: Where embeddings are kept.
        progress: Told `(stage, done, total)`.
        autocast: Embed in bfloat16.
        strict: Stop at a picture that cannot be read.
        seed: Of the interval.

    Raises:
        ValueError: If the zoo holds something else than such a pair.
    """
    candidates, jobs = open_ceiling(zoo, dataset, cache_dir=cache_dir, autocast=autocast)
    entries, lines, notes = fill_cache(jobs, cache_dir=cache_dir, progress=progress, autocast=autocast)
    grid = open_grid(candidates, dataset.splits["test"], entries, notes, strict=strict, of=dataset.name)
    width = int(grid.images[0].shape[1])
    solution = Solution(
        method=CEILING,
        sides="text",
        pairs=[(0, 0)],
        weights=[torch.eye(width)],
        biases=[torch.zeros(width)],
        images=[None],
        texts=[None],
    )
    solved = Solved(method=Method(CEILING, "text", seed), solution=solution, validation=np.array([np.nan]), lines=[])
    prepared = Prepared(train=grid, val=grid, test=grid, labels=None, notes=notes)
    tested = evaluate(solved, prepared, candidates, task="retrieval", free=None, seed=seed)
    table = tested.table.assign(p_best=np.nan, n_train=0)
    return Ceiling(table, lines, _in_words(table, candidates.pairs), notes)


def open_ceiling(
    zoo: str, dataset: Dataset, *, cache_dir: Path, autocast: bool, ask_hub: bool = True
) -> tuple[Candidates, list[Job]]:
    """The two encoders of a zoo and what must be embedded of the test items; mistakes come to light, nothing is done.

    Args:
        zoo: As `score_ceiling` takes it, and the others too.
        dataset: Of the search.
        cache_dir: Where embeddings are kept.
        autocast: Embed in bfloat16.
        ask_hub: Whether a hub may be asked for the commit of weights.

    Raises:
        FileNotFoundError: If there is no such file, or no such weights.
        ValueError: If the zoo holds something else than such a pair.
    """
    candidates = _pair_of(zoo, cache_dir)
    jobs = embedding_jobs(candidates, dataset, None, cache_dir=cache_dir, autocast=autocast, ask_hub=ask_hub)
    return candidates, [job for job in jobs if job.part == "test"]


def _pair_of(zoo: str, cache_dir: Path) -> Candidates:
    """The two encoders of a zoo file."""
    specs = [settle(spec, memory=cache_dir) for spec in load_zoo(zoo)]
    images, texts = ([spec for spec in specs if spec.modality == side] for side in ("image", "text"))
    if len(images) != 1 or len(texts) != 1:
        raise ValueError(
            f"a ceiling is one image and one text encoder that were trained together, and {zoo} declares {len(images)} "
            f"and {len(texts)}; give each model a zoo file of its own"
        )
    if images[0].embed_dim != texts[0].embed_dim:
        raise ValueError(
            f"encoders that were trained together give rows of one width, and those of {zoo} give "
            f"{images[0].embed_dim} and {texts[0].embed_dim} numbers; they are candidates, not a ceiling"
        )
    pair = Pair(images[0], texts[0])
    return Candidates(images=(images[0],), texts=(texts[0],), pairs=(pair,), latencies={}, counts=())


def _in_words(table: pd.DataFrame, pairs: Sequence[Pair]) -> str:
    row = table.iloc[0]
    return (
        f"The ceiling: {pairs[0].name}, trained together elsewhere, scores {row['score']:.1f} (95 % interval "
        f"{row['score_low']:.1f} to {row['score_high']:.1f}) on the same test items and takes no part in the order."
    )
