"""The account of the method's authors beside our formulas, and what becomes of their ratio.

The constants are theirs; everything else on this page is computed from `ledger`.
"""

from typing import Any

from hyperalign.bench.sheet import Sheet
from hyperalign.ledger import published_ape_epoch_flops, published_sliced_epoch_flops

__all__ = ["N_ITEMS", "account", "explain"]

N_ITEMS = 558_128  # pictures with captions
APE_TFLOP = {256: 0.8777, 512: 1.0972, 1024: 1.5361, 4096: 4.1618, 16384: 14.6759}  # one epoch, by batch
SLICED_TFLOP = {4: 22.165, 6: 33.25, 8: 44.34, 10: 55.40}  # one epoch at batch 512, by encoders in a step
WIDTHS = (384, 768, 1024)  # of their image encoders, as many of each

_N_ENCODERS, _IN_A_STEP = 12, 4  # of the grid that their ratio is about
_BATCH, _THEIR_BATCH = 512, 16384  # of the hypernetwork, and of the baseline it was held against


def account() -> Sheet:
    """Every published constant, what our formula gives for it, and one over the other."""
    rows = [
        _row(
            f"ape, one epoch, batch {batch}, widths 768 to 384", 1e12 * tflop, published_ape_epoch_flops(N_ITEMS, batch)
        )
        for batch, tflop in APE_TFLOP.items()
    ] + [
        _row(
            f"sliced hypernetwork, one epoch, batch {_BATCH}, {n} encoders a step",
            1e12 * tflop,
            published_sliced_epoch_flops(N_ITEMS, _BATCH, n),
        )
        for n, tflop in SLICED_TFLOP.items()
    ]
    worst = max(abs(row["ours_over_published"] - 1) for row in rows)
    notes = [f"{N_ITEMS:,} items; the largest deviation is {100 * worst:.3f} %", *explain()]
    return Sheet("the account of the method's authors", rows, notes)


def explain() -> list[str]:
    """Where the published ratio comes from, and what it becomes at true widths and at matched batch."""
    network = published_sliced_epoch_flops(N_ITEMS, _BATCH, _IN_A_STEP)
    narrow = _N_ENCODERS * published_ape_epoch_flops(N_ITEMS, _THEIR_BATCH) / network
    true, matched = (_at_true_widths(batch) / network for batch in (_THEIR_BATCH, _BATCH))
    share = _IN_A_STEP / _N_ENCODERS
    return [
        f"the poster's {narrow:.0f}× is {_N_ENCODERS} times ape at batch {_THEIR_BATCH} and width {WIDTHS[0]} over the "
        f"hypernetwork at batch {_BATCH}; inferred from the authors' notebook",
        f"with the true widths it is {true:.0f}×, at matched batch {_BATCH} {matched:.1f}×",
        f"and the hypernetwork, with {_IN_A_STEP} of {_N_ENCODERS} encoders in a step, sees each on "
        f"1/{1 / share:.0f} of the data",
    ]


def _at_true_widths(batch: int) -> float:
    """One epoch of the baseline for all encoders, as many of each width."""
    each = [published_ape_epoch_flops(N_ITEMS, batch, d_img=width) for width in WIDTHS]
    return _N_ENCODERS * sum(each) / len(each)


def _row(what: str, published: float, ours: float) -> dict[str, Any]:
    return {"what": what, "published_flops": published, "ours_flops": ours, "ours_over_published": ours / published}
