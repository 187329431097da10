"""Time and memory of the contrastive loss on a large batch, forward and backward, in a process of its own."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import hyperalign
from hyperalign.bench.sheet import Sheet
from hyperalign.bench.watermark import watched
from hyperalign.ledger import infonce_flops

__all__ = ["LossRun", "loss_sheet", "run_loss", "run_loss_apart"]

BATCH, DIM = 16384, 1024

_CODE = """
import json, sys
from hyperalign.bench.loss_memory import run_loss
print(json.dumps(run_loss(**json.loads(sys.argv[1]))._asdict()))
"""


class LossRun(NamedTuple):
    """One forward and backward pass.

    Attributes:
        seconds: Of both.
        growth_bytes: Peak resident memory above the start; None where the system does not tell. The rows, their
            gradients and all that the passes make are in it.
        loss: In nats.
    """

    seconds: float
    growth_bytes: int | None
    loss: float


def run_loss(*, batch: int, dim: int, keep: bool, n_threads: int) -> LossRun:
    """Take the loss of random rows and its gradients to both sides and to the scale.

    Args:
        batch: Items, B.
        dim: Width, D.
        keep: Whether the logits stay in memory for the gradient.
        n_threads: Of torch.
    """
    import torch

    from hyperalign.align.connectors import tiled_infonce

    torch.set_num_threads(n_threads)
    _warm_up()
    generator = torch.Generator().manual_seed(0)
    with watched() as growth:
        image, text = (torch.randn(1, batch, dim, generator=generator) for _ in range(2))
        for rows in (image, text):
            rows.div_(rows.norm(dim=2, keepdim=True)).requires_grad_()
        scale = torch.tensor(20.0, requires_grad=True)
        start = time.perf_counter()
        loss = tiled_infonce(image, text, scale, keep=keep).sum()
        loss.backward()
        seconds = time.perf_counter() - start
    return LossRun(seconds, growth.n_bytes, float(loss))


def run_loss_apart(**given: Any) -> LossRun:
    """`run_loss` in a fresh process, so that nothing the caller holds or has freed is in the figure."""
    source = str(Path(hyperalign.__file__).resolve().parents[1])
    paths = os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-c", _CODE, json.dumps(given)],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=True,
    )
    return LossRun(**json.loads(done.stdout))


def loss_sheet(*, n_threads: int, batch: int = BATCH, dim: int = DIM) -> Sheet:
    """The loss with its logits kept, as training takes it at this size, and with logits that are made again."""
    rows = []
    for keep, how in ((True, "logits kept"), (False, "logits made again")):
        run = run_loss_apart(batch=batch, dim=dim, keep=keep, n_threads=n_threads)
        flops = infonce_flops(batch, dim, both_sides=True, tiled=not keep)
        rows.append(
            {
                "loss": f"InfoNCE, {how}",
                "batch": batch,
                "dim": dim,
                "peak_growth_bytes": run.growth_bytes,
                "rows_and_gradients_bytes": 4 * 4 * batch * dim,
                "step_flops": flops,
                "step_seconds": run.seconds,
                "flops_per_second": flops / run.seconds,
            }
        )
    notes = [
        "forward and backward with gradients to both sides, float32; peak_growth is VmHWM above its start in a fresh "
        "process, rows and gradients in it"
    ]
    return Sheet("the loss of a large batch", rows, notes)


def _warm_up() -> None:
    """Let torch load its libraries and start its threads before memory is watched."""
    import torch

    rows = torch.rand(1, 64, 64, requires_grad=True)
    (rows @ rows.mT).exp().sum().backward()
