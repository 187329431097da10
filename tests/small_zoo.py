"""A small world for end-to-end tests: pictures that share a latent with their captions, and ready rows of both.

Each encoder is a fixed random view of the latent with noise of its own, so that encoders differ in quality and every
method has something to find. Rows are `.npy` files, so no library builds anything.
"""

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hyperalign.pipeline import SearchConfig, search

SPLITS = {"train": 60, "val": 20, "test": 20}
N_CAPTIONS = 2  # of each picture
IMAGES = {"sharp": (16, 0.05, 3_000_000), "dull": (12, 0.8, 1_000_000), "wide": (24, 0.3, 2_000_000)}
TEXTS = {"words": (10, 0.1, 400_000), "phrases": (16, 0.5, 100_000)}
CLASSES = ("circle", "square", "star")
_LATENT = 6


def write_world(folder: Path, *, seed: int = 0) -> Path:
    """Write pictures, `pairs.csv`, rows and `zoo.toml` into a folder, and return the folder."""
    rng = np.random.default_rng(seed)
    (folder / "pictures").mkdir(parents=True)
    (folder / "rows").mkdir()
    views = _views()
    lines = []
    for split, n_images in SPLITS.items():
        latent = rng.standard_normal((n_images, _LATENT))
        for number in range(n_images):
            path = f"pictures/{split}-{number:03}.png"
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / path)
            lines += [(path, f"{split} picture {number}, caption {k}", split) for k in range(N_CAPTIONS)]
        for name, (_, noise, _) in IMAGES.items():
            write_rows(folder, name, split, _seen(latent, views[name], noise, rng))
        for name, (_, noise, _) in TEXTS.items():
            write_rows(folder, name, split, _seen(latent.repeat(N_CAPTIONS, 0), views[name], noise, rng))
    write_table(folder, lines)
    write_zoo(folder)
    return folder


def write_labels(folder: Path, *, n_each: int = 6) -> Path:
    """Write a label set of three classes, the ready rows of its pictures and prompts, and return its folder."""
    rng = np.random.default_rng(1)
    centres = 2 * rng.standard_normal((len(CLASSES), _LATENT))
    for name in CLASSES:
        (folder / "shapes" / name).mkdir(parents=True)
        for number in range(n_each):
            Image.new("RGB", (4, 4)).save(folder / "shapes" / name / f"{number}.png")
    pictures = centres.repeat(n_each, 0) + 0.5 * rng.standard_normal((n_each * len(CLASSES), _LATENT))
    for encoders, latent in ((IMAGES, pictures), (TEXTS, centres)):
        for name, (_, noise, _) in encoders.items():
            write_rows(folder, name, "labels", _seen(latent, _views()[name], noise, rng))
    return folder / "shapes"


def write_table(folder: Path, lines: Sequence[Sequence[str]]) -> None:
    """Write `pairs.csv`."""
    with (folder / "pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "caption", "split"), *lines])


def write_zoo(folder: Path, **changes: dict[str, Any]) -> None:
    """Write `zoo.toml`; `changes` puts other facts into the table of an encoder."""
    tables = []
    for modality, encoders in (("image", IMAGES), ("text", TEXTS)):
        for name, (width, _, n_params) in encoders.items():
            facts = {
                "name": name,
                "modality": modality,
                "loader": "rows",
                "checkpoint": f"rows/{name}-{{split}}.npy",
                "embed_dim": width,
                "n_params": n_params,
                **changes.get(name, {}),
            }
            lines = [f"{key} = {value!r}" for key, value in facts.items()]
            tables.append("\n".join(["[[encoder]]", *lines]))
    (folder / "zoo.toml").write_text("\n\n".join(tables) + "\n")


def write_rows(folder: Path, name: str, split: str, rows: NDArray[Any]) -> None:
    """Write the ready rows of an encoder for a split."""
    np.save(folder / "rows" / f"{name}-{split}.npy", rows.astype(np.float32))


def read_rows(folder: Path, name: str, split: str) -> NDArray[Any]:
    """Read them."""
    rows: NDArray[Any] = np.load(folder / "rows" / f"{name}-{split}.npy")
    return rows


def small_config(folder: Path, **changes: Any) -> SearchConfig:
    """A search over the small world that takes a second."""
    return replace(
        SearchConfig(
            zoo=(str(folder / "zoo.toml"),),
            data=str(folder / "pairs.csv"),
            train={"n_steps": 10, "batch_size": 16, "pairs_per_step": 3},
            baseline={"n_epochs": 6.0, "batch_size": 16, "learning_rate": 0.05},
            baseline_both={"n_epochs": 2.0, "batch_size": 16},
            polish=0,
        ),
        **changes,
    )


def small_search(folder: Path, *, config: SearchConfig | None = None, out: str = "reports", **given: Any) -> Path:
    """Search the small world and return the run's folder."""
    silent: dict[str, Any] = {"progress": lambda stage, done, total: None, "say": lambda sentence: None}
    return search(config or small_config(folder), cache_dir=folder / "cache", out=folder / out, **{**silent, **given})


def _views() -> dict[str, NDArray[Any]]:
    """How each encoder looks at the latent."""
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal((_LATENT, width)) for name, (width, *_) in sorted({**IMAGES, **TEXTS}.items())}


def _seen(latent: NDArray[Any], view: NDArray[Any], noise: float, rng: np.random.Generator) -> NDArray[Any]:
    rows: NDArray[Any] = np.tanh(latent @ view / 2) + noise * rng.standard_normal((len(latent), view.shape[1]))
    return rows
