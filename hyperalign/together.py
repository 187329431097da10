"""A search done by several processes: what its first one asks of the others.

Embedding is cut into shards (see `prepare`), the baseline into parts of pairs that know nothing of each other. The
hypernetwork takes seconds where these take hours: the first process trains it alone, on the same batches as ever, so
that no negatives need be gathered and the table is the one that a process by itself makes.
"""

import secrets
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from hyperalign.candidates import Candidates
from hyperalign.embed.locks import make_folder
from hyperalign.processes import Crew
from hyperalign.shares import cut_evenly
from hyperalign.solve import Part, Workbench, train_part

__all__ = ["begin_together", "division_in_words", "split_note", "train_together"]


def division_in_words(n_processes: int) -> list[str]:
    """Who does what, for the person who waits; nothing where there is nobody to share with."""
    if n_processes == 1:
        return []
    return [
        f"{n_processes} processes: each embeds its share of the shards and trains its share of the baseline's pairs; "
        "the hypernetwork is trained by the first alone, so no negatives are gathered"
    ]


def split_note(n_processes: int) -> list[str]:
    """The same for the notes of a run, and what its seconds mean."""
    if n_processes == 1:
        return []
    return [
        f"{n_processes} processes shared the embedding and the baseline's pairs, whose seconds are added up over them; "
        "the hypernetwork was trained in one process, and no negatives were gathered"
    ]


def begin_together(crew: Crew, candidates: Candidates, cache_dir: Path) -> None:
    """Tell the others which encoders there are, and make sure that all see one cache.

    Raises:
        ValueError: With the sentence of a process that sees another cache, or cannot open what this one has opened.
    """
    if crew.size == 1:
        return
    mark = cache_dir / ".locks" / f"launch-{secrets.token_hex(8)}"
    make_folder(mark.parent)
    mark.touch()
    try:
        crew.order({"do": "begin", "mark": mark.name, **_names(candidates)})
        crew.collect({})
    finally:
        mark.unlink(missing_ok=True)


def train_together(
    crew: Crew, candidates: Candidates, deadline: float | None, bench: Workbench, parts: Sequence[Part]
) -> None:
    """Cut parts of the baseline into a share for each process, and train this one's; each is kept when it is done."""
    if crew.size == 1 or len(parts) < 2:
        return
    grid, run = bench.prepared.train, bench.run
    costs = [float(sum(grid.images[i].shape[1] * grid.texts[j].shape[1] for i, j in part.pairs)) for part in parts]
    shares = [[parts[k]._asdict() for k in cut] for cut in cut_evenly(costs, crew.size)]
    left = None if deadline is None else max(0.0, deadline - time.perf_counter())
    pairs = [list(pair) for pair in candidates.pair_indices()]
    words = {"do": "train", "run": str(run.resolve()), "pairs": pairs, "seconds": left, "shares": shares}
    canonical = asdict(bench.recipe.canonical)  # memory may have changed what was asked
    crew.order({**words, "canonical": canonical, **_names(candidates)})
    for part in shares[crew.rank]:
        train_part(Part(**part), bench)
    total = len(parts)

    def look() -> None:
        bench.progress(
            "baseline, parts by all processes", total - sum(not _is_kept(run, part) for part in parts), total
        )

    crew.collect({}, look)


def _is_kept(run: Path, part: Part) -> bool:
    return (run / "stages" / f"{part.name}.json").is_file()


def _names(candidates: Candidates) -> dict[str, list[str]]:
    return {
        "images": [spec.name for spec in candidates.images],
        "texts": [spec.name for spec in candidates.texts],
    }
