"""`--scale 10M`: what a search over so many pictures costs, on one core, on eight accelerators and on a cluster.

Nothing is run but one matrix product. FLOPs come from the functions that book a run's ledger and from what the zoo
declares of its encoders; hours from these, from the product, and from the vendor's peak (see `devices`).
"""

from typing import Any

import numpy as np

from hyperalign.bench.devices import H100_PEAKS, SHARE
from hyperalign.bench.sheet import Asked, Sheet
from hyperalign.candidates import Candidates
from hyperalign.embed.zoo import EncoderSpec, Pair, load_zoos
from hyperalign.forecast import canonical_bytes, forecast, hollow_grid
from hyperalign.ladder import Items
from hyperalign.machine import measure_matmul
from hyperalign.plan import estimate_seconds
from hyperalign.promote import draw_samples, find_prices, most_flops
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
    candidates = _choose(asked)
    stages = _stages(candidates, asked)
    return [_stage_sheet(candidates, stages, asked.n_items), _place_sheet(candidates, stages, asked)]


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


def _stages(candidates: Candidates, asked: Asked) -> dict[str, int]:
    """FLOPs of each part of the search, and of what it is compared with."""
    n, config = asked.n_items or 0, asked.config
    owners = [np.arange(size, dtype=np.int64) for size in (n, HELD_OUT)]
    train, val = (hollow_grid(_widths(candidates.images), _widths(candidates.texts), owner) for owner in owners)
    pairs, recipe = candidates.pair_indices(), config.recipe()
    cost = forecast(Method("hypernet", "both", config.seed), train, pairs, recipe)
    baseline = forecast(Method("ape", "text", config.seed), train, pairs, recipe)
    whole = Items(n, HELD_OUT, n + 2 * HELD_OUT, n + 2 * HELD_OUT)
    prices = find_prices(candidates)
    samples = draw_samples(owners[0], owners[1], seed=config.seed)
    return {
        "embedding everything with everyone": round(prices.images.sum() + prices.texts.sum()) * whole.n_pictures,
        "embedding with promotion, at most": round(most_flops(candidates, samples, whole)),
        "set-up": cost.setup_flops,
        "training": cost.train_flops,
        "validation": scoring_flops(cost.solution, val) + cost.n_looks * watch_flops(cost.solution, val),
        "for comparison: training every pair by ape": baseline.train_flops,
    }


def _stage_sheet(candidates: Candidates, stages: dict[str, int], n_items: int) -> Sheet:
    title = f"{len(candidates.images)}x{len(candidates.texts)} pairs on {n_items:,} pictures, from shapes"
    notes = [
        f"computed, not run: one caption a picture, {HELD_OUT:,} pictures of validation and as many of test; encoders "
        "cost what the zoo declares, a caption as one of 16 tokens; `ape` at its default batch and epochs",
    ]
    return Sheet(title, [{"stage": name, "flops": flops} for name, flops in stages.items()], notes)


def _place_sheet(candidates: Candidates, stages: dict[str, int], asked: Asked) -> Sheet:
    """Hours by machine: encoders on accelerators where there are some, connectors on a host."""
    rate, n = measure_matmul(size=1024), (asked.n_items or 0) + 2 * HELD_OUT
    everything, promoted, *search = (stages[name] for name in list(stages)[:-1])
    connectors = sum(
        estimate_seconds(stage, flops, rate)
        for stage, flops in zip(("set-up", "training", "validation"), search, strict=True)
    )
    host = {
        "connectors_seconds": connectors,
        "cache_bytes": 2 * n * (sum(_widths(candidates.images)) + sum(_widths(candidates.texts))),
        "memory_bytes": canonical_bytes(
            hollow_grid(_widths(candidates.images), _widths(candidates.texts), np.arange(n, dtype=np.int64)),
            asked.config.recipe().canonical,
        ),
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
        "in it; connectors are made by the first process on its host, as fast as this machine is",
    ]
    return Sheet("hours by machine, computed", rows, notes)


def _widths(specs: tuple[EncoderSpec, ...]) -> list[int]:
    return [spec.embed_dim or 0 for spec in specs]
