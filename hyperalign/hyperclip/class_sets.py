"""Class sets of the scenes' own vocabulary: things that share one attribute or two, told apart by another.

"a red circle, a red square, …" is the set of red shapes, "a small red circle, …" that of the small ones among them. A
fifth of all sets is held out: nothing is trained on them as a set, so that adapting to one is adapting to prompts that
were never seen together.
"""

from collections.abc import Callable, Sequence
from itertools import combinations, product
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hyperalign.embed.scenes import ScenePictures
from hyperalign.embed.world import COLOURS, SHAPES, SIZES, TEXTURES, Thing
from hyperalign.hyperclip.pairs import Order

__all__ = ["N_TOGETHER", "ClassSet", "class_sets", "order_of_sets", "prompts_of"]

N_TOGETHER: Final = 16  # pictures of one set in a part of a step

_WORDS: Final = {"size": SIZES, "texture": ("solid", *TEXTURES[1:]), "colour": COLOURS, "shape": SHAPES}
_ASKED: Final = ("shape", "colour", "texture")  # what classes differ in; there are only three sizes
_DRAWN_BY: Final = 7  # seed of which sets are held out, the same in every measurement


class ClassSet(NamedTuple):
    """Classes that share attributes.

    Attributes:
        prompts: One a class.
        pictures: For each class the pictures that show exactly one thing of the shared attributes, and it is this one.
    """

    prompts: list[str]
    pictures: list[NDArray[np.int64]]

    @property
    def places(self) -> NDArray[np.int64]:
        """(n,) all its pictures, class by class."""
        return np.concatenate(self.pictures)

    @property
    def labels(self) -> NDArray[np.int64]:
        """(n,) class of each of them."""
        return np.repeat(np.arange(len(self.prompts)), [len(part) for part in self.pictures])


def class_sets(pictures: ScenePictures) -> tuple[list[ClassSet], list[ClassSet]]:
    """The sets that are trained on, and those that are held out; which they are does not depend on the pictures."""
    scenes = [pictures.scene(index).things for index in range(len(pictures))]
    every = [
        one
        for shared in (*combinations(_WORDS, 1), *combinations(_WORDS, 2))
        for asked in _ASKED
        if asked not in shared
        for one in _sets_of(scenes, shared, asked)
    ]
    held = {*np.random.default_rng(_DRAWN_BY).permutation(len(every))[::5].tolist()}
    return [one for n, one in enumerate(every) if n not in held], [every[n] for n in sorted(held)]


def prompts_of(sets: Sequence[ClassSet]) -> list[str]:
    """Every prompt of some sets, once; "a red circle" is a class of the red things and of the circles."""
    return sorted({prompt for one in sets for prompt in one.prompts})


def order_of_sets(
    sets: Sequence[ClassSet], prompts: Sequence[str], *, n_pictures: int, seed: int
) -> Callable[[int], Order]:
    """Epochs of parts, each of `N_TOGETHER` pictures of one set, of as many of its classes as there are.

    Args:
        sets: To draw from, with replacement.
        prompts: Captions, by whose place a picture's is told.
        n_pictures: In an epoch.
        seed: With the epoch, decides everything.
    """
    number = {prompt: place for place, prompt in enumerate(prompts)}
    usable = [one for one in sets if sum(len(part) > 0 for part in one.pictures) > 1]
    if not usable:
        raise ValueError("no class set has pictures of two classes; give more pictures with --limit")

    def order(epoch: int) -> Order:
        dice, chosen = np.random.default_rng((seed, epoch)), list[tuple[int, int]]()
        for _ in range(n_pictures // N_TOGETHER):
            one = usable[dice.integers(len(usable))]
            shown = dice.permutation([k for k, part in enumerate(one.pictures) if len(part)])
            for k in (int(shown[n % len(shown)]) for n in range(N_TOGETHER)):
                picture = one.pictures[k][dice.integers(len(one.pictures[k]))]
                chosen.append((int(picture), number[one.prompts[k]]))
        pictures, captions = np.array(chosen, np.int64).T
        return Order(pictures, captions)

    return order


def _sets_of(scenes: Sequence[Sequence[Thing]], shared: Sequence[str], asked: str) -> list[ClassSet]:
    """A set for every value of the shared attributes."""
    values = [*product(*(range(len(_WORDS[name])) for name in shared))]
    members: dict[tuple[int, ...], list[list[int]]] = {value: [[] for _ in _WORDS[asked]] for value in values}
    for index, things in enumerate(scenes):
        shown = [tuple(int(getattr(thing, name)) for name in shared) for thing in things]
        for value, thing in zip(shown, things, strict=True):
            if shown.count(value) == 1:
                members[value][getattr(thing, asked)].append(index)
    return [
        ClassSet(
            [_prompt({**dict(zip(shared, value, strict=True)), asked: number}) for number in range(len(own))],
            [np.array(one, np.int64) for one in own],
        )
        for value, own in members.items()
    ]


def _prompt(known: dict[str, int]) -> str:
    words = [_WORDS[name][known[name]] for name in _WORDS if name in known]
    return " ".join(["a", *words, *([] if "shape" in known else ["thing"])])
