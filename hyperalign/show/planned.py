"""A plan in the terminal: what a search would do, step by step and in all."""

from typing import TYPE_CHECKING

from rich.console import Group
from rich.text import Text

from hyperalign.ledger import SEARCH_STAGES
from hyperalign.show.table import Column, fit
from hyperalign.show.words import NONE, clean, duration, flops, size

if TYPE_CHECKING:  # a table needs no torch
    from hyperalign.plan import Plan, Step

__all__ = ["plan_table"]


def plan_table(plan: "Plan", *, width: int) -> Group:
    """What the limits let through, the steps of the search, and what they come to.

    Args:
        plan: What would be done.
        width: Columns of the terminal.
    """
    steps = [step for step in plan.steps if step.stage != "optimiser"]  # part of the training, and small
    columns = [
        Column("stage", [step.stage + (" *" if step.stage in SEARCH_STAGES else "") for step in steps], left=True),
        Column("whose", [_whose(step) for step in steps], left=True),
        Column("what", [_rest(step) for step in steps], left=True, goes=3),
        Column("cost", [NONE if step.cached else flops(step.flops) for step in steps]),
        Column("time", [NONE if step.seconds is None else duration(step.seconds or None) for step in steps]),
        Column("disk", [size(step.disk_bytes) for step in steps], goes=2),
        Column("memory", [size(step.memory_bytes) for step in steps], goes=1),
    ]
    more = "" if all(step.seconds is not None for step in steps) else " and what is not known (–)"
    sentences = (
        f"in all: {flops(plan.all_flops)}, about {duration(plan.seconds)}{more}, {size(plan.disk_bytes)} on disk, "
        f"{size(plan.memory_bytes)} of private memory{_free(plan)} and what an encoder needs while it computes",
        f"* the cost of the search: {flops(plan.search_flops)}; the baseline's grid, ape · text, would cost "
        f"{flops(plan.grid_flops)}",
        f"times are estimates from a matrix product at {flops(plan.flops_per_second)}/s; half or twice as long is "
        "no surprise",
    )
    table = fit("What the search would do", columns, width=width, more=[])
    return Group(*(Text(clean(line)) for line in plan.counts), "", table, *map(Text, sentences))


def _free(plan: "Plan") -> str:
    """What there is, where the system tells."""
    if plan.available_bytes is None:
        return ""
    lacks = plan.memory_bytes - plan.held_bytes > plan.available_bytes
    return f" ({size(plan.available_bytes)} {'are free, which is too little' if lacks else 'free'})"


def _whose(step: "Step") -> str:
    """Method, or encoder that embeds; whoever shares a step has none."""
    return clean(step.method or (step.what.partition(":")[0] if step.stage == "embedding" else ""))


def _rest(step: "Step") -> str:
    return clean(step.what.partition(": ")[2] if step.stage == "embedding" else step.what)
