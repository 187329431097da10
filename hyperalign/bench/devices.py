"""What a search would need on accelerators, from the ledger's formulas and the vendor's figures. Nothing is run.

Only sizes and peaks go in: how fast one machine is says little of another, so the share of the peak that is assumed
stands in the sheet, and so does what does not follow that rule (decompositions of small matrices).
"""

import time
from typing import Any

import numpy as np
import torch

from hyperalign.align.canonical_grid import SetupShapes, setup_shapes
from hyperalign.align.directions import directions_flops
from hyperalign.bench.sheet import Sheet
from hyperalign.footprint import setup_bytes
from hyperalign.forecast import forecast, hollow_grid
from hyperalign.grids import Prepared
from hyperalign.ledger import cholesky_flops, eigh_flops
from hyperalign.scoring import scoring_flops, watch_flops
from hyperalign.solve import Method, Recipe

__all__ = ["device_sheet"]

H100_PEAKS = {  # dense FLOP/s of the SXM board; NVIDIA H100 Tensor Core GPU data sheet, whose figures are with sparsity
    "float32": 67e12,
    "TF32": 989e12 / 2,
    "bfloat16": 1979e12 / 2,
}
H100_BYTES = 80 * 10**9
SHARE = 0.4  # of the peak
N_ITEMS = (20_000, 558_128)  # this measurement's and the poster's
N_DEVICES = (1, 8)
_EIGH_SIZE = 512


def device_sheet(prepared: Prepared, recipe: Recipe, method: Method) -> Sheet:
    """FLOPs, hours and memory of a search on one H100 and on eight.

    Args:
        prepared: The synthetic zoo; widths and the size of validation are read off it.
        recipe: Coordinates and training.
        method: The method that answers.
    """
    grid, val = prepared.train, prepared.val
    image_widths, text_widths = ([rows.shape[1] for rows in side] for side in (grid.images, grid.texts))
    eigh_rate = _eigh_rate()
    rows = []
    for n_items in N_ITEMS:
        hollow = hollow_grid(image_widths, text_widths, np.arange(n_items, dtype=np.int64))
        cost = forecast(method, hollow, hollow.pairs(), recipe)
        looks = scoring_flops(cost.solution, val) + cost.n_looks * watch_flops(cost.solution, val)
        flops = cost.setup_flops + cost.train_flops + looks
        decompositions = _decomposition_flops(setup_shapes(hollow, recipe.canonical))
        for n_devices in N_DEVICES:
            seconds: dict[str, Any] = {
                f"{name}_seconds": (flops - decompositions) / (n_devices * SHARE * peak)
                for name, peak in H100_PEAKS.items()
            }
            rows.append(
                {
                    "items": n_items,
                    "devices": n_devices,
                    "search_flops": flops,
                    **seconds,
                    "decompositions_on_host_seconds": decompositions / eigh_rate / n_devices,
                    "memory_each_bytes": setup_bytes(hollow, recipe.canonical).height // n_devices,
                    "rows_read_bytes": 2 * n_items * (sum(image_widths) + sum(text_widths)) // n_devices,
                }
            )
    notes = [
        f"computed, not run: {SHARE:.0%} of the dense peak of an H100 SXM ({H100_BYTES / 1e9:.0f} GB), in TFLOP/s "
        + ", ".join(f"{peak / 1e12:.0f} {name}" for name, peak in H100_PEAKS.items())
        + " (NVIDIA H100 Tensor Core GPU data sheet; it prints tensor-core figures with sparsity, halved here)",
        "decompositions do not follow a share of a peak: they are left to a host that does an eigendecomposition as "
        "fast as this one, one host for each device; memory is that of the set-up, image encoders divided among "
        "devices; rows read: one pass over float16 rows, which a disk or a network brings; the times do not hold it",
        "on eight devices each has an eighth of the image encoders with all text encoders; what they exchange is the "
        "gradient of one small network each step, and scores",
    ]
    title = f"{len(image_widths)}x{len(text_widths)} on accelerators, from shapes"
    return Sheet(title, rows, notes)


def _decomposition_flops(shapes: SetupShapes) -> int:
    """What of the set-up is no product of large matrices: whitening, and finding directions."""
    flops = sum(map(cholesky_flops, (*shapes.image_features, *shapes.text_features)))
    columns, wide = shapes.targets.n_text_targets, shapes.targets.wide
    sides = zip(shapes.image_features, shapes.image_ranks, strict=True)
    flops += sum(directions_flops(width, columns, rank) for width, rank in sides)
    return flops + sum(directions_flops(width, shapes.targets.n_image_targets, shapes.rank) for width in wide)


def _eigh_rate() -> float:
    """FLOP/s, as booked, of an eigendecomposition in float64 on this machine: the better of two."""
    square = torch.rand(_EIGH_SIZE, _EIGH_SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    taken = []
    for _ in range(2):
        start = time.perf_counter()
        torch.linalg.eigh(square + square.T)
        taken.append(time.perf_counter() - start)
    return eigh_flops(_EIGH_SIZE) / min(taken)
