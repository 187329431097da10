"""`--scale 10M`: what a search over so many pictures costs, on one core, on eight accelerators and on a cluster.

Nothing is run but one matrix product. FLOPs come from the functions that book a run's ledger and from what the zoo
declares of its encoders; hours from these, from the product, and from the vendor's peak (see `devices`).
"""

from typing import Any, NamedTuple

import numpy as np

from hyperalign.align.grid import Grid
from hyperalign.bench.devices import H100_PEAKS, SHARE
from hyperalign.bench.sheet import Asked, Sheet
from hyperalign.candidates import Candidates
from hyperalign.embed.zoo import EncoderSpec, Pair, load_zoos
from hyperalign.footprint import dearest, heights
from hyperalign.forecast import Forecast, forecast, forecast_polishing, hollow_grid
from hyperalign.ladder import Items
from hyperalign.machine import measure_matmul
from hyperalign.plan import estimate_seconds
from hyperalign.promote import draw_samples, find_prices, most_flops
from hyperalign.request import SearchConfig
from hyperalign.scoring import scoring_flops, watch_flops
from hyperalign.solve import Method

__all__ = ["measure"]

HELD_OUT = 5_000  # pictures of validation, and as many of test; one caption a picture everywhere
DEVICES = (8, 32)


def measure(asked: Asked) -> list[Sheet]:
    """FLOPs by stage, then hours by machine, for the first N image and M text encoders of the zoo.

    Raises:
        ValueError: If the zoo has not so many encoders, or one of them does not declare what it costs.
    """
    assert asked.n_items is not None, "the command line asks for a number"
    search = _shape(_choose(asked), asked.n_items, asked.config)
    stages = _stages(search)
    return [_stage_sheet(search, stages, asked.n_items), _place_sheet(search, stages, asked.n_items)]


class _Search(NamedTuple):
    """The shapes of a search: who takes part, on what rows, and what its methods will do."""

    candidates: Candidates
    config: SearchConfig
    train: Grid
    val: Grid
    made: Forecast
    polished: tuple[Forecast, ...]  # one, or none where nothing is polished


def _choose(asked: Asked) -> Candidates:
    specs = load_zoos(asked.config.zoo)
    sides = [[spec for spec in specs if spec.modality == side] for side in ("image", "text")]
    shape = asked.shape or (len(sides[0]), len(sides[1]))
    for side, wanted, own in zip(("image", "text"), shape, sides, strict=True):
        if len(own) < wanted:
            raise ValueError(f"the zoo has {len(own)} {side} encoders, got --grid {shape[0]}x{shape[1]}; ask for fewer")
    images, texts = (tuple(own[:wanted]) for own, wanted in zip(sides, shape, strict=True))
    for spec in (*images, *texts):
        if spec.gflops is None or spec.embed_dim is None:
            raise ValueError(
                f"encoder {spec.name!r} must declare gflops and embed_dim; `hyperalign zoo check` has them"
            )
    pairs = tuple(Pair(image, text) for image in images for text in texts)
    return Candidates(images=images, texts=texts, pairs=pairs, latencies={}, counts=())


def _shape(candidates: Candidates, n_items: int, config: SearchConfig) -> _Search:
    owners = (np.arange(size, dtype=np.int64) for size in (n_items, HELD_OUT))
    train, val = (hollow_grid(_widths(candidates.images), _widths(candidates.texts), owner) for owner in owners)
    pairs, recipe = candidates.pair_indices(), config.recipe()
    made = forecast(Method("hypernet", "both", config.seed), train, pairs, recipe)
    polished: tuple[Forecast, ...] = ()
    if config.polish:
        first = dearest(train, pairs)[: config.polish]
        polished = (forecast_polishing(train, first, recipe, after=Method("hypernet", "both", config.seed)),)
    return _Search(candidates, config, train, val, made, polished)


