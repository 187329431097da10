"""The speed of this machine: what is measured is what ran, and the account of the method's authors adds up."""

import dataclasses
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_zoo import small_config, write_world

from hyperalign.bench import loss_memory, speed, throughput, timed
from hyperalign.bench.loss_memory import run_loss_apart
from hyperalign.bench.opened import Opened, open_bench
from hyperalign.bench.published import account, explain
from hyperalign.bench.sheet import Asked
from hyperalign.bench.throughput import Pass, Speeds, compare_loops
from hyperalign.bench.timed import Timed, method_sheet, ratio_sheet, time_method, time_methods
from hyperalign.bench.watermark import watched
from hyperalign.embed.bare import embed_bare, write_jpegs
from hyperalign.embed.encoders import Encoder, embed_pictures, load_encoder
from hyperalign.embed.pictures import whole_files
from hyperalign.embed.scenes import ScenePictures
from hyperalign.embed.zoo import load_zoo
from hyperalign.ledger import search_flops
from hyperalign.scoring import mean_score
from hyperalign.show.benched import benched_table
from hyperalign.solve import Method

MIB = 2**20


def ask_for(folder: Path, **changes: Any) -> Asked:
    """A measurement on the small world, telling nobody."""
    return Asked(
        config=small_config(folder, **changes),
        cache_dir=folder / "cache",
        out=folder / "reports",
        n_seeds=2,
        progress=lambda stage, done, total: None,
        say=lambda sentence: None,
    )


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Asked, Opened, list[Timed]]:
    """Every method on the small world."""
    asked = ask_for(write_world(tmp_path_factory.mktemp("world") / "world"))
    opened = open_bench(asked)
    return asked, opened, time_methods(opened, asked)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    """The smallest shipped image encoder."""
    spec = next(spec for spec in load_zoo("embedded") if spec.name == "resnet10-64")
    return load_encoder(spec, device="cpu")


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Scenes as JPEG files."""
    return write_jpegs(ScenePictures(seed=0, split="val", n_pictures=9), 7, tmp_path)


def test_every_method_is_run_and_named_once(small: tuple[Asked, Opened, list[Timed]]) -> None:
    labels = [one.solved.method.label for one in small[2]]

    assert labels == [
        "closed-form · both",
        "closed-form · text",
        "hypernet · both",
        "hypernet-sliced · text",
        "ape · text",
        "ape · both",
    ]


def test_a_method_is_booked_as_the_ledger_books_it(small: tuple[Asked, Opened, list[Timed]]) -> None:
    for row, one in zip(method_sheet(small[2], 1e9).rows, small[2], strict=True):
        assert row["search_flops"] == search_flops(one.solved.lines, one.solved.method.label) > 0
        assert row["search_flops"] == row["set_up_flops"] + row["training_flops"] + row["validation_flops"]
        assert row["search_peak_share"] == pytest.approx(row["search_flops"] / row["search_seconds"] / 1e9)


def test_training_alone_is_less_than_the_search_and_has_its_own_share(
    small: tuple[Asked, Opened, list[Timed]],
) -> None:
    rows = {row["method"]: row for row in method_sheet(small[2], 1e9).rows}

    assert rows["closed-form · both"]["training_peak_share"] is None
    for label in ("hypernet · both", "hypernet-sliced · text", "ape · text"):
        row = rows[label]
        assert 0 < row["training_seconds"] < row["search_seconds"]
        assert row["training_peak_share"] == pytest.approx(row["training_flops_per_second"] / 1e9)


def test_looks_at_validation_are_taken_off_the_training_once(
    small: tuple[Asked, Opened, list[Timed]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, opened, _ = small
    seconds = 0.5

    def slow(*given: Any) -> float:
        time.sleep(seconds)
        return mean_score(*given)

    monkeypatch.setattr("hyperalign.solve.mean_score", slow)
    monkeypatch.setattr(timed, "ONCE_SECONDS", 0.0)
    found = time_method(Method("hypernet", "both", 0), opened, asked)

    by_stage = {line.stage: line.seconds for line in found.solved.lines}
    n_looks = sum(len(fit.looks) for fit in found.solved.solution.fits)
    assert n_looks > 1
    assert by_stage["validation"] > n_looks * seconds
    assert 0 < found.training_seconds < n_looks * seconds
    assert found.training_seconds == by_stage["training"]


def test_short_methods_are_repeated_and_the_fastest_run_is_kept(
    small: tuple[Asked, Opened, list[Timed]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, opened, _ = small
    runs, run = [], timed._run

    def noted(method: Method, opened: Opened, asked: Asked) -> Timed:
        runs.append(run(method, opened, asked))
        return runs[-1]

    monkeypatch.setattr(timed, "_run", noted)
    method = Method("closed-form", "both", 0)

    best = time_method(method, opened, dataclasses.replace(asked, n_seeds=3))
    monkeypatch.setattr(timed, "ONCE_SECONDS", 0.0)
    once = time_method(method, opened, asked)

    assert best.n_runs == 3
    assert best.search_seconds == min(one.search_seconds for one in runs[:3])
    assert best.growth_bytes == runs[0].growth_bytes
    assert once.n_runs == 1
    assert len(runs) == 4


def test_ratios_are_of_the_rows_that_stand_beside_them(small: tuple[Asked, Opened, list[Timed]]) -> None:
    asked, opened, every = small

    rows = ratio_sheet(every, opened, asked).rows

    methods = {row["method"]: row for row in method_sheet(every, 1.0).rows}
    own = methods["hypernet · both"]
    computed = "computed, matched batch 16, each at its own setting"  # the same sides
    assert [row["setting"] for row in rows] == [*["measured, matched batch 16"] * 2, computed]
    for row in rows[:2]:
        ape = methods[row["baseline"]]
        assert row["flops_ratio"] == ape["search_flops"] / own["search_flops"]
        assert row["wall_ratio"] == ape["search_seconds"] / own["search_seconds"]
    assert rows[2]["baseline_flops"] == methods["ape · text"]["search_flops"]  # computed as it ran


def test_every_ratio_names_the_batches_of_its_own_two_sides(small: tuple[Asked, Opened, list[Timed]]) -> None:
    asked, opened, every = small
    changes: dict[str, Any] = {"baseline": {"batch_size": 32}, "baseline_both": {"batch_size": 8}}
    other = dataclasses.replace(asked, config=dataclasses.replace(asked.config, **changes))

    rows = ratio_sheet(every, opened, other).rows

    assert [(row["setting"], row["baseline"].split(",")[0]) for row in rows] == [
        ("measured, batch 32 against 16", "ape · text"),
        ("measured, batch 8 against 16", "ape · both"),
        ("computed, matched batch 16", "ape · text"),
        ("computed, each at its own setting", "ape · text"),
    ]


def test_the_account_of_the_authors_holds_within_a_thousandth() -> None:
    rows = account().rows

    assert len(rows) == 9
    assert all(abs(row["ours_over_published"] - 1) < 1e-3 for row in rows)
    assert rows[4]["ours_flops"] == 558_128 // 16384 * 16384 * 384 * (4 * 768 + 4 * 16384)


def test_the_published_ratio_is_explained_by_what_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    words = " ".join(explain())

    assert re.findall(r"([\d.]+)×", words) == ["8", "15", "1.1"]
    assert "1/3 of the data" in words
    monkeypatch.setattr("hyperalign.bench.published.WIDTHS", (384, 384, 384))
    assert re.findall(r"([\d.]+)×", " ".join(explain())) == ["8", "8", "0.6"]


def test_the_watermark_sees_memory_that_is_gone_again() -> None:
    with watched() as before:
        rows = torch.ones(64 * MIB // 4)
        del rows
    with watched() as after:
        pass

    if before.n_bytes is None or after.n_bytes is None:
        pytest.skip("this system does not tell")
    assert 60 * MIB < before.n_bytes < 90 * MIB
    assert after.n_bytes < 10 * MIB


def test_the_loss_takes_its_logits_once_where_they_are_kept_and_not_at_all_where_not() -> None:
    """Batch 8,192: 256 MiB of logits; beside them a few tiles of 16 MiB."""
    kept, again = (run_loss_apart(batch=8192, dim=64, keep=keep, n_threads=1) for keep in (True, False))

    assert again.loss == pytest.approx(kept.loss, rel=1e-6)
    assert kept.loss == pytest.approx(np.log(8192) + 20**2 / 64 / 2, rel=0.02)  # of unrelated rows, by the normal law
    if kept.growth_bytes is None or again.growth_bytes is None:
        pytest.skip("this system does not tell")
    assert 256 * MIB < kept.growth_bytes < 416 * MIB
    assert again.growth_bytes < 200 * MIB


def test_the_bare_loop_gives_the_rows_that_are_cached(encoder: Encoder, files: list[str]) -> None:
    assert encoder.picture is not None

    bare = embed_bare(encoder.network, encoder.picture, files, batch_size=3, n_workers=0)
    ours, bad = embed_pictures(encoder, whole_files(files), 0, len(files), batch_size=4)

    assert not bad
    assert bare.shape == (7, 64)
    np.testing.assert_allclose(ours, bare, rtol=1e-3, atol=1e-3)


def test_pictures_in_memory_are_enlarged_and_files_keep_their_size(tmp_path: Path, files: list[str]) -> None:
    (tmp_path / "again").mkdir()

    again = write_jpegs(whole_files([str(_picture(tmp_path, (50, 40)))]), 1, tmp_path / "again")

    assert _size(files[0]) == (256, 256)
    assert _size(again[0]) == (50, 40)


def test_the_loops_take_turns_on_the_same_pictures(
    encoder: Encoder, files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    order = []
    monkeypatch.setattr(throughput, "_ours", lambda one, given: order.append(("ours", tuple(given))))
    monkeypatch.setattr(throughput, "_bare", lambda one, given, n: order.append((f"bare {n}", tuple(given))))

    speeds = compare_loops(encoder, files, n_rounds=3, progress=lambda stage, done, total: None)

    assert all(len(passes) == 3 for passes in speeds)
    names = [name for name, _ in order]
    assert [sorted(names[n : n + 3]) for n in (0, 3, 6)] == [["bare 0", "bare 1", "ours"]] * 3
    assert len({names[n] for n in (0, 3, 6)}) == 3  # whoever begins
    assert {given for _, given in order} == {tuple(files)}


def test_throughput_is_held_against_the_faster_bare_loop_of_the_same_round() -> None:
    speeds = Speeds(
        ours=[Pass(90.0, 2.0), Pass(10.0, 2.0), Pass(50.0, 2.0)],
        bare=[Pass(100.0, 1.0), Pass(10.0, 4.0), Pass(20.0, 3.0)],
        bare_workers=[Pass(50.0, 3.0), Pass(5.0, 5.0), Pass(40.0, 3.0)],
    )

    assert speeds.ratio() == 1.0  # of 0.9, 1.0 and 1.25
    assert speeds.cpu_ratio() == 1.5  # of 0.5, 2.0 and 1.5


def test_an_encoder_is_embedded_in_every_way(
    encoder: Encoder, files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throughput, "worthwhile_workers", lambda n, device: 0)
    asked = ask_for(tmp_path)

    sheet = throughput.throughput_sheet(asked, (encoder.spec,), whole_files(files))

    (row,) = sheet.rows
    assert row["encoder"] == "resnet10-64"
    assert row["pictures"] == 7
    assert all(row[f"{name}_per_second"] > 0 for name in Speeds._fields)


def test_one_measurement_has_every_sheet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "SIZES", (16, 32))
    monkeypatch.setattr(loss_memory, "run_loss_apart", lambda **given: loss_memory.LossRun(1.0, 9 * MIB, 1.0))

    sheets = speed.measure(dataclasses.replace(ask_for(write_world(tmp_path / "world")), n_seeds=1))

    assert [len(sheet.rows) for sheet in sheets] == [2, 6, 3, 0, 2, 9]
    assert "ready rows" in sheets[3].notes[0]
    peak = max(row["flops_per_second"] for row in sheets[0].rows)
    row = sheets[1].rows[2]
    assert row["search_peak_share"] == pytest.approx(row["search_flops_per_second"] / peak)
    for sheet in sheets:
        assert all(row.keys() == sheet.rows[0].keys() for row in sheet.rows)
    benched_table({"sheets": [sheet._asdict() for sheet in sheets]}, width=120)


def _size(path: str) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def _picture(folder: Path, size: tuple[int, int]) -> Path:
    path = folder / "own.png"
    Image.new("RGB", size, (10, 200, 30)).save(path)
    return path
