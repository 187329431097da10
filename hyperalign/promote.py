"""Promotion: samples are embedded for everyone, and everything only for the pairs that could still win.

The pictures of each split stand in one fixed, seeded order, and a sample is the first of them with all their captions:
each sample holds the one before, and the cache keeps its rows for whoever embeds the rest. Pairs are judged by the
closed form on the training sample, scored on the sample of validation. The residual hypernetwork on these samples
orders pairs no better on the bench (Spearman with the order after all pictures, over samples of 256 and 512: 0.92 for
both) at three times the time. What it all saves is measured by `bench.promotion`.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hyperalign.align.canonical import CanonicalConfig
from hyperalign.align.canonical_grid import build_canonical_grid
from hyperalign.align.closed_form import solve_closed_form
from hyperalign.align.grid import Grid, PairIndex
from hyperalign.candidates import Candidates
from hyperalign.embed.data import Dataset, Split, take
from hyperalign.embed.zoo import EncoderSpec
from hyperalign.grids import open_grid
from hyperalign.ladder import PROMOTION, Encoders, Items, Ladder, Prices, PromotionConfig, climb, encoders_of
from hyperalign.ledger import Line
from hyperalign.machine import peak_bytes
from hyperalign.packing import restrict
from hyperalign.prepare import SPLITS, Job, count_missing, fill_cache
from hyperalign.processes import ALONE, Crew
from hyperalign.rank.resampling import Contributions, per_image
from hyperalign.scoring import retrieval, scoring_flops
from hyperalign.solve import pairs_in_words

__all__ = [
    "Judged",
    "Samples",
    "count_items",
    "draw_samples",
    "find_prices",
    "is_worthwhile",
    "judge",
    "most_flops",
    "narrow",
    "promote",
    "promotion_record",
    "sampled",
    "saved_in_words",
    "saved_share",
]

Progress = Callable[[str, int, int], None]

_TOKENS = 16  # of a caption, where a text encoder's cost is not declared: 2 FLOP for each parameter and token


class Samples(NamedTuple):
    """The order in which pictures are embedded, and how many on each rung.

    Attributes:
        train: (n_train,) a permutation of the training pictures.
        val: (n_val,) a permutation of the pictures of validation.
        items: What each rung embeds, growing.
    """

    train: NDArray[np.int64]
    val: NDArray[np.int64]
    items: tuple[Items, ...]

    def pictures(self, items: Items) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The training pictures and those of validation that a rung embeds, ascending."""
        return np.sort(self.train[: items.n_train]), np.sort(self.val[: items.n_val])


class Judged(NamedTuple):
    """The closed form on a sample.

    Attributes:
        contributions: What each picture of validation adds to the score of each pair.
        setup_flops: Of the closed form.
        setup_seconds: Of the same.
        scoring_flops: Of the scores.
        scoring_seconds: Of the same.
    """

    contributions: Contributions
    setup_flops: int
    setup_seconds: float
    scoring_flops: int
    scoring_seconds: float


def is_worthwhile(
    candidates: Candidates,
    dataset: Dataset,
    jobs: Sequence[Job],
    *,
    cache_dir: Path,
    config: PromotionConfig = PROMOTION,
) -> bool:
    """Whether embedding everything is dear, some of it is still to be done, and there is anything to choose between.

    What an earlier promotion has left undone is enough for the next search to be promoted as well.
    """
    n_train = len(dataset.splits["train"].image_ids)
    if len(candidates.pairs) < 2 or n_train < config.least_pictures:
        return False
    every = sum(_price(job.spec) * len(job.items) for job in jobs)
    if every < config.least_flops:
        return False
    return sum(_price(job.spec) * count_missing(job, cache_dir) for job in jobs) > config.rung_share * every


def find_prices(candidates: Candidates) -> Prices:
    """FLOPs of one picture and of one caption, encoder by encoder; ready rows cost nothing."""
    images, texts = ([_price(spec) for spec in specs] for specs in (candidates.images, candidates.texts))
    return Prices(np.array(images), np.array(texts))


def draw_samples(
    train: NDArray[np.int64], val: NDArray[np.int64], *, seed: int, config: PromotionConfig = PROMOTION
) -> Samples:
    """Order the pictures and say how many each rung embeds.

    The samples end when validation is used up, since nothing more can be told apart then, or when another would hold
    more than half of the training pictures.

    Args:
        train: (n_captions,) owner of each training caption.
        val: The same for validation.
        seed: Of the order.
        config: Sizes of the samples.
    """
    counts = [np.bincount(owner) for owner in (train, val)]
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(len(count)).astype(np.int64) for count in counts]
    so_far = [np.concatenate([[0], count[order].cumsum()]) for count, order in zip(counts, orders, strict=True)]
    n_train, n_val = (len(order) for order in orders)
    size, items = max(config.first, round(config.first_share * n_train)), list[Items]()
    while size <= n_train / 2 and (not items or items[-1].n_val < n_val):
        judges = min(size, n_val)
        n_captions = int(so_far[0][size] + so_far[1][judges])
        items.append(Items(size, judges, size + judges, n_captions))
        size *= config.growth
    return Samples(orders[0], orders[1], tuple(items))


