"""Embedding throughput: pictures to rows in the cache, against a bare loop over the same network and files."""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hyperalign.bench.sheet import Asked, Sheet
from hyperalign.embed.bare import embed_bare, write_jpegs
from hyperalign.embed.cache import CacheKey, fill
from hyperalign.embed.encoders import Encoder, embed_pictures, load_encoder
from hyperalign.embed.feed import worthwhile_workers
from hyperalign.embed.identity import pin
from hyperalign.embed.pictures import Pictures, whole_files
from hyperalign.embed.zoo import EncoderSpec

__all__ = ["Pass", "Speeds", "compare_loops", "throughput_sheet"]

MOST, FEWEST = 4096, 256  # pictures; a worker takes a tenth of a second to start, which a short pass would measure
SECONDS = 8.0  # that one pass may take, where it can
BATCH = 64
_TICK = 1e-6  # seconds; a clock of processor time may stand still over a few pictures

_NOTES = (
    f"medians of some rounds in turn, batch {BATCH}; ours decodes, embeds, checks and writes to a cache",
    "bare is open, resize, normalise and forward pass in inference mode, in one process or with workers; the ratio is "
    "the median over rounds of ours over the faster of the two",
    "cpu ratio: processor time of the cheaper bare loop over that of ours, which busy neighbours hardly move",
)


class Pass(NamedTuple):
    """All pictures once.

    Attributes:
        per_second: Pictures by wall time.
        cpu_seconds: Of this process and its workers, for one picture; busy neighbours hardly move it.
    """

    per_second: float
    cpu_seconds: float


class Speeds(NamedTuple):
    """Passes over the same pictures, one of each kind for each round.

    Attributes:
        ours: Decoded, embedded, checked and written to a cache.
        bare: The bare loop in one process.
        bare_workers: The same with decoding workers.
    """

    ours: list[Pass]
    bare: list[Pass]
    bare_workers: list[Pass]

    def ratio(self) -> float:
        """Median over rounds of the throughput of `ours` over the faster bare loop's, both beside the same load."""
        rounds = zip(self.ours, self.bare, self.bare_workers, strict=True)
        return statistics.median(our.per_second / max(one.per_second, other.per_second) for our, one, other in rounds)

    def cpu_ratio(self) -> float:
        """Median over rounds of the processor time of the cheaper bare loop over that of `ours`."""
        rounds = zip(self.ours, self.bare, self.bare_workers, strict=True)
        return statistics.median(
            min(one.cpu_seconds, other.cpu_seconds) / max(our.cpu_seconds, _TICK) for our, one, other in rounds
        )


def throughput_sheet(asked: Asked, images: tuple[EncoderSpec, ...], pictures: Pictures) -> Sheet:
    """The cheapest and the dearest image encoder of a zoo, each against a bare loop.

    Args:
        asked: How many rounds, and whom to tell.
        images: Image encoders, facts known.
        pictures: Of the data; their first `MOST` at most are written as JPEG files.
    """
    known = sorted((spec for spec in images if spec.loader != "rows"), key=lambda spec: spec.gflops or 0.0)
    notes = list(_NOTES) if known else ["no image encoder has a network: ready rows are not embedded"]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        files = write_jpegs(pictures, min(MOST, len(pictures)), Path(folder)) if known else []
        for spec in dict.fromkeys([*known[:1], *known[-1:]]):
            encoder = load_encoder(pin(spec, memory=asked.cache_dir), device="cpu")
            used = files[: _n_affordable(encoder, files)]
            speeds = compare_loops(encoder, used, n_rounds=asked.n_seeds, progress=asked.progress)
            rows.append(_row(spec, len(used), speeds))
    return Sheet("embedding against a bare loop", rows, notes)


def compare_loops(
    encoder: Encoder, files: list[str], *, n_rounds: int, progress: Callable[[str, int, int], None]
) -> Speeds:
    """Embed the same files in each of the three ways, in turn, so that a noisy machine is noisy to all of them.

    Args:
        encoder: Of pictures.
        files: The pictures.
        n_rounds: How often.
        progress: Told `(stage, done, total)`.
    """
    assert encoder.picture is not None, "an encoder of pictures"
    n_workers = max(1, worthwhile_workers(len(files), device=encoder.device.type))
    speeds = Speeds([], [], [])
    for done in range(n_rounds):
        ways: list[tuple[list[Pass], Callable[[], None]]] = [
            (speeds.ours, lambda: _ours(encoder, files)),
            (speeds.bare, lambda: _bare(encoder, files, 0)),
            (speeds.bare_workers, lambda: _bare(encoder, files, n_workers)),
        ]
        for kept, way in ways[done % 3 :] + ways[: done % 3]:
            kept.append(_time(way, len(files)))
        progress(f"throughput of {encoder.spec.name}, rounds", done + 1, n_rounds)
    return speeds


def _row(spec: EncoderSpec, n_pictures: int, speeds: Speeds) -> dict[str, Any]:
    medians = {
        f"{name}_per_second": statistics.median(one.per_second for one in passes)
        for name, passes in speeds._asdict().items()
    }
    return {
        "encoder": spec.name,
        "pictures": n_pictures,
        "picture_flops": (spec.gflops or 0.0) * 1e9,
        **medians,
        "ours_over_bare_ratio": speeds.ratio(),
        "cpu_ratio": speeds.cpu_ratio(),
    }


def _time(way: Callable[[], None], n_pictures: int) -> Pass:
    """One pass; workers are counted when they have ended, which they have when it is over."""
    wall, before = time.perf_counter(), os.times()
    way()
    after = os.times()
    spent = sum(after[:4]) - sum(before[:4])  # user and system, of this process and of its children
    return Pass(n_pictures / (time.perf_counter() - wall), spent / n_pictures)


def _ours(encoder: Encoder, files: list[str]) -> None:
    """As `hyperalign embed` does it, into a cache of its own."""
    pictures = whole_files(files)
    words = dict.fromkeys(("weights", "revision", "preprocess", "pooling", "prompt", "content", "split"), "")
    key = CacheKey(encoder=encoder.spec.name, dataset="throughput", **words)
    with tempfile.TemporaryDirectory() as root:
        fill(
            Path(root),
            key,
            n_rows=len(files),
            embed=lambda start, stop: embed_pictures(encoder, pictures, start, stop, batch_size=BATCH),
        )


def _bare(encoder: Encoder, files: list[str], n_workers: int) -> None:
    assert encoder.picture is not None, "an encoder of pictures"
    rows = embed_bare(encoder.network, encoder.picture, files, batch_size=BATCH, n_workers=n_workers)
    assert np.isfinite(rows).all(), "a bare loop on pictures that were just written"


def _n_affordable(encoder: Encoder, files: list[str]) -> int:
    """How many pictures one pass of about `SECONDS` has time for."""
    few = files[:BATCH]
    start = time.perf_counter()
    for _ in range(2):  # the first one warms up, and counts for too much rather than too little
        _bare(encoder, few, 0)
    rate = 2 * len(few) / (time.perf_counter() - start)
    return min(len(files), max(FEWEST, round(rate * SECONDS)))
