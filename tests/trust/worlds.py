"""Made-up data of any size: pictures that share one file, captions, and rows of encoders that see a common latent."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hyperalign.embed.cache import fill
from hyperalign.pipeline import ask
from hyperalign.request import SearchConfig

_LATENT = 24
_SPLITS = ("train", "val", "test")
_DECLARED = """
[[encoder]]
name = "{name}"
modality = "image"
loader = "timm"
architecture = "vit_base_patch16_224"
revision = "{revision}"
input_size = 224
mean = [0.5, 0.5, 0.5]
std = [0.5, 0.5, 0.5]
interpolation = "bicubic"
crop_pct = 0.9
gflops = 33.7
embed_dim = {width}
n_params = 85_798_656
"""
_DECLARED_TEXT = """
[[encoder]]
name = "{name}"
modality = "text"
loader = "sentence-transformers"
architecture = "made-up/{name}"
revision = "{revision}"
gflops = 2.7
embed_dim = {width}
n_params = 109_486_464
"""


class World(NamedTuple):
    """What of a data set is made up.

    Attributes:
        sizes: Pictures of train, val and test.
        n_captions: Of each picture.
        images: Widths of the image encoders.
        texts: Widths of the text encoders.
    """

    sizes: tuple[int, int, int]
    n_captions: int
    images: Sequence[int]
    texts: Sequence[int]


def write_data(folder: Path, world: World) -> Path:
    """Write the pictures, which are one, and a table of them and their captions; return the table."""
    (folder / "p").mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "one.png")
    with (folder / "pairs.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("image", "caption", "split"))
        for split, size in zip(_SPLITS, world.sizes, strict=True):
            for number in range(size):
                path = f"p/{split}-{number}.png"
                (folder / path).symlink_to("../one.png")
                for k in range(world.n_captions):
                    table.writerow(
                        (path, f"picture {number} of {split}, told for the {k}th time in a few words", split)
                    )
    return folder / "pairs.csv"


def write_zoo(folder: Path, world: World) -> Path:
    """Write a zoo of encoders whose weights nobody has; all that is known of them is declared."""
    tables = [
        text.format(name=f"{side}-{k}", revision="0" * 40, width=width)
        for side, text, widths in (("image", _DECLARED, world.images), ("text", _DECLARED_TEXT, world.texts))
        for k, width in enumerate(widths)
    ]
    (folder / "zoo.toml").write_text("".join(tables), encoding="utf-8")
    return folder / "zoo.toml"


def fill_cache(config: SearchConfig, cache_dir: Path, world: World) -> None:
    """Put rows of every encoder into the cache, as if they had been embedded, a shard at a time."""
    asked = ask(config, cache_dir=cache_dir, progress=lambda stage, done, total: None)
    for number, job in enumerate(asked.jobs):
        width = int(job.spec.embed_dim or 0)
        way = np.random.default_rng([1, *job.spec.name.encode()]).normal(size=(_LATENT, width)).astype(np.float32)
        times = 1 if job.spec.modality == "image" else world.n_captions
        seen = _Seen(way, _SPLITS.index(job.part), times, number)
        fill(cache_dir, job.key, n_rows=len(job.items), embed=seen)


class _Seen:
    """Rows of one encoder on one split: a view of the items' latent, and noise of its own."""

    def __init__(self, way: NDArray[np.float32], split: int, times: int, number: int) -> None:
        self.way, self.split, self.times, self.number = way, split, times, number

    def __call__(self, start: int, stop: int) -> tuple[NDArray[np.float16], list[tuple[int, str]]]:
        items = np.arange(start, stop) // self.times
        first, last = int(items[0]) // 8192, int(items[-1]) // 8192
        blocks = [
            np.random.default_rng([2, self.split, block]).normal(size=(8192, _LATENT))
            for block in range(first, last + 1)
        ]
        latent = np.concatenate(blocks).astype(np.float32)[items - 8192 * first]
        noise = np.random.default_rng([3, self.number, start]).random((len(items), self.way.shape[1]), np.float32)
        return (latent @ self.way + 4 * (noise - 0.5)).astype(np.float16), []