def judge(
    train: Grid,
    val: Grid,
    pairs: Sequence[PairIndex],
    canonical: CanonicalConfig,
) -> Judged:
    """Make the connectors of some pairs in closed form on one grid and score them on another."""
    start = time.perf_counter()
    solution = restrict(solve_closed_form(build_canonical_grid(train, canonical)), pairs)
    made = time.perf_counter()
    found = retrieval(solution, val, ks=(1,))
    t2i, i2t = (
        np.stack([side[:, 0] for side in sides]) for sides in zip(*((h.t2i, h.i2t) for h in found), strict=True)
    )
    contributions, flops = per_image(t2i, i2t, val.owner), scoring_flops(solution, val)
    return Judged(contributions, solution.setup_flops, made - start, flops, time.perf_counter() - made)


def promote(  # noqa: PLR0913 - a search, and how its samples are judged
    candidates: Candidates,
    dataset: Dataset,
    jobs: Sequence[Job],
    canonical: CanonicalConfig,
    *,
    label: str,
    seed: int,
    cache_dir: Path,
    progress: Progress,
    strict: bool = False,
    autocast: bool = False,
    config: PromotionConfig = PROMOTION,
    crew: Crew = ALONE,
) -> tuple[Ladder, list[Line]]:
    """Embed samples until it is known who needs everything.

    Args:
        candidates: The encoders and pairs.
        dataset: Pictures and captions.
        jobs: Everything that an exhaustive search would embed.
        canonical: How the closed form is made.
        label: Whose account the judging is on, in the ledger.
        seed: Of the order of the pictures, and of the bootstrap.
        cache_dir: Where embeddings are kept.
        progress: Told `(stage, done, total)`.
        strict: Stop at a picture that cannot be read.
        autocast: Embed in bfloat16.
        config: Who stays.
        crew: Processes that embed together.

    Returns:
        The ladder, and what its samples cost: embedding, set-up and validation of each rung.
    """
    splits = [dataset.splits[name] for name in SPLITS[:2]]
    samples = draw_samples(splits[0].owner, splits[1].owner, seed=seed, config=config)
    lines: list[Line] = []

    def look(items: Items, encoders: Encoders, pairs: Sequence[PairIndex]) -> Contributions:
        name = f"rung {len(lines) // 3 + 1}, {items.n_train:,} + {items.n_val:,} pictures"
        progress(name, 0, 1)
        start, chosen = time.perf_counter(), narrow(candidates, pairs)
        wanted = list(zip(splits, samples.pictures(items), strict=True))
        own = [one for split, pictures in wanted for one in sampled(jobs, chosen, split, pictures)]
        entries, booked, _ = fill_cache(own, cache_dir=cache_dir, progress=progress, autocast=autocast, crew=crew)
        grids = [
            open_grid(chosen, take(split, pictures), entries, [], strict=strict, of=dataset.name)
            for split, pictures in wanted
        ]
        lines.append(_embedding_line(name, encoders, own, booked, time.perf_counter() - start))
        found = judge(grids[0], grids[1], chosen.pair_indices(), canonical)
        words, peak = f"{name}: {pairs_in_words(len(pairs))}", peak_bytes()
        lines.append(Line("set-up", label, f"{words} in closed form", found.setup_flops, found.setup_seconds, peak))
        lines.append(Line("validation", label, words, found.scoring_flops, found.scoring_seconds, peak))
        progress(name, 1, 1)
        return found.contributions

    whole = count_items(dataset.splits[name] for name in SPLITS)
    ladder = climb(candidates.pair_indices(), find_prices(candidates), samples.items, whole, look, config, seed=seed)
    return ladder, lines


def most_flops(candidates: Candidates, samples: Samples, whole: Items, config: PromotionConfig = PROMOTION) -> float:
    """What embedding with promotion costs if every rung spends all it may and the dearest pair wins; it is often less.

    Leaders that change from rung to rung can make it a little more.
    """
    prices, pairs = find_prices(candidates), candidates.pair_indices()
    everyone = encoders_of(pairs)
    every, first = prices.flops(everyone, whole), samples.items[0] if samples.items else whole
    rest = max(prices.flops(encoders_of([pair]), whole, since=first) for pair in pairs)
    shares = config.rung_share * (len(samples.items) - 1) + config.final_share
    return min(every, prices.flops(everyone, first) + rest + shares * every)


