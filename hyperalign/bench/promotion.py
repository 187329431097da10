"""What promotion saves: samples embedded first, against embedding everything with everyone.

Everything is embedded once, so that the order of an exhaustive search is known; promotion is then replayed over the
same rows under several orders of the pictures. What embedding costs is counted from the encoders' FLOPs and not from
what a cache happened to hold. A promoted winner's regret is what the exhaustive search's winner has more on the test
pictures, both as the exhaustive search scores them, so that the connectors are the same.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyperalign.align.grid import Grid, PairIndex, Picked
from hyperalign.bench.sheet import Asked, Sheet
from hyperalign.candidates import Candidates
from hyperalign.grids import Prepared, open_grids
from hyperalign.ladder import Encoders, Items, Ladder, Prices, climb, encoders_of
from hyperalign.pipeline import ask
from hyperalign.prepare import fill_cache
from hyperalign.promote import count_items, draw_samples, find_prices, judge, narrow, saved_share
from hyperalign.rank.metrics import recall
from hyperalign.rank.resampling import Contributions
from hyperalign.request import SearchConfig
from hyperalign.scoring import retrieval
from hyperalign.solve import Solved, Workbench, solve

__all__ = ["Replay", "measure", "part"]


def measure(asked: Asked) -> list[Sheet]:
    """Replay promotion over the seeds, beside the exhaustive search."""
    config = asked.config
    wanted = ask(config, cache_dir=asked.cache_dir, progress=asked.progress)
    entries, _, _ = fill_cache(
        wanted.jobs, cache_dir=asked.cache_dir, progress=asked.progress, autocast=config.autocast
    )
    prepared = open_grids(wanted.candidates, wanted.dataset, None, entries, strict=config.strict)
    replay = Replay(asked, wanted.candidates, prepared, count_items(wanted.dataset.splits.values()))
    ladders = {seed: replay.climb(seed) for seed in asked.seeds()}
    rows = [replay.row(seed, ladder) for seed, ladder in ladders.items()]
    words = f"{len(wanted.candidates.images)} + {len(wanted.candidates.texts)} encoders on {wanted.dataset.name}"
    return [
        Sheet(f"Promotion of {words}, seed by seed", [*rows, _mean(rows)], _NOTES),
        Sheet(f"Rungs under seed {config.seed}", replay.rungs(ladders[config.seed])),
    ]


_NOTES = (
    "saved: (all - promoted) / (all - winner alone), in FLOPs of embedding pictures and captions of all splits",
    "regret: test score of the exhaustive search's winner minus that of the promoted one, both as that search has them",
    "judging: closed form and scores on all samples; bytes: of the rows that are kept, as float16",
)


class Replay:
    """Promotion over rows that are all there."""

    def __init__(
        self, asked: Asked, candidates: Candidates, prepared: Prepared, whole: Items, prices: Prices | None = None
    ) -> None:
        """Search exhaustively once; prices that are not given are the encoders' own."""
        self.asked, self.config, self.candidates = asked, asked.config, candidates
        self.prepared, self.whole, self.prices = prepared, whole, prices or find_prices(candidates)
        self.pairs, self.judged_flops = candidates.pair_indices(), dict[int, int]()
        self.winners = dict[tuple[PairIndex, ...], PairIndex]()
        found = _solve(self.config, prepared, self.pairs, asked)
        self.validation, self.test = found.validation, _test_scores(found, prepared.test)

    def climb(self, seed: int) -> Ladder:
        """Promotion under one order of the pictures."""
        samples = draw_samples(self.prepared.train.owner, self.prepared.val.owner, seed=seed)
        self.judged_flops[seed] = 0

        def look(items: Items, encoders: Encoders, pairs: Sequence[PairIndex]) -> Contributions:
            grids = (self.prepared.train, self.prepared.val)
            train, val = (
                part(grid, encoders, pictures) for grid, pictures in zip(grids, samples.pictures(items), strict=True)
            )
            found = judge(train, val, narrow(self.candidates, pairs).pair_indices(), self.config.recipe().canonical)
            self.judged_flops[seed] += found.setup_flops + found.scoring_flops
            self.asked.progress(f"promotion, seed {seed}, rungs", samples.items.index(items) + 1, len(samples.items))
            return found.contributions

        return climb(self.pairs, self.prices, samples.items, self.whole, look, seed=seed)

    def winner(self, ladder: Ladder) -> PairIndex:
        """What the search says of those who stayed, as it would after promotion."""
        if len(ladder.pairs) == 1:
            return ladder.pairs[0]
        if ladder.pairs in self.winners:
            return self.winners[ladder.pairs]
        every = [np.arange(grid.n_images) for grid in (self.prepared.train, self.prepared.val)]
        train = part(self.prepared.train, ladder.encoders, every[0])
        val = part(self.prepared.val, ladder.encoders, every[1])
        left = Prepared(train=train, val=val, test=val, labels=None, notes=[])
        found = _solve(self.config, left, narrow(self.candidates, ladder.pairs).pair_indices(), self.asked)
        return self.winners.setdefault(ladder.pairs, ladder.pairs[int(found.validation.argmax())])

    def row(self, seed: int, ladder: Ladder) -> dict[str, Any]:
        """One line of the table."""
        winner = self.winner(ladder)
        alone = self.prices.flops(encoders_of([winner]), self.whole)
        best = int(self.validation.argmax())
        return {
            "seed": str(seed),
            "winner": f"{self.candidates.images[winner[0]].name} + {self.candidates.texts[winner[1]].name}",
            "saved_share": saved_share(ladder, alone),
            "regret_score": float(self.test[best] - self.test[self.pairs.index(winner)]),
            "rungs": len(ladder.rungs),
            "whole_encoders": f"{len(ladder.encoders[0])} + {len(ladder.encoders[1])}",
            "all_flops": ladder.every_flops,
            "promoted_flops": ladder.flops,
            "winner_flops": alone,
            "judging_flops": self.judged_flops[seed],
            "all_bytes": self._bytes(encoders_of(self.pairs), self.whole),
            "promoted_bytes": self._promoted_bytes(ladder),
        }

    def rungs(self, ladder: Ladder) -> list[dict[str, Any]]:
        """What each sample said."""
        rows = []
        for number, rung in enumerate(ladder.rungs, start=1):
            i, j = rung.pairs[int(rung.scores.argmax())]
            rows.append(
                {
                    "rung": str(number),
                    "training_pictures": rung.items.n_train,
                    "validation_pictures": rung.items.n_val,
                    "image_encoders": len(rung.encoders[0]),
                    "text_encoders": len(rung.encoders[1]),
                    "pairs": len(rung.pairs),
                    "embedding_flops": rung.flops,
                    "leader": f"{self.candidates.images[i].name} + {self.candidates.texts[j].name}",
                    "leader_score": float(rung.scores.max()),
                }
            )
        return rows

    def _promoted_bytes(self, ladder: Ladder) -> int:
        total, before = 0, _NOTHING
        for rung in ladder.rungs:
            total, before = total + self._bytes(rung.encoders, rung.items, before), rung.items
        return total + self._bytes(ladder.encoders, self.whole, before)

    def _bytes(self, encoders: Encoders, items: Items, since: Items | None = None) -> int:
        """Size of float16 rows."""
        since = since or _NOTHING
        widths = [
            sum(specs[k].embed_dim or 0 for k in index)
            for specs, index in zip((self.candidates.images, self.candidates.texts), encoders, strict=True)
        ]
        n_pictures, n_captions = items.n_pictures - since.n_pictures, items.n_captions - since.n_captions
        return 2 * (widths[0] * n_pictures + widths[1] * n_captions)


