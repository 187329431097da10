"""Long runs: a NaN late in the data costs its item and no more, and ten thousand steps need no more memory."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from small_zoo import small_config, small_search, write_table, write_world

from hyperalign.embed.cache import find_entries, open_folder
from hyperalign.run import load_run
from trust.conftest import Tally
from trust.deeds import run
from trust.harm import warm, write_static

_NETS = """\
import torch
from torch import nn


class Net(nn.Module):
    \"\"\"A random view of a picture, except that a picture that is white in its first pixel has no embedding.\"\"\"

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.view = nn.Linear(192, 12)

    def forward(self, pictures):
        rows = self.view(pictures.flatten(1))
        rows[(pictures[:, :, 0, 0] == 1).all(1)] = float("nan")
        return rows


def net():
    return Net()
"""
_ZOO = """\
[[encoder]]
name = "net"
modality = "image"
loader = "python"
factory = "nets.py:net"
input_size = 8
crop_pct = 1.0
mean = [0, 0, 0]
std = [1, 1, 1]

[[encoder]]
name = "words"
modality = "text"
loader = "sentence-transformers"
checkpoint = "words"
"""


def write_late_fault(folder: Path, n_train: int, at: int) -> None:
    """Pictures of eight colours and captions that name them; the picture and the caption `at` have no embedding."""
    rng, lines = np.random.default_rng(0), []
    (folder / "pictures").mkdir(parents=True)
    for split, n in (("train", n_train), ("val", 40), ("test", 40)):
        for number in range(n):
            colour = rng.integers(0, 8)
            pixels = rng.integers(0, 100, (8, 8, 3), dtype=np.uint8)
            pixels[..., [0, 1, 2]] += np.array([100 * (colour >> bit & 1) for bit in range(3)], np.uint8)
            bad = split == "train" and number == at
            pixels[0, 0] = 255 if bad else 0
            path = f"pictures/{split}-{number:05}.png"
            Image.fromarray(pixels).save(folder / path)
            lines.append((path, "unheard" if bad else f"colour{colour}", split))
    write_table(folder, lines)
    (folder / "nets.py").write_text(_NETS)
    (folder / "zoo.toml").write_text(_ZOO)
    table = np.random.default_rng(1).standard_normal((10, 10)).astype(np.float32)
    table[8] = np.nan
    write_static(folder / "words", [*(f"colour{k}" for k in range(8)), "unheard"], table)


@pytest.mark.parametrize(
    ("n_train", "at"), [(300, 250), pytest.param(5_200, 4_999, marks=[pytest.mark.trust, pytest.mark.timeout(1800)])]
)
def test_a_nan_late_in_the_data_costs_its_item_and_not_the_run(
    n_train: int, at: int, tmp_path: Path, tally: Tally
) -> None:
    warm()
    write_late_fault(tmp_path, n_train, at)
    words: list[str | Path] = [
        "search",
        "--zoo",
        tmp_path / "zoo.toml",
        "--data",
        tmp_path / "pairs.csv",
        "--verify",
        "1",
    ]

    run([*words, "--verify", "1", "--cache-dir", tmp_path / "cache", "--out", tmp_path / "reports"], tmp_path / "said")

    found = load_run(next((tmp_path / "reports").glob("*")))
    assert math.isfinite(found.leaderboard["score"].iloc[0])
    assert found.leaderboard["score"].iloc[0] > 1.5 * 100 / 40  # chance is 2.5
    notes = " ".join(found.result["notes"])
    assert f"net has no usable row for 1 picture, which counts as a miss: pictures/train-{at:05}.png" in notes
    assert "words has no usable row for 1 caption, which counts as a miss: unheard" in notes
    lost = {}
    for entry in find_entries(tmp_path / "cache"):
        whole = open_folder(entry.folder)
        lost[whole.manifest["key"]["encoder"], whole.manifest["key"]["split"]] = np.flatnonzero(
            ~np.isfinite(whole.rows[:].astype(np.float32)).all(1)
        ).tolist()
    assert lost == {(e, s): [at] if s == "train" else [] for e in ("net", "words") for s in ("train", "val", "test")}
    tally.add("faults", f"NaN at item {at:,} of {n_train:,}, both sides", done=2, survived=2, items_lost=2)


@pytest.mark.parametrize(
    ("first", "last"), [(100, 600), pytest.param(1_000, 10_000, marks=[pytest.mark.trust, pytest.mark.timeout(3600)])]
)
def test_memory_does_not_grow_with_the_steps(first: int, last: int, tmp_path: Path, tally: Tally) -> None:
    world, kept = write_world(tmp_path / "world"), dict[int, int]()

    def look(stage: str, done: int, total: int) -> None:
        if stage == "hypernetwork, steps" and done in (first, last):
            kept[done] = private_bytes()

    config = small_config(world, train={"n_steps": last, "batch_size": 16, "pairs_per_step": 3})
    path = small_search(world, config=config, progress=look)

    table: pd.DataFrame = load_run(path).leaderboard
    assert table["score"].notna().all()
    assert set(kept) == {first, last}
    grown = kept[last] - kept[first]
    assert grown < 4 * 2**20, f"{grown:,} bytes more"
    figures: dict[str, Any] = {"grown_bytes": grown, "private_bytes": kept[last]}
    tally.add("memory", f"{last:,} training steps, against {first:,}", done=1, survived=1, **figures)


def private_bytes() -> int:
    """RssAnon of this process: memory that no file stands behind."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))