def narrow(candidates: Candidates, pairs: Sequence[PairIndex]) -> Candidates:
    """Some pairs and their encoders, in the order in which they were."""
    images, texts = encoders_of(pairs)
    chosen = set(pairs)
    return replace(
        candidates,
        images=tuple(candidates.images[i] for i in images),
        texts=tuple(candidates.texts[j] for j in texts),
        pairs=tuple(
            pair for pair, index in zip(candidates.pairs, candidates.pair_indices(), strict=True) if index in chosen
        ),
    )


def count_items(splits: Iterable[Split]) -> Items:
    """All pictures and captions of some splits, of training, validation and test."""
    sizes = {split.name: (len(split.image_ids), len(split.captions)) for split in splits}
    n_pictures, n_captions = (sum(size[k] for size in sizes.values()) for k in range(2))
    return Items(sizes["train"][0], sizes["val"][0], n_pictures, n_captions)


def promotion_record(ladder: Ladder, candidates: Candidates, winner: PairIndex, dataset: Dataset) -> dict[str, Any]:
    """What promotion did, in plain values: rungs, and what embedding cost, the cache left aside."""
    whole = count_items(dataset.splits.values())
    alone = find_prices(candidates).flops(encoders_of([winner]), whole)
    rungs = [
        {
            "n_train": rung.items.n_train,
            "n_val": rung.items.n_val,
            "images": [candidates.images[i].name for i in rung.encoders[0]],
            "texts": [candidates.texts[j].name for j in rung.encoders[1]],
            "flops": rung.flops,
        }
        for rung in ladder.rungs
    ]
    return {
        "rungs": rungs,
        "images": [candidates.images[i].name for i in ladder.encoders[0]],
        "texts": [candidates.texts[j].name for j in ladder.encoders[1]],
        "all_flops": ladder.every_flops,
        "promoted_flops": ladder.flops,
        "winner_flops": alone,
        "saved_share": saved_share(ladder, alone),
    }


def saved_share(ladder: Ladder, winner_flops: float) -> float:
    """(all − promoted) / (all − winner alone): the share of the avoidable FLOPs that was avoided."""
    avoidable = ladder.every_flops - winner_flops
    return (ladder.every_flops - ladder.flops) / avoidable if avoidable > 0 else float("nan")


def saved_in_words(record: Mapping[str, Any]) -> str:
    """One sentence for the notes of a run."""
    sizes = ", ".join(
        f"{len(rung['images'])} + {len(rung['texts'])} encoders on {rung['n_train']:,} + {rung['n_val']:,} pictures"
        for rung in record["rungs"]
    )
    tera = {name: record[f"{name}_flops"] / 1e12 for name in ("all", "promoted", "winner")}
    return (
        f"promotion: samples of training and validation pictures were embedded for {sizes}, and everything for "
        f"{len(record['images'])} + {len(record['texts'])}; embedding took {tera['promoted']:.3g} TFLOP, everything "
        f"with everyone would take {tera['all']:.3g} and the winner alone {tera['winner']:.3g}, so "
        f"{100 * record['saved_share']:.1f} % of what could be saved was; pairs that left have no test score, and "
        "their order is that of the last sample they were judged on"
    )


def _price(spec: EncoderSpec) -> float:
    """FLOPs of one item; guessed from the parameters where a text encoder's is not declared."""
    if spec.loader == "rows":
        return 0.0
    if spec.gflops is None and spec.modality == "text":
        return 2.0 * _TOKENS * (spec.n_params or 0)
    return 1e9 * (spec.gflops or 0.0)


def sampled(jobs: Sequence[Job], candidates: Candidates, split: Split, pictures: NDArray[np.int64]) -> list[Job]:
    """The jobs of some encoders on some pictures of a split, and on the captions of these."""
    captions = np.flatnonzero(np.isin(split.owner, pictures))
    chosen = {spec.name for spec in (*candidates.images, *candidates.texts)}
    return [
        job._replace(some=pictures if job.spec.modality == "image" else captions)
        for job in jobs
        if job.part == split.name and job.spec.name in chosen
    ]


def _embedding_line(name: str, encoders: Encoders, jobs: Sequence[Job], booked: Sequence[Line], seconds: float) -> Line:
    """What one rung embedded, all encoders together."""
    flops = sum(line.flops for line in booked)
    n_rows = sum(job.n_wanted for job in jobs)
    words = (
        f"{name}, {len(encoders[0])} + {len(encoders[1])} encoders: {n_rows:,} rows, those of earlier rungs with them"
    )
    seconds = seconds if any(line.seconds for line in booked) else 0.0
    return Line("embedding", "", words, flops, seconds, peak_bytes(with_children=True))