_NOTHING = Items(0, 0, 0, 0)


def _solve(config: SearchConfig, prepared: Prepared, pairs: Sequence[PairIndex], asked: Asked) -> Solved:
    """The answering method on some rows, nothing of it kept."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Workbench(
            prepared,
            pairs,
            config.recipe(),
            run=Path(folder),
            task="retrieval",
            progress=asked.progress,
            should_stop=lambda: False,
        )
        return solve(config.answering(), bench)


def _test_scores(solved: Solved, test: Grid) -> NDArray[np.float64]:
    return np.array([recall(hits, (1,))["score"] for hits in retrieval(solved.solution, test, ks=(1,))])


def part(grid: Grid, encoders: Encoders, pictures: NDArray[np.int64]) -> Grid:
    """Some encoders on some pictures, ascending, and their captions."""
    captions = np.flatnonzero(np.isin(grid.owner, pictures))
    return Grid(
        images=tuple(Picked(grid.images[i], pictures) for i in encoders[0]),
        texts=tuple(Picked(grid.texts[j], captions) for j in encoders[1]),
        owner=np.searchsorted(pictures, grid.owner[captions]).astype(np.int64),
        image_ok=grid.image_ok[list(encoders[0])][:, pictures],
        text_ok=grid.text_ok[list(encoders[1])][:, captions],
    )


def _mean(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A last line of means; words stay empty."""
    means = {
        name: "" if isinstance(value, str) else float(np.mean([row[name] for row in rows]))
        for name, value in rows[0].items()
    }
    return {**means, "seed": "mean"}
