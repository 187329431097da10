"""The embedded scenes: same bytes anywhere, splits that share nothing, captions that are true."""

import hashlib
import pickle
import re
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperalign.embed import captions as grammar
from hyperalign.embed.scenes import LABEL_SETS, ScenePictures, open_scene_labels, open_scene_split, open_scenes
from hyperalign.embed.world import (
    SPLITS,
    UNSEEN_COLOURS,
    UNSEEN_TEXTURES,
    Scene,
    Thing,
    arrangement,
    draw_scene,
    is_unseen,
)

SEEDS = st.integers(0, 2**31)
INDICES = st.integers(0, 5000)


def _digest(pictures: ScenePictures) -> str:
    return hashlib.sha256(pictures.block(0, len(pictures)).tobytes()).hexdigest()


def test_another_process_renders_the_same_bytes_and_writes_the_same_captions() -> None:
    split = open_scene_split("val", seed=7, n_pictures=5)
    code = (
        "import hashlib; from hyperalign.embed.scenes import open_scene_split as o; s = o('val', seed=7, n_pictures=5);"
        "print(hashlib.sha256(s.pictures.block(0, 5).tobytes()).hexdigest(), s.captions)"
    )

    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert printed == f"{_digest(split.pictures)} {split.captions}\n"


def test_a_picture_by_itself_is_the_picture_of_the_block() -> None:
    alone, together = (ScenePictures(seed=1, split="test", n_pictures=9) for _ in range(2))

    assert np.array_equal(np.asarray(alone[8]), together.block(0, 9)[8])


def test_a_smaller_split_is_the_beginning_of_a_larger_one() -> None:
    small, large = (open_scene_split("train", seed=2, n_pictures=n) for n in (3, 6))

    assert list(small.captions) == list(large.captions[:15])
    assert np.array_equal(small.pictures.block(0, 3), large.pictures.block(0, 3))
    assert small.image_digest != large.image_digest


def test_another_seed_is_another_data_set() -> None:
    one, other = (open_scenes(seed=seed, n_train=4, n_val=2, n_test=2)["train"] for seed in (0, 1))

    assert one.captions != other.captions
    assert one.image_digest != other.image_digest
    assert _digest(one.pictures) != _digest(other.pictures)


def test_opening_renders_nothing_and_a_pickle_carries_no_pixels() -> None:
    pictures = open_scenes(n_train=3000, n_val=1, n_test=1)["train"].pictures
    pictures.block(0, 2)

    copy = pickle.loads(pickle.dumps(pictures))

    assert len(pickle.dumps(pictures)) < 1000
    assert np.array_equal(copy.block(1, 2), pictures.block(1, 2))


def test_pictures_are_handed_out_read_only() -> None:
    block = ScenePictures(seed=0, split="train", n_pictures=2).block(0, 2)

    with pytest.raises(ValueError, match="read-only"):
        block[:] = 0


def test_a_picture_beyond_the_end_is_refused() -> None:
    pictures = ScenePictures(seed=0, split="train", n_pictures=2)

    assert np.array_equal(np.asarray(pictures[-1]), np.asarray(pictures[1]))
    with pytest.raises(IndexError, match="no picture 2 among 2"):
        pictures[2]


@settings(max_examples=60, deadline=None)
@given(SEEDS, SEEDS, INDICES)
def test_splits_share_no_arrangement_whatever_their_seeds(one: int, other: int, index: int) -> None:
    """The zero-shot sets share their own bucket; no other two splits can draw the same things."""
    owners: dict[bytes, set[str]] = {}
    for seed in (one, other):
        for split in SPLITS[:5]:
            owners.setdefault(arrangement(draw_scene(seed, split, index)), set()).add(split)

    assert all(len(splits) == 1 for splits in owners.values())


def test_the_default_splits_and_the_scenes_that_taught_the_zoo_are_disjoint() -> None:
    drawn = {
        split: {arrangement(draw_scene(seed, split, index)) for index in range(n)}
        for split, seed, n in (("train", 0, 2000), ("val", 0, 300), ("test", 0, 300), ("zoo", 0, 1500))
    }

    for split, scenes in drawn.items():
        for other, others in drawn.items():
            assert split == other or not scenes & others


