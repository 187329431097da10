"""The embedded data set: pictures of coloured shapes, five captions each, and two zero-shot label sets.

Everything follows from seed, split and index, so identity and order are known before a pixel is drawn.
Splits never share an arrangement of things, whatever their seeds; the scenes that taught the embedded
encoders are a split of their own ("zoo"), so no user's picture was among them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hyperalign.embed.captions import CAPTIONS_PER_PICTURE, write_captions
from hyperalign.embed.paint import SIDE, paint
from hyperalign.embed.world import (
    COLOUR_CLASSES,
    COLOURS,
    SHAPES,
    TEXTURE_CLASSES,
    TEXTURES,
    UNSEEN_COLOURS,
    UNSEEN_TEXTURES,
    VERSION,
    Scene,
    draw_scene,
)

LABEL_SETS: Final = ("colour-shape", "texture-shape")
TEMPLATES: Final = ("{}", "a picture of one {}", "there is a {}", "this shows one {}", "we see a {}")


class ScenePictures:
    """The pictures of one split, rendered when first asked for and then kept.

    A pickled copy carries no pixels: it renders its own when asked.
    """

    def __init__(self, *, seed: int, split: str, n_pictures: int) -> None:
        """Promise `n_pictures` pictures; nothing is rendered yet."""
        self.seed, self.split, self.n_pictures = seed, split, n_pictures
        self._pixels: NDArray[np.uint8] | None = None
        self._ready = np.zeros(n_pictures, bool)

    def __len__(self) -> int:
        """How many pictures there are."""
        return self.n_pictures

    def __getitem__(self, index: int) -> Image.Image:
        """One picture, RGB."""
        if not -self.n_pictures <= index < self.n_pictures:
            raise IndexError(f"no picture {index} among {self.n_pictures}")
        start = index % self.n_pictures
        return Image.fromarray(self.block(start, start + 1)[0])

    def __getstate__(self) -> dict[str, Any]:
        """What a copy in another process needs: no pixels."""
        return {"seed": self.seed, "split": self.split, "n_pictures": self.n_pictures}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Start again without pixels."""
        self.__init__(**state)  # type: ignore[misc]

    def scene(self, index: int) -> Scene:
        """The record behind one picture."""
        return draw_scene(self.seed, self.split, index)

    def block(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Pictures `start` to `stop`, (stop - start, 64, 64, 3); a read-only view."""
        if self._pixels is None:
            self._pixels = np.zeros((self.n_pictures, SIDE, SIDE, 3), np.uint8)
        for index in (start + np.flatnonzero(~self._ready[start:stop])).tolist():
            self._pixels[index] = paint(self.scene(index), seed=self.seed, split=self.split, index=index)
            self._ready[index] = True
        view = self._pixels[start:stop]
        view.flags.writeable = False
        return view


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneSplit:
    """Pictures and captions of one split.

    Attributes:
        name: "train", "val" or "test" ("zoo": what taught the embedded encoders).
        image_ids: One per picture, unique over all splits of a seed.
        pictures: The pictures, rendered lazily.
        captions: Five per picture, picture by picture.
        owner: (n_captions,) index of each caption's picture.
        image_digest: Identity of the pictures and their order.
        text_digest: Identity of the captions and their order.
    """

    name: str
    image_ids: Sequence[str]
    pictures: ScenePictures
    captions: Sequence[str]
    owner: NDArray[np.int64]
    image_digest: str
    text_digest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneLabels:
    """A zero-shot label set: pictures of one class each, half of the classes never seen in training.

    Attributes:
        name: One of `LABEL_SETS`.
        class_names: One per class.
        templates: Prompts with one gap.
        image_ids: One per picture, unique.
        pictures: The pictures, rendered lazily.
        labels: (n_images,) class of each picture; the classes take turns.
        groups: (n_images,) 1 where the class's combination was held out of every other split, else 0.
        group_names: What the groups are called.
        image_digest: Identity of the pictures and their order.
        text_digest: Identity of class names and templates.
    """

    name: str
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    image_ids: Sequence[str]
    pictures: ScenePictures
    labels: NDArray[np.int64]
    groups: NDArray[np.int64]
    group_names: tuple[str, str]
    image_digest: str
    text_digest: str


def open_scenes(*, seed: int = 0, n_train: int = 3000, n_val: int = 500, n_test: int = 500) -> dict[str, SceneSplit]:
    """The three splits by name; captions are written, no picture is rendered."""
    sizes = {"train": n_train, "val": n_val, "test": n_test}
    return {split: open_scene_split(split, seed=seed, n_pictures=n) for split, n in sizes.items()}


def open_scene_split(split: str, *, seed: int, n_pictures: int) -> SceneSplit:
    """One split of any size; the first pictures of a larger one are those of a smaller one."""
    if n_pictures < 1:
        raise ValueError(f"a split of scenes needs at least one picture, got {n_pictures} for {split!r}")
    captions: list[str] = []
    for index in range(n_pictures):
        captions += write_captions(draw_scene(seed, split, index), seed=seed, split=split, index=index)
    return SceneSplit(
        name=split,
        image_ids=_ids(split, n_pictures),
        pictures=ScenePictures(seed=seed, split=split, n_pictures=n_pictures),
        captions=captions,
        owner=np.repeat(np.arange(n_pictures), CAPTIONS_PER_PICTURE),
        image_digest=_digest("pictures", seed, split, n_pictures),
        text_digest=_digest("captions", seed, split, n_pictures),
    )


def open_scene_labels(name: str, *, seed: int = 0, n_per_class: int = 25) -> SceneLabels:
    """A zero-shot label set whose classes are combinations of two attributes."""
    if name not in LABEL_SETS:
        raise KeyError(f"no label set {name!r} in scenes; there are {', '.join(LABEL_SETS)}")
    if n_per_class < 1:
        raise ValueError(f"a label set needs at least one picture per class, got {n_per_class}")
    classes, words, unseen = {
        "colour-shape": (COLOUR_CLASSES, COLOURS, UNSEEN_COLOURS),
        "texture-shape": (TEXTURE_CLASSES, TEXTURES, UNSEEN_TEXTURES),
    }[name]
    n_pictures = n_per_class * len(classes)
    labels = np.arange(n_pictures) % len(classes)
    return SceneLabels(
        name=name,
        class_names=tuple(f"{words[value]} {SHAPES[shape]}" for shape, value in classes),
        templates=TEMPLATES,
        image_ids=_ids(name, n_pictures),
        pictures=ScenePictures(seed=seed, split=name, n_pictures=n_pictures),
        labels=labels,
        groups=np.array([pair in unseen for pair in classes], np.int64)[labels],
        group_names=("seen", "held-out"),
        image_digest=_digest("pictures", seed, name, n_pictures),
        text_digest=_digest("classes", 0, name, len(classes)),
    )


def _ids(split: str, n_pictures: int) -> tuple[str, ...]:
    return tuple(f"{split}-{index:06d}" for index in range(n_pictures))


def _digest(what: str, seed: int, split: str, n: int) -> str:
    """Identity without rendering: `VERSION` stands for the code that draws and writes."""
    return hashlib.sha256(f"scenes {VERSION} {what} {split} {seed} {n}".encode()).hexdigest()
