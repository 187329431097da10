"""Work cut into shares of about equal cost, one for each process; pure numbers."""

from collections.abc import Sequence
from itertools import accumulate, pairwise

__all__ = ["cut_evenly"]


def cut_evenly(costs: Sequence[float], n_shares: int) -> list[range]:
    """Cut a row of tasks into stretches of about equal cost; neighbours stay together, some stretches may be empty.

    A task belongs to the stretch that its middle falls into, so that no stretch costs more than its share and one task.

    Args:
        costs: Of each task, at least 0.
        n_shares: Number of stretches.

    Returns:
        The tasks of each stretch.
    """
    if n_shares < 1:
        raise ValueError(f"work is cut into at least 1 share, got {n_shares}")
    total = sum(costs)
    ends = accumulate(costs)
    homes = [
        min(n_shares - 1, int((end - cost / 2) / total * n_shares)) if total else 0
        for end, cost in zip(ends, costs, strict=True)
    ]
    firsts = [sum(home < share for home in homes) for share in range(n_shares + 1)]
    return [range(first, last) for first, last in pairwise(firsts)]
