"""FLOPs of whatever runs: what torch's counter sees, and what it cannot see by the ledger's formulas.

The formulas are given the shapes that the decompositions have when they run, so a caller that books other shapes than
it computes is found out.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from hyperalign.ledger import cholesky_flops, eigh_flops, qr_flops, svd_flops, triangular_flops

_UNSEEN = {
    torch.ops.aten.linalg_cholesky_ex: lambda square, *_, **__: cholesky_flops(square[0]),
    torch.ops.aten.linalg_solve_triangular: lambda square, right, *_, **__: triangular_flops(square[0], right[1]),
    torch.ops.aten._linalg_eigh: lambda square, *_, **__: eigh_flops(square[0]),
    torch.ops.aten._linalg_svd: lambda matrix, *_, **__: svd_flops(*sorted(matrix)),
    torch.ops.aten.linalg_qr: lambda tall, *_, **__: qr_flops(*tall),
}


def count_seen(run: Callable[[], Any]) -> int:
    """What the counter sees of it."""
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def count_all(run: Callable[[], Any]) -> int:
    """The same with decompositions and triangular systems, at the shapes they ran with."""
    with FlopCounterMode(display=False, custom_mapping=_UNSEEN) as counter:
        run()
    return int(counter.get_total_flops())
