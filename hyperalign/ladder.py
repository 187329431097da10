"""Who is worth embedding further: successive halving over samples. Pure numbers; nothing here embeds.

Successive halving (Jamieson & Talwalkar 2016, arXiv:1502.07943) with three changes. Who stays is decided by a paired
bootstrap over the pictures that pairs were judged on, and not by a fixed share. A rung may spend only so many FLOPs on
those who are not in the lead, so the dear ones must be likelier than the cheap ones. And who costs next to nothing
stays, since his leaving would save nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hyperalign.align.grid import PairIndex
from hyperalign.rank.resampling import Contributions, bootstrap, resample

__all__ = [
    "PROMOTION",
    "Encoders",
    "Items",
    "Judge",
    "Ladder",
    "Left",
    "Prices",
    "PromotionConfig",
    "Rung",
    "climb",
    "encoders_of",
]

Encoders = tuple[tuple[int, ...], tuple[int, ...]]  # indices of image and of text encoders, ascending


@dataclass(frozen=True, kw_only=True, slots=True)
class PromotionConfig:
    """When encoders leave; the one home of these defaults.

    All were chosen on validation but `rung_share`: it was lowered from 0.03 after a replay that showed test scores too,
    because of what it saves.

    Attributes:
        first: Training pictures of the first sample, as many of validation; more where `first_share` is more.
        first_share: The same as a share of the training pictures.
        growth: How many times as large each sample is as the one before.
        least_chance: A pair stays while it beats the leader in at least this share of the resamples.
        rung_share: What a further rung may cost for all who are not in the lead, as a share of embedding everything
            with everyone.
        final_share: The same for all that is left to embed after the last rung.
        free_share: An encoder that costs less than this share of everything does not leave.
        least_pictures: Training pictures below which a search does without promotion.
        least_flops: FLOPs of embedding everything with everyone below which it does, too.
    """

    first: int = 64
    first_share: float = 0.01
    growth: int = 2
    least_chance: float = 0.05
    rung_share: float = 0.02
    final_share: float = 0.01
    free_share: float = 0.001
    least_pictures: int = 2_000
    least_flops: float = 1e13

    def __post_init__(self) -> None:
        """Refuse values no ladder could have."""
        for name, low in (("first", 2), ("growth", 2), ("least_chance", 0), ("rung_share", 0), ("final_share", 0)):
            if not getattr(self, name) >= low:
                raise ValueError(f"{name} must be at least {low}, got {getattr(self, name)}")


PROMOTION = PromotionConfig()


class Items(NamedTuple):
    """How much is embedded, counted from the beginning.

    Attributes:
        n_train: Training pictures.
        n_val: Pictures of validation.
        n_pictures: Of all splits.
        n_captions: Of these pictures.
    """

    n_train: int
    n_val: int
    n_pictures: int
    n_captions: int


class Prices(NamedTuple):
    """FLOPs of embedding one item.

    Attributes:
        images: (N,) a picture.
        texts: (M,) a caption.
    """

    images: NDArray[np.float64]
    texts: NDArray[np.float64]

    def flops(self, encoders: Encoders, items: Items, since: Items | None = None) -> float:
        """What some encoders cost on some items, or from one amount of items to another."""
        n_pictures = items.n_pictures - (since.n_pictures if since else 0)
        n_captions = items.n_captions - (since.n_captions if since else 0)
        images, texts = (prices[list(index)].sum() for prices, index in zip(self, encoders, strict=True))
        return float(images * n_pictures + texts * n_captions)


class Rung(NamedTuple):
    """One sample, and what it said.

    Attributes:
        items: What has been embedded up to here for those who are on it.
        encoders: Those.
        pairs: The pairs between them.
        scores: (P,) on the sample of validation, in per cent.
        ranks: (P,) 1 + number of pairs that are better at 95 % there.
        flops: Embedding from the rung before to this one, whether a cache had it or not.
    """

    items: Items
    encoders: Encoders
    pairs: tuple[PairIndex, ...]
    scores: NDArray[np.float64]
    ranks: NDArray[np.int64]
    flops: float


class Left(NamedTuple):
    """A pair that left.

    Attributes:
        pair: Which.
        n_train: Training pictures that it was last judged with.
        score: On the sample of validation then, in per cent.
        rank: 1 + number of pairs that were better at 95 % then.
    """

    pair: PairIndex
    n_train: int
    score: float
    rank: int


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """All rungs, and who is embedded whole.

    Attributes:
        rungs: In their order.
        encoders: Who gets everything.
        pairs: The pairs between them.
        every_flops: Embedding everything with everyone.
        flops: Embedding the samples, and everything with those who stayed.
    """

    rungs: tuple[Rung, ...]
    encoders: Encoders
    pairs: tuple[PairIndex, ...]
    every_flops: float
    flops: float

    def left(self) -> list[Left]:
        """The pairs that left: those of the last rung first, on each rung the best first."""
        seen, found = set(self.pairs), list[Left]()
        for rung in reversed(self.rungs):
            for n in np.argsort(-rung.scores, kind="stable").tolist():
                if rung.pairs[n] not in seen:
                    found.append(Left(rung.pairs[n], rung.items.n_train, float(rung.scores[n]), int(rung.ranks[n])))
            seen |= set(rung.pairs)
        return found


Judge = Callable[[Items, Encoders, Sequence[PairIndex]], Contributions]


def climb(  # noqa: PLR0913 - who runs, over what, at what price, and who judges
    pairs: Sequence[PairIndex],
    prices: Prices,
    samples: Sequence[Items],
    whole: Items,
    judge: Judge,
    config: PromotionConfig = PROMOTION,
    *,
    seed: int = 0,
) -> Ladder:
    """Judge pairs on growing samples until nothing more can be saved or the samples end.

    Args:
        pairs: (image, text) indices.
        prices: Of all encoders.
        samples: What each rung embeds, growing.
        whole: What everything is.
        judge: What each picture of a sample of validation adds to the score of each pair.
        config: Who stays.
        seed: Of the bootstrap.
    """
    alive, rungs = tuple(pairs), list[Rung]()
    before: Items | None = None
    every = prices.flops(encoders_of(alive), whole)
    for place, items in enumerate(samples):
        own, last = encoders_of(alive), place + 1 == len(samples)
        contributions = judge(items, own, alive)
        found = bootstrap(contributions, seed=seed)
        rungs.append(Rung(items, own, alive, found.score, found.rank, prices.flops(own, items, since=before)))
        ahead = whole if last else samples[place + 1]
        room = (config.final_share if last else config.rung_share) * every
        free = _free(prices, own, whole, config.free_share * every)
        lead = _leader(alive, found.score, prices, whole)
        winning = [alive[n] for n in _still_winning(resample(contributions, seed=seed), lead, config.least_chance)]
        kept = _fitting(winning, free, prices, (items, ahead), room)
        alive, before = tuple(pair for pair in alive if _within(pair, kept)), items
        if len({_costly(pair, free) for pair in winning if _within(pair, kept)}) == 1:
            break  # whoever of them wins, the same is left to embed
    own = encoders_of(alive)
    spent = sum(rung.flops for rung in rungs) + prices.flops(own, whole, since=before)
    return Ladder(rungs=tuple(rungs), encoders=own, pairs=alive, every_flops=every, flops=spent)


def encoders_of(pairs: Sequence[PairIndex]) -> Encoders:
    """Every encoder of some pairs."""
    return tuple(sorted({i for i, _ in pairs})), tuple(sorted({j for _, j in pairs}))


def _leader(pairs: Sequence[PairIndex], scores: NDArray[np.float64], prices: Prices, whole: Items) -> int:
    """Index of the best pair; of equal ones the cheapest."""
    cost = np.array([prices.flops(encoders_of([pair]), whole) for pair in pairs])
    return int(np.lexsort((cost, -scores.round(6)))[0])


def _free(prices: Prices, encoders: Encoders, whole: Items, most: float) -> Encoders:
    """Those whose leaving would save next to nothing."""
    images = tuple(i for i in encoders[0] if prices.flops(((i,), ()), whole) <= most)
    return images, tuple(j for j in encoders[1] if prices.flops(((), (j,)), whole) <= most)


def _still_winning(resamples: NDArray[np.float32], lead: int, least_chance: float) -> list[int]:
    """The leader, and the pairs that beat it in enough of the resamples, likely ones first."""
    chances = (resamples > resamples[:, [lead]]).mean(0)
    chances[lead] = 2.0
    order = np.argsort(-chances, kind="stable")
    return [int(n) for n in order if chances[n] >= max(least_chance, 1e-9)]


def _fitting(
    pairs: Sequence[PairIndex], free: Encoders, prices: Prices, between: tuple[Items, Items], room: float
) -> Encoders:
    """Encoders of the first pair and the free ones, and of further pairs as long as these cost little enough."""
    since, items = between
    kept = _union(encoders_of(pairs[:1]), free)
    most = prices.flops(kept, items, since=since) + room
    for pair in pairs[1:]:
        wider = _union(kept, encoders_of([pair]))
        if prices.flops(wider, items, since=since) <= most:
            kept = wider
    return kept


def _within(pair: PairIndex, encoders: Encoders) -> bool:
    return pair[0] in encoders[0] and pair[1] in encoders[1]


def _costly(pair: PairIndex, free: Encoders) -> tuple[int | None, int | None]:
    """The encoders of a pair that are not free."""
    return (None if pair[0] in free[0] else pair[0], None if pair[1] in free[1] else pair[1])


def _union(one: Encoders, other: Encoders) -> Encoders:
    return tuple(sorted({*one[0], *other[0]})), tuple(sorted({*one[1], *other[1]}))