def _stages(search: _Search) -> dict[str, int]:
    """FLOPs of each part of the search, and of what it is compared with."""
    candidates, config, cost = search.candidates, search.config, search.made
    baseline = forecast(Method("ape", "text", config.seed), search.train, candidates.pair_indices(), config.recipe())
    n = search.train.n_images
    whole = Items(n, HELD_OUT, n + 2 * HELD_OUT, n + 2 * HELD_OUT)
    prices = find_prices(candidates)
    samples = draw_samples(search.train.owner, search.val.owner, seed=config.seed)
    return {
        "embedding everything with everyone": round(prices.images.sum() + prices.texts.sum()) * whole.n_pictures,
        "embedding with promotion, at most": round(most_flops(candidates, samples, whole)),
        "set-up": cost.setup_flops,
        "training": cost.train_flops,
        "validation": scoring_flops(cost.solution, search.val) + cost.n_looks * watch_flops(cost.solution, search.val),
        "polishing": sum(one.setup_flops + one.train_flops for one in search.polished),
        "for comparison: training every pair by ape": baseline.train_flops,
    }


def _host_bytes(search: _Search) -> int:
    """Private memory of the process that makes connectors, above what it holds when the data is open."""
    method, pairs = Method("hypernet", "both", search.config.seed), search.candidates.pair_indices()
    grids, polished = (search.train, search.val, search.val), dearest(search.train, pairs)[: search.config.polish]
    return max(heights([(method, search.made)], *grids, search.config.recipe(), [], polished).values())


def _stage_sheet(search: _Search, stages: dict[str, int], n_items: int) -> Sheet:
    title = f"{len(search.candidates.images)}x{len(search.candidates.texts)} pairs on {n_items:,} pictures, from shapes"
    notes = [
        f"computed, not run: one caption a picture, {HELD_OUT:,} pictures of validation and as many of test; encoders "
        "cost what the zoo declares, a caption as one of 16 tokens; polished as many pairs as --polish says, the "
        "widest; `ape` at its default batch and epochs",
    ]
    return Sheet(title, [{"stage": name, "flops": flops} for name, flops in stages.items()], notes)


def _place_sheet(search: _Search, stages: dict[str, int], n_items: int) -> Sheet:
    """Hours by machine: encoders on accelerators where there are some, connectors on a host."""
    rate, n = measure_matmul(size=1024), n_items + 2 * HELD_OUT
    everything, promoted, *_ = stages.values()
    connectors = ("set-up", "training", "validation", "polishing")
    host = {
        "connectors_seconds": sum(estimate_seconds(stage, stages[stage], rate) for stage in connectors),
        "cache_bytes": 2 * n * (sum(_widths(search.candidates.images)) + sum(_widths(search.candidates.texts))),
        "memory_bytes": _host_bytes(search),
    }
    here = [estimate_seconds("embedding", flops, rate) for flops in (everything, promoted)]
    rows: list[dict[str, Any]] = [
        {"where": "this machine", "all_seconds": here[0], "promoted_seconds": here[1], **host}
    ]
    for n_devices in DEVICES:
        speed = n_devices * SHARE * H100_PEAKS["bfloat16"]
        where = f"{n_devices} H100" + (f", {n_devices // 8} machines" if n_devices > 8 else "")
        rows.append({"where": where, "all_seconds": everything / speed, "promoted_seconds": promoted / speed, **host})
    notes = [
        f"computed from a matrix product of {rate / 1e9:.3g} GFLOP/s on this machine and from {SHARE:.0%} of the dense "
        f"bfloat16 peak of an H100 ({H100_PEAKS['bfloat16'] / 1e12:.0f} TFLOP/s; --autocast), reading and decoding not "
        "in it; connectors are made by the first process on its host, as fast as this machine is; memory: above "
        "that process's libraries, rows being read by memory map",
    ]
    return Sheet("hours by machine, computed", rows, notes)


def _widths(specs: tuple[EncoderSpec, ...]) -> list[int]:
    return [spec.embed_dim or 0 for spec in specs]
