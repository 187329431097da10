"""A scene becomes sentences: a small grammar with synonyms, several word orders and partial truths.

A caption says some of what the scene's record holds and nothing else: no word of it is false, few
captions say everything, and the five of one picture differ in form and in what they mention.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from hyperalign.embed.world import SPLITS, VERSION, Dice, Scene, Thing

CAPTIONS_PER_PICTURE: Final = 5

# Synonyms, in the order of the word lists of `world`; each word means one value of one attribute.
SHAPE_WORDS: Final = (
    ("circle", "circle", "disc"),
    ("square", "square", "box"),
    ("triangle", "triangle", "wedge"),
    ("diamond", "diamond", "rhombus"),
    ("star",),
    ("cross", "cross", "plus"),
    ("ring", "ring", "hoop"),
    ("heart",),
    ("hexagon",),
    ("crescent", "crescent", "moon"),
)
COLOUR_WORDS: Final = (
    ("red", "red", "crimson"),
    ("orange", "orange", "amber"),
    ("yellow", "yellow", "golden"),
    ("green", "green", "emerald"),
    ("blue", "blue", "cobalt"),
    ("purple", "purple", "violet"),
    ("pink", "pink", "rosy"),
    ("brown", "brown", "chestnut"),
    ("black", "black", "inky"),
    ("white", "white", "snowy"),
)
SIZE_WORDS: Final = (("small", "little", "tiny"), ("medium", "mid-sized"), ("large", "big", "huge"))
TEXTURE_WORDS: Final = (("solid",), ("striped", "stripy"), ("dotted", "spotted"), ("checked", "chequered"))
TEXTURE_NOUNS: Final = ("", "stripes", "dots", "checks")
BACKGROUND_WORDS: Final = (
    ("plain", "bare"),
    ("fading", "graded"),
    ("tiled",),
    ("lined", "barred"),
    ("speckled", "grainy"),
    ("cloudy", "misty"),
)
TINT_WORDS: Final = (("grey", "ashen"), ("sandy", "beige"), ("bluish", "slate"), ("mossy", "sage"), ("mauve", "lilac"))
NUMBER_WORDS: Final = {2: ("two",), 3: ("three",), 4: ("four",)}
_GROUND_WORDS: Final = ("background", "background", "backdrop", "ground")
_OPENINGS: Final = ("", "", "a picture of ", "an image of ", "we see ", "this shows ", "there is ")


def write_captions(scene: Scene, *, seed: int, split: str, index: int) -> list[str]:
    """Five captions of one scene, each of another form; the same in any process.

    Args:
        scene: What is described.
        seed: With `split` and `index`, decides which facts and which words.
        split: One of `SPLITS`.
        index: Position in the split.
    """
    dice = Dice(VERSION, 2, seed, SPLITS.index(split), index)
    return [form(scene, dice) for form in dice.sample(_FORMS, CAPTIONS_PER_PICTURE)]


def _article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _join(parts: Sequence[str], dice: Dice) -> str:
    if len(parts) == 1:
        return parts[0]
    last = dice.pick((" and ", " and ", " beside ", " with ")) if len(parts) == 2 else dice.pick((" and ", ", then "))
    return ", ".join(parts[:-1]) + last + parts[-1]


def _name(thing: Thing, dice: Dice) -> str:
    """The thing by some of its attributes, always by its colour or its shape."""
    shape, colour = dice.pick(SHAPE_WORDS[thing.shape]), dice.pick(COLOUR_WORDS[thing.colour])
    hidden = dice.roll()
    if hidden < 0.05:
        shape = dice.pick(("shape", "thing"))
    adjectives = [] if 0.05 <= hidden < 0.12 else [colour]
    tail = ""
    if dice.roll() < (0.5 if thing.texture else 0.12):
        if thing.texture and dice.roll() < 0.3:
            tail = f" with {TEXTURE_NOUNS[thing.texture]}"
        else:
            adjectives.insert(0 if dice.roll() < 0.7 else len(adjectives), dice.pick(TEXTURE_WORDS[thing.texture]))
    if dice.roll() < 0.35:
        adjectives.insert(0 if dice.roll() < 0.8 else len(adjectives), dice.pick(SIZE_WORDS[thing.size]))
    if len(adjectives) > 1 and dice.roll() < 0.12:
        return f"{_article(shape)} that is {' and '.join(adjectives)}{tail}"
    return _article(" ".join([*adjectives, shape])) + tail


def _ground(scene: Scene, dice: Dice) -> str:
    """The background by its kind, its tint or both."""
    words = [dice.pick(BACKGROUND_WORDS[scene.background]), dice.pick(TINT_WORDS[scene.tint])]
    said = dice.roll()
    if said < 0.4:
        words = [words[int(said < 0.2)]]
    return dice.pick(("on ", "on ", "against ")) + _article(f"{' '.join(words)} {dice.pick(_GROUND_WORDS)}")


def _ending(scene: Scene, dice: Dice, share: float) -> str:
    """Perhaps the background, perhaps the scribbles."""
    text = f" {_ground(scene, dice)}" if dice.roll() < share else ""
    if dice.roll() < 0.12:
        text += dice.pick(_CLUTTER_WORDS[scene.clutter])
    return text


_CLUTTER_WORDS: Final = (
    (" without scribbles", ", nothing scrawled"),
    (" and a few scribbles", " with some scrawls"),
    (" with scribbles everywhere", " in a mess of scrawls"),
)


def _some(scene: Scene, dice: Dice) -> list[Thing]:
    """All things or two of them, in any order."""
    return dice.sample(scene.things, len(scene.things) if dice.roll() < 0.55 else 2)


def _list(scene: Scene, dice: Dice) -> str:
    named = _join([_name(thing, dice) for thing in _some(scene, dice)], dice)
    return dice.pick(_OPENINGS) + named + _ending(scene, dice, 0.45)


def _count(scene: Scene, dice: Dice) -> str:
    number = dice.pick(NUMBER_WORDS[len(scene.things)])
    named = [_name(thing, dice) for thing in dice.sample(scene.things, 2)]
    what = dice.pick(("shapes", "things", "figures"))
    if dice.roll() < 0.5:
        return f"{number} {what} {_ground(scene, dice)}, among them {_join(named, dice)}"
    if len(scene.things) == 2:
        return f"{number} {what}: {_join(named, dice)}{_ending(scene, dice, 0.4)}"
    return f"{_join(named, dice)} among {number} {what}{_ending(scene, dice, 0.6)}"


def _ground_first(scene: Scene, dice: Dice) -> str:
    named = _join([_name(thing, dice) for thing in _some(scene, dice)], dice)
    return f"{_ground(scene, dice)} {dice.pick(('lies', 'sits', 'we find', 'there is'))} {named}"


def _place(thing: Thing, dice: Dice) -> str:
    """Where the thing is: its cell, or only its row or its column."""
    row, column = dice.pick(_ROW_WORDS[thing.row]), dice.pick(_COLUMN_WORDS[thing.column])
    if row and column and dice.roll() < 0.6:
        return f"in the {row} {column}{dice.pick((' corner', ''))}"
    if row and (not column or dice.roll() < 0.5):
        return f"at the {'top' if thing.row == 0 else 'bottom'}"
    if column:
        return f"on the {column}{dice.pick((' side', ''))}"
    return dice.pick(("in the middle", "in the centre"))


_ROW_WORDS: Final = (("top", "upper"), ("",), ("bottom", "lower"))
_COLUMN_WORDS: Final = (("left",), ("",), ("right",))


def _places(scene: Scene, dice: Dice) -> str:
    parts = []
    for thing in dice.sample(scene.things, 2 if dice.roll() < 0.75 else 1):
        name, place = _name(thing, dice), _place(thing, dice)
        parts.append(f"{place} {name}" if dice.roll() < 0.3 else f"{name} {place}")
    return dice.pick(("", "", "we see ", "there is ")) + _join(parts, dice) + _ending(scene, dice, 0.45)


def _relation(scene: Scene, dice: Dice) -> str:
    one, other = dice.sample(scene.things, 2)
    upright = one.row != other.row and (one.column == other.column or dice.roll() < 0.5)
    if (one.row > other.row) if upright else (one.column > other.column):
        one, other = other, one
    form = dice.pick(_ABOVE if upright else _LEFT)
    return form.format(_name(one, dice), _name(other, dice)) + _ending(scene, dice, 0.45)


_LEFT: Final = (
    "{0} to the left of {1}",
    "{0} left of {1}",
    "{1} to the right of {0}",
    "{1} right of {0}",
    "to the left of {1} there is {0}",
    "{1} has {0} on its left",
)
_ABOVE: Final = (
    "{0} above {1}",
    "{0} over {1}",
    "{1} below {0}",
    "{1} under {0}",
    "above {1} there is {0}",
    "{0} has {1} below it",
)

_FORMS: Final[tuple[Callable[[Scene, Dice], str], ...]] = (
    _list,
    _list,
    _relation,
    _relation,
    _places,
    _places,
    _ground_first,
    _count,
)
