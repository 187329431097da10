"""What a scene is: its words, its record, and how one is drawn.

A scene is a handful of things on a background. It follows from (seed, split, index) alone, so any one
can be drawn by itself in any process. Whatever the seed, two splits never share an arrangement of
things: a hash of the arrangement says which split owns it, and the others draw again.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, TypeVar

import numpy as np

VERSION: Final = 1  # raise it with any change to scenes, pixels or captions: cached rows are keyed by it

SHAPES: Final = ("circle", "square", "triangle", "diamond", "star", "cross", "ring", "heart", "hexagon", "crescent")
COLOURS: Final = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
SIZES: Final = ("small", "medium", "large")
TEXTURES: Final = ("plain", "striped", "dotted", "checked")
BACKGROUNDS: Final = ("plain", "fading", "tiled", "lined", "speckled", "cloudy")
TINTS: Final = ("grey", "sandy", "bluish", "mossy", "mauve")
CLUTTER: Final = ("none", "some", "much")
CELLS: Final = 9  # three rows of three, row by row

# Combinations that occur in no training, validation or test scene and in no scene that taught an encoder;
# only the zero-shot label sets show them.
UNSEEN_COLOURS: Final = frozenset((shape, (3 * shape + 1) % len(COLOURS)) for shape in range(len(SHAPES)))
UNSEEN_TEXTURES: Final = frozenset((shape, 1 + shape // 2 % 3) for shape in (1, 2, 4, 6, 7, 8))

SPLITS: Final = ("train", "val", "test", "zoo", "colour-shape", "texture-shape")
_OWNED: Final = {  # which of the sixteen hash buckets a split may draw from
    "train": range(9),
    "val": range(9, 11),
    "test": range(11, 13),
    "zoo": range(13, 15),
    "colour-shape": range(15, 16),
    "texture-shape": range(15, 16),
}

T = TypeVar("T")


class Thing(NamedTuple):
    """One object of a scene, each attribute an index into its word list."""

    shape: int
    colour: int
    size: int
    texture: int
    cell: int

    @property
    def row(self) -> int:
        """0 at the top, 2 at the bottom."""
        return self.cell // 3

    @property
    def column(self) -> int:
        """0 on the left, 2 on the right."""
        return self.cell % 3


class Scene(NamedTuple):
    """The record that pixels and captions are made from."""

    things: tuple[Thing, ...]
    background: int
    tint: int
    clutter: int


class Dice:
    """The chance of one picture, from its key alone.

    Numbers are drawn in blocks: one call of a Generator costs more than the choice made with it.
    """

    def __init__(self, *key: int) -> None:
        """Seed from a tuple of non-negative integers."""
        self._generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))
        self._numbers: list[float] = []

    def roll(self) -> float:
        """A number in [0, 1)."""
        if not self._numbers:
            self._numbers = self._generator.random(128).tolist()
        return self._numbers.pop()

    def pick(self, options: Sequence[T]) -> T:
        """One of `options`, each as likely."""
        return options[int(self.roll() * len(options))]

    def weigh(self, weights: Sequence[float]) -> int:
        """An index, as likely as its weight; the weights sum to 1."""
        left = self.roll()
        for index, weight in enumerate(weights):
            left -= weight
            if left < 0:
                return index
        return len(weights) - 1

    def sample(self, options: Sequence[T], n: int) -> list[T]:
        """`n` different ones of `options`, in random order."""
        pool = list(options)
        return [pool.pop(int(self.roll() * len(pool))) for _ in range(n)]


def arrangement(scene: Scene) -> bytes:
    """The things of a scene without their order or background: what two splits never share."""
    return bytes(value for thing in sorted(scene.things) for value in thing)


def draw_scene(seed: int, split: str, index: int) -> Scene:
    """The scene at `index` of a split: one that this split owns.

    Args:
        seed: The data set's seed, not negative.
        split: One of `SPLITS`.
        index: Position in the split. In the zero-shot sets it also decides the class: index modulo classes.
    """
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    dice = Dice(VERSION, 0, seed, SPLITS.index(split), index)
    draw = _DRAWERS.get(split, _draw_things)
    owned = _OWNED[split]
    while True:
        things = draw(dice, index)
        scene = Scene(
            tuple(things), int(dice.roll() * len(BACKGROUNDS)), int(dice.roll() * len(TINTS)), dice.weigh(_CLUTTERED)
        )
        if zlib.crc32(arrangement(scene)) % 16 in owned:
            return scene


_COUNTS: Final = (0.35, 0.4, 0.25)  # two, three, four things
_TEXTURED: Final = (0.4, 0.2, 0.2, 0.2)
_CLUTTERED: Final = (0.5, 0.3, 0.2)


def is_unseen(thing: Thing) -> bool:
    """Whether the thing shows a combination kept for zero-shot classification."""
    return (thing.shape, thing.colour) in UNSEEN_COLOURS or (thing.shape, thing.texture) in UNSEEN_TEXTURES


def _draw_thing(dice: Dice, cell: int) -> Thing:
    """A thing of a combination that training may see."""
    while True:
        thing = Thing(
            int(dice.roll() * len(SHAPES)),
            int(dice.roll() * len(COLOURS)),
            int(dice.roll() * len(SIZES)),
            dice.weigh(_TEXTURED),
            cell,
        )
        if not is_unseen(thing):
            return thing


def _draw_things(dice: Dice, _index: int) -> list[Thing]:
    """Two to four things in different cells, no two alike in both shape and colour."""
    cells = dice.sample(range(CELLS), 2 + dice.weigh(_COUNTS))
    things: list[Thing] = []
    for cell in cells:
        thing = _draw_thing(dice, cell)
        while any(thing[:2] == other[:2] for other in things):
            thing = _draw_thing(dice, cell)
        things.append(thing)
    return things


def _seen_beside(unseen: frozenset[tuple[int, int]], n_values: int, first: int) -> tuple[tuple[int, int], ...]:
    """For each unseen combination one that was seen, of the same shape."""
    return tuple((shape, first + (value - first + 3) % (n_values - first)) for shape, value in sorted(unseen))


# Classes of the zero-shot sets: the unseen combinations, then as many seen ones of the same shapes.
COLOUR_CLASSES: Final = (*sorted(UNSEEN_COLOURS), *_seen_beside(UNSEEN_COLOURS, len(COLOURS), 0))
TEXTURE_CLASSES: Final = (
    *sorted(UNSEEN_TEXTURES),
    *((shape, 1 + texture % 3) for shape, texture in sorted(UNSEEN_TEXTURES)),
)


def _draw_colour_class(dice: Dice, index: int) -> list[Thing]:
    """A large thing of the class beside a small one that belongs to none."""
    shape, colour = COLOUR_CLASSES[index % len(COLOUR_CLASSES)]
    cells = dice.sample(range(CELLS), 2)
    texture = dice.weigh(_TEXTURED)
    while (shape, texture) in UNSEEN_TEXTURES:
        texture = dice.weigh(_TEXTURED)
    other = _draw_thing(dice, cells[1])
    while other[:2] in COLOUR_CLASSES:
        other = _draw_thing(dice, cells[1])
    return [Thing(shape, colour, 2, texture, cells[0]), other._replace(size=0)]


def _draw_texture_class(dice: Dice, index: int) -> list[Thing]:
    """A large thing of the class beside a small plain one; every class has a texture."""
    shape, texture = TEXTURE_CLASSES[index % len(TEXTURE_CLASSES)]
    cells = dice.sample(range(CELLS), 2)
    colour = int(dice.roll() * len(COLOURS))
    while (shape, colour) in UNSEEN_COLOURS:
        colour = int(dice.roll() * len(COLOURS))
    other = _draw_thing(dice, cells[1])
    return [Thing(shape, colour, 2, texture, cells[0]), other._replace(size=0, texture=0)]


_DRAWERS: Final[dict[str, Callable[[Dice, int], list[Thing]]]] = {
    "colour-shape": _draw_colour_class,
    "texture-shape": _draw_texture_class,
}
