"""What the hypernetwork costs each of the eight architectures in training: the same step without and with it, timed.

Everything is of the size that the paper gives it, the text transformer too. On a GPU a step has the largest batch that
fits; on a CPU it has `BATCH` pictures, where what the optimiser does to the hypernetwork's own weights, the same for
any batch, weighs far more than in a real training. So the share of its FLOPs, which the optimiser is no part of, is
counted beside at batches that are trained with.
"""

from typing import Any, Final

from hyperalign.bench.sheet import Asked, Sheet
from hyperalign.hyperclip.architectures import BOTTLENECKS, NAMES, find_architecture, picture_of
from hyperalign.hyperclip.hypernetwork import HyperConfig
from hyperalign.hyperclip.overhead import N_TOKENS, Overhead, Shape, count_step, measure_overhead
from hyperalign.hyperclip.text import TextConfig
from hyperalign.processes import device_of_training

__all__ = ["BATCH", "measure"]

BATCH: Final = 8  # pictures in a step on a CPU
_COUNTED: Final = (512, 4096)  # batches that the share of FLOPs is counted at
_ROUNDS: Final = 3


def measure(asked: Asked) -> list[Sheet]:
    """Time and count the steps of all eight; `--limit` gives the pictures in a step."""
    device = device_of_training().type
    batch_size = asked.config.limit or (None if device == "cuda" else BATCH)
    timed, counted = [], []
    for name in NAMES:
        shape = _shape(name)
        found = measure_overhead(shape, batch_size=batch_size, device=device, n_rounds=_ROUNDS, progress=asked.progress)
        timed.append(_timed(name, shape, found))
        counted.append(
            {"architecture": name, **{f"batch_{size}_added_flops_share": _added(shape, size) for size in _COUNTED}}
        )
        row = timed[-1]
        asked.say(
            f"{name}: a step of {found.batch_size} pictures takes {row['siglip_step_seconds']:.2f} s without the "
            f"hypernetwork and {row['hyperclip_step_seconds']:.2f} s with it"
        )
    notes = [
        f"a step is forward, loss, backward and AdamW in float32 on {device}, captions of {N_TOKENS} tokens by a "
        f"transformer of their own; medians of {_ROUNDS} steps of each, taken in turn",
        "FLOPs are counted from shapes, without the optimiser; in use nothing is added",
    ]
    return [
        Sheet("a training step without and with the hypernetwork", timed, notes),
        Sheet("what it adds to the FLOPs of larger steps, counted", counted),
    ]


def _shape(name: str) -> Shape:
    """The paper's step for one of the eight."""
    return Shape(image=find_architecture(name), hyper=HyperConfig(bottleneck=BOTTLENECKS[name]), text=TextConfig())


def _timed(name: str, shape: Shape, found: Overhead) -> dict[str, Any]:
    """One row, in seconds a step."""
    seconds = [found.batch_size / rate for rate in (found.baseline_per_second, found.hyper_per_second) if rate]
    return {
        "architecture": name,
        "batch": found.batch_size,
        "siglip_step_seconds": seconds[0],
        "hyperclip_step_seconds": seconds[1],
        "added_time_share": seconds[1] / seconds[0] - 1,
        "added_flops_share": found.added_flops,
        "siglip_step_flops": found.baseline_flops,
        "hyperclip_step_flops": found.hyper_flops,
        "pixels": picture_of(shape.image).size[0],
        "adapted": found.n_adapted,
        "encoder_parameters": found.n_params_image,
        "hypernetwork_parameters": found.n_params_hyper,
    }


def _added(shape: Shape, batch_size: int) -> float:
    """Share of the baseline's FLOPs that the hypernetwork adds at a batch."""
    without, with_hyper = (count_step(shape, batch_size, with_hyper=given) for given in (False, True))
    return with_hyper / without - 1