def test_arrangement_forgets_order_and_background_and_nothing_else() -> None:
    things = (Thing(0, 1, 2, 3, 4), Thing(5, 6, 0, 1, 8))
    scene = Scene(things, 0, 0, 0)

    assert arrangement(scene) == arrangement(Scene(things[::-1], 5, 4, 2))
    for field, value in (("shape", 9), ("colour", 9), ("size", 1), ("texture", 0), ("cell", 3)):
        assert arrangement(scene) != arrangement(Scene((things[0]._replace(**{field: value}), things[1]), 0, 0, 0))


@pytest.mark.parametrize("split", ["train", "val", "test", "zoo"])
def test_held_out_combinations_never_occur_outside_the_label_sets(split: str) -> None:
    assert not any(is_unseen(thing) for index in range(400) for thing in draw_scene(3, split, index).things)


@pytest.mark.parametrize("name", LABEL_SETS)
def test_a_label_set_shows_each_class_equally_often_and_half_of_them_are_held_out(name: str) -> None:
    labels = open_scene_labels(name, n_per_class=3)

    assert set(np.bincount(labels.labels)) == {3}
    assert len(labels.class_names) == len(set(labels.class_names)) == labels.labels.max() + 1
    assert labels.groups.mean() == 0.5
    assert len(labels.image_ids) == len(labels.pictures) == len(labels.labels) == len(labels.groups)
    assert all(template.count("{}") == 1 for template in labels.templates)


@pytest.mark.parametrize("name", LABEL_SETS)
def test_the_first_thing_is_of_the_class_and_the_other_of_none(name: str) -> None:
    labels = open_scene_labels(name, n_per_class=2)
    words = {"colour-shape": grammar.COLOUR_WORDS, "texture-shape": grammar.TEXTURE_WORDS}[name]

    for index, label in enumerate(labels.labels):
        thing, beside = labels.pictures.scene(index).things
        first, other = (
            f"{words[t.colour if name == 'colour-shape' else t.texture][0]} {grammar.SHAPE_WORDS[t.shape][0]}"
            for t in (thing, beside)
        )
        held_out = (thing.shape, thing.colour) in UNSEEN_COLOURS or (thing.shape, thing.texture) in UNSEEN_TEXTURES
        assert first == labels.class_names[label]
        assert other not in labels.class_names
        assert held_out == labels.groups[index]


def test_every_picture_has_five_different_captions_and_owners_in_order() -> None:
    split = open_scene_split("train", seed=0, n_pictures=200)

    assert len(split.captions) == 1000
    assert np.array_equal(split.owner, np.arange(200).repeat(5))
    assert all(len(set(split.captions[5 * i : 5 * i + 5])) == 5 for i in range(200))


def _values(words: tuple[tuple[str, ...], ...]) -> dict[str, int]:
    return {word: value for value, synonyms in enumerate(words) for word in synonyms}


SHAPES, COLOURS = _values(grammar.SHAPE_WORDS), _values(grammar.COLOUR_WORDS)
SIZES, TEXTURES = _values(grammar.SIZE_WORDS), _values(grammar.TEXTURE_WORDS)
TEXTURES |= {noun: value for value, noun in enumerate(grammar.TEXTURE_NOUNS) if noun}
BACKGROUNDS, TINTS = _values(grammar.BACKGROUND_WORDS), _values(grammar.TINT_WORDS)
_ADJECTIVES = [*COLOURS, *SIZES, *TEXTURES]
_NAME = re.compile(  # the longest run of words that speak of one thing
    rf"(?:(?:{'|'.join(_ADJECTIVES)}) )*\b(?:{'|'.join(SHAPES)}|shape|thing)\b"
    rf"(?: that is (?:{'|'.join(_ADJECTIVES)})(?: and (?:{'|'.join(_ADJECTIVES)}))*)?"
    rf"(?: with (?:{'|'.join(grammar.TEXTURE_NOUNS[1:])}))?"
)


def _fits(words: str, thing: Thing) -> bool:
    """Whether every word said of a thing is true of it."""
    said = ((SHAPES, thing.shape), (COLOURS, thing.colour), (SIZES, thing.size), (TEXTURES, thing.texture))
    return all(known[word] == value for known, value in said for word in words.split() if word in known)


def _named(caption: str) -> list[str]:
    return [match.group() for match in _NAME.finditer(caption)]


