"""The measurement of the hypernetwork's cost: all eight are in it, and its rows are what was timed and counted."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from hyperalign.bench.measures import MEASURES
from hyperalign.bench.sheet import Asked
from hyperalign.cli import app
from hyperalign.hyperclip import eight
from hyperalign.hyperclip.architectures import BOTTLENECKS, NAMES, find_architecture
from hyperalign.hyperclip.hypernetwork import HyperConfig
from hyperalign.hyperclip.overhead import Overhead, Shape, count_step
from hyperalign.hyperclip.text import TextConfig
from hyperalign.request import SearchConfig


def asked(tmp_path: Path, said: list[str], limit: int | None = None) -> Asked:
    return Asked(
        config=SearchConfig(limit=limit),
        cache_dir=tmp_path,
        out=tmp_path,
        progress=lambda stage, done, total: None,
        say=said.append,
    )


def small(name: str) -> Shape:
    return Shape(
        image=find_architecture(name, input_size=32),
        hyper=HyperConfig(n_layers=1, width=16, n_heads=2, feed_forward=16, bottleneck=8),
        text=TextConfig(n_layers=1, width=16, n_heads=2),
        embed_dim=12,
        n_tokens=100,
        length=8,
    )


def test_a_step_has_the_papers_sizes_and_every_architecture_is_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Timing and counting are others' work with tests of their own; the shapes handed to them are this module's."""
    seen: list[Shape] = []

    def measured(shape: Shape, *, batch_size: int | None, **_: object) -> Overhead:
        seen.append(shape)
        assert batch_size == eight.BATCH
        return Overhead(eight.BATCH, 1, 2, 3, 100, 110, 4.0, 2.0)

    monkeypatch.setattr(eight, "measure_overhead", measured)
    monkeypatch.setattr(eight, "count_step", lambda shape, size, *, with_hyper: size + with_hyper * size // 4)
    monkeypatch.setattr(eight, "device_of_training", lambda: torch.device("cpu"))
    said: list[str] = []

    timed, counted = eight.measure(asked(tmp_path, said))

    assert [row["architecture"] for row in timed.rows] == [row["architecture"] for row in counted.rows] == [*NAMES]
    assert [one.hyper.bottleneck for one in seen] == [*BOTTLENECKS.values()]
    assert [one.image.name for one in seen] == [f"hyperclip-{name.lower()}" for name in NAMES]
    assert all(one.text == TextConfig() and one.hyper.n_layers == 12 for one in seen)
    for row in timed.rows:
        assert (row["siglip_step_seconds"], row["hyperclip_step_seconds"]) == (2.0, 4.0)
        assert row["added_time_share"] == pytest.approx(1.0)
        assert row["added_flops_share"] == pytest.approx(0.1)
    assert {row["batch_512_added_flops_share"] for row in counted.rows} == {0.25}
    assert said[0] == "B0: a step of 8 pictures takes 2.00 s without the hypernetwork and 4.00 s with it"
    assert "overhead" in MEASURES


def test_what_is_timed_and_counted_is_the_real_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eight, "NAMES", ("M1", "T0"))
    monkeypatch.setattr(eight, "_shape", small)
    monkeypatch.setattr(eight, "_ROUNDS", 1)
    monkeypatch.setattr(eight, "_COUNTED", (5,))

    timed, counted = eight.measure(asked(tmp_path, [], limit=3))

    for row, name in zip(timed.rows, ("M1", "T0"), strict=True):
        assert row["batch"] == 3
        assert row["siglip_step_seconds"] > 0
        assert row["hyperclip_step_seconds"] > 0
        assert row["siglip_step_flops"] == count_step(small(name), 3, with_hyper=False)
        assert row["hyperclip_step_flops"] > row["siglip_step_flops"]
        assert row["pixels"] == 32
    assert [row["adapted"] for row in timed.rows] == [12_112, 17_808]
    assert all(row["batch_5_added_flops_share"] > 0 for row in counted.rows)


def test_the_command_takes_the_measurement_and_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eight, "NAMES", ("T0",))
    monkeypatch.setattr(eight, "_shape", small)
    monkeypatch.setattr(eight, "_ROUNDS", 1)
    monkeypatch.setattr(eight, "_COUNTED", (5,))

    done = CliRunner().invoke(app, ["bench", "--overhead", "--limit", "2", "--out", str(tmp_path / "out")])

    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "out" / "bench-overhead.json").read_text())
    assert record["measure"] == "overhead"
    assert [row["architecture"] for row in record["sheets"][0]["rows"]] == ["T0"]
    assert record["sheets"][0]["rows"][0]["batch"] == 2
