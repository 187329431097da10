"""The dear end: what two epochs of pair-by-pair training between canonical coordinates cost, spent on other methods."""

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from hyperalign.align.train import TrainConfig
from hyperalign.bench.costs import foresee
from hyperalign.bench.opened import Opened
from hyperalign.solve import Method, Recipe

__all__ = ["dear_ends", "dear_flops", "dear_steps", "steps_within", "two_epochs"]

DEAR_EPOCHS: Final = 2.0


def two_epochs(recipe: Recipe) -> Recipe:
    """The baseline between canonical coordinates at the dear end."""
    return replace(recipe, ape_both=replace(recipe.ape_both, n_epochs=DEAR_EPOCHS, n_steps=None))


def dear_flops(opened: Opened, recipe: Recipe) -> int:
    """What a search by that baseline costs."""
    return foresee(opened, Method("ape", "both", 0), two_epochs(recipe)).search_flops


def dear_ends(opened: Opened, recipe: Recipe, goal: int | None = None) -> list[TrainConfig]:
    """The hypernetwork's trainings at the dear end, with its pairs a step and with twice as many; as `dear_steps`."""
    wide = replace(recipe.residual, pairs_per_step=2 * recipe.residual.pairs_per_step)
    return [
        replace(config, n_steps=dear_steps(opened, replace(recipe, residual=config), goal), n_epochs=None)
        for config in (recipe.residual, wide)
    ]


def dear_steps(opened: Opened, recipe: Recipe, goal: int | None = None) -> int:
    """Steps for which the hypernetwork costs so much, or one step.

    Args:
        opened: The grid.
        recipe: The hypernetwork's training but for its length, and its coordinates.
        goal: FLOPs; None takes those of the dear end in the same coordinates.
    """

    def long(n_steps: int) -> Recipe:
        return replace(recipe, residual=replace(recipe.residual, n_steps=n_steps, n_epochs=None))

    goal = dear_flops(opened, recipe) if goal is None else goal
    return steps_within(opened, Method("hypernet", "both", 0), long, goal)


def steps_within(opened: Opened, method: Method, long: Callable[[int], Recipe], goal: int) -> int:
    """Most steps that cost at most `goal` FLOPs, or one step.

    The cost is linear in the steps but for the looks at validation, so a straight line through two points is enough.
    """
    few, many = 100, 200
    costs = [foresee(opened, method, long(n_steps)).search_flops for n_steps in (few, many)]
    per_step = (costs[1] - costs[0]) / (many - few)
    return max(1, int(few + (goal - costs[0]) / per_step))