@settings(max_examples=100, deadline=None)
@given(SEEDS, st.sampled_from(["train", "test"]), INDICES)
def test_everything_a_caption_says_is_true_of_the_scene(seed: int, split: str, index: int) -> None:
    scene = draw_scene(seed, split, index)

    for caption in grammar.write_captions(scene, seed=seed, split=split, index=index):
        words = re.findall(r"[a-z]+(?:-[a-z]+)*", caption)
        assert all(BACKGROUNDS[word] == scene.background for word in words if word in BACKGROUNDS), caption
        assert all(TINTS[word] == scene.tint for word in words if word in TINTS), caption
        numbers = {"two": 2, "three": 3, "four": 4}
        assert all(numbers[word] == len(scene.things) for word in words if word in numbers), caption
        assert _named(caption), caption
        for name in _named(caption):
            assert any(_fits(name, thing) for thing in scene.things), (caption, name, scene)


_RELATIONS: dict[str, Callable[[Thing, Thing], bool]] = {
    r"(.*) (?:to the )?left of (.*)": lambda one, other: one.column < other.column,
    r"(.*) (?:to the )?right of (.*)": lambda one, other: one.column > other.column,
    r"to the left of (.*) there is (.*)": lambda one, other: one.column > other.column,
    r"(.*) has (.*) on its left": lambda one, other: one.column > other.column,
    r"(.*) (?:above|over) (.*)": lambda one, other: one.row < other.row,
    r"(.*) (?:below|under) (?!it)(.*)": lambda one, other: one.row > other.row,
    r"above (.*) there is (.*)": lambda one, other: one.row > other.row,
    r"(.*) has (.*) below it": lambda one, other: one.row < other.row,
}
_PLACES: dict[str, Callable[[Thing], bool]] = {
    "at the top": lambda thing: thing.row == 0,
    "at the bottom": lambda thing: thing.row == 2,
    "on the left": lambda thing: thing.column == 0,
    "on the right": lambda thing: thing.column == 2,
    "in the upper right": lambda thing: (thing.row, thing.column) == (0, 2),
    "in the bottom left": lambda thing: (thing.row, thing.column) == (2, 0),
    "in the middle": lambda thing: thing.cell == 4,
}


def test_relations_are_true_and_every_kind_is_said() -> None:
    seen = set()
    for index in range(400):
        scene = draw_scene(0, "train", index)
        for caption in grammar.write_captions(scene, seed=0, split="train", index=index):
            for pattern, holds in _RELATIONS.items():
                found = re.match(pattern, caption)
                if found is None or not _named(found[1]):
                    continue
                one, other = _named(found[1])[-1], _named(found[2])[0]
                pairs = [(a, b) for a in scene.things for b in scene.things if _fits(one, a) and _fits(other, b)]
                assert any(holds(a, b) for a, b in pairs), (caption, scene)
                seen.add(pattern)

    assert seen == set(_RELATIONS)


def test_places_are_true_and_every_kind_is_said() -> None:
    seen = set()
    for index in range(400):
        scene = draw_scene(0, "train", index)
        for caption in grammar.write_captions(scene, seed=0, split="train", index=index):
            for words, holds in _PLACES.items():
                if words in caption:
                    assert any(holds(thing) for thing in scene.things), (caption, scene)
                    seen.add(words)

    assert seen == set(_PLACES)


def test_captions_are_partial_varied_and_all_their_words_are_few() -> None:
    captions = open_scene_split("train", seed=0, n_pictures=400).captions

    lengths = [len(caption.split()) for caption in captions]
    vocabulary = {word for caption in captions for word in re.findall(r"[a-z-]+", caption)}
    assert len(set(captions)) > 0.99 * len(captions)
    assert min(lengths) <= 8
    assert max(lengths) >= 24
    assert 120 < len(vocabulary) < 200


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: open_scenes(seed=-1, n_train=1), "seed must not be negative, got -1"),
        (lambda: open_scenes(n_train=1, n_val=0), "at least one picture, got 0 for 'val'"),
        (lambda: open_scene_labels("colour-shape", n_per_class=0), "at least one picture per class, got 0"),
        (lambda: draw_scene(0, "dev", 0), "split must be one of train, val"),
    ],
)
def test_impossible_requests_get_one_sentence(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_an_unknown_label_set_is_answered_with_the_known_ones() -> None:
    with pytest.raises(KeyError, match="there are colour-shape, texture-shape"):
        open_scene_labels("relations")
