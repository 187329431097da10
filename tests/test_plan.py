"""A plan says what a run will book, to the unit, before anything is computed."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from small_zoo import IMAGES, SPLITS, TEXTS, small_config, small_search, write_world, write_zoo

from hyperalign.embed.zoo import Limits, Range
from hyperalign.ledger import total_flops
from hyperalign.plan import Plan, plan
from hyperalign.record import to_json
from hyperalign.request import SearchConfig
from hyperalign.run import load_run
from hyperalign.show.planned import plan_table

EVERYTHING = {"methods": ("ape", "closed-form", "hypernet", "hypernet-sliced"), "sides": "text,both"}
BOOKED = ("set-up", "training", "validation", "optimiser", "test evaluation")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, captions and rows."""
    return write_world(tmp_path_factory.mktemp("plan") / "world")


def planned(config: SearchConfig, cache_dir: Path) -> Plan:
    """The plan, told to nobody."""
    return plan(config, cache_dir=cache_dir, progress=lambda stage, done, total: None)


@pytest.mark.parametrize(
    ("canonical", "steps"),
    [
        ({}, {"n_steps": 7}),
        ({"store_bytes": 0}, {"n_epochs": 0.5}),
        ({"max_features": 11, "rank": 7}, {"n_steps": 2}),
        ({"targets_per_rank": 1, "rank": 5, "store_bytes": 0}, {"n_steps": 5}),
    ],
    ids=["kept", "not kept", "cut", "few targets, not kept"],
)
def test_a_plan_says_what_the_ledger_will_to_the_unit(
    world: Path, tmp_path: Path, canonical: dict[str, Any], steps: dict[str, Any]
) -> None:
    train = {**steps, "batch_size": 16, "pairs_per_step": 4}
    config = small_config(world, **EVERYTHING, canonical=canonical, train=train)

    told = planned(config, tmp_path / "no cache")
    run = load_run(small_search(world, config=config, out=str(tmp_path / "runs")))

    booked = {(row.method, row.stage): row.flops for row in run.ledger.itertuples() if row.stage in BOOKED}
    assert booked == {(step.method, step.stage): step.flops for step in told.steps if step.stage in BOOKED}
    assert run.result["totals"] == {"search_flops": told.search_flops, "all_flops": told.all_flops}


def test_the_plan_s_grid_is_that_of_the_ratio(world: Path, tmp_path: Path) -> None:
    config = small_config(world)

    told = planned(config, tmp_path)
    run = load_run(small_search(world, config=config, out=str(tmp_path / "runs")))

    assert told.grid_flops == run.result["ratios"][1]["baseline_flops"]


def test_the_grid_s_cost_is_the_same_whether_it_is_run_or_computed(world: Path, tmp_path: Path) -> None:
    """One seed of the grid as the ledger of a run has it."""
    run = load_run(small_search(world, config=small_config(world, methods=("ape",)), out=str(tmp_path / "runs")))

    lines = run.ledger[(run.ledger["method"] == "ape · text") & run.ledger["stage"].isin(["training", "validation"])]
    assert planned(small_config(world), tmp_path).grid_flops == lines["flops"].sum()


def test_a_verification_is_planned_as_the_dearest_pairs(world: Path, tmp_path: Path) -> None:
    config = small_config(world, verify=6)

    told = planned(config, tmp_path)
    run = load_run(small_search(world, config=config, out=str(tmp_path / "runs")))

    step = next(step for step in told.steps if step.stage == "verification")
    assert step.flops == run.ledger.set_index("stage").loc["verification", "flops"]
    some = planned(small_config(world, verify=2), tmp_path)
    assert step.flops / 6 < next(one for one in some.steps if one.stage == "verification").flops / 2


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be trained, embedded or read from rows."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a plan computes nothing")

    for name in ("hyperalign.prepare.fill", "hyperalign.solve.solve_residual", "hyperalign.solve.solve_ape"):
        monkeypatch.setattr(name, refuse)
    monkeypatch.setattr("hyperalign.embed.encoders.load_encoder", refuse)


@pytest.mark.usefixtures("refusing")
def test_a_plan_computes_nothing_and_writes_no_run(world: Path, tmp_path: Path) -> None:
    told = planned(small_config(world, **EVERYTHING), tmp_path / "cache")

    assert [step.what for step in told.steps[:2]] == ["sharp: ready rows", "dull: ready rows"]
    assert all(step.cached for step in told.steps if step.stage == "embedding")
    assert not list(tmp_path.glob("**/*.npy"))


TIMM = """
[[encoder]]
name = "tiny-vit"
modality = "image"
loader = "timm"
architecture = "vit_tiny_patch16_224.augreg_in21k"
embed_dim = 192
n_params = 5_524_416
gflops = 2.5
"""


@pytest.mark.usefixtures("refusing")
def test_rows_that_are_not_cached_cost_what_the_zoo_declares(world: Path, tmp_path: Path) -> None:
    """An encoder of the hub, without a connection: its commit is not known, so nothing of it can be in the cache."""
    write_zoo(world)
    (tmp_path / "both.toml").write_text(TIMM)
    config = small_config(world, zoo=(str(world / "zoo.toml"), str(tmp_path / "both.toml")))

    told = planned(config, tmp_path / "cache")

    step = next(step for step in told.steps if "tiny-vit" in step.what)
    n_rows = sum(SPLITS.values())
    assert step.what == f"tiny-vit: {n_rows} rows to embed, 0 in the cache"
    assert step.flops == n_rows * 2.5e9
    assert 0 <= step.disk_bytes - n_rows * 192 * 2 < 2000  # rows, and the records of their shards
    assert step.memory_bytes > 4 * 5_524_416
    assert step.seconds is not None
    assert step.seconds > step.flops / told.flops_per_second


@pytest.mark.usefixtures("refusing")
def test_a_latency_that_is_not_measured_is_let_through_and_said(world: Path, tmp_path: Path) -> None:
    tables = (world / "zoo.toml").read_text().split("\n\n")
    texts = [table for table in tables if "modality = 'text'" in table]
    (world / "timed.toml").write_text("\n\n".join([TIMM, *texts]))
    config = small_config(world, zoo=(str(world / "timed.toml"),), limits=Limits(latency_ms=Range(high=1e-9)))

    told = planned(config, tmp_path)

    assert told.counts[0].startswith("within the limits: 1 of 1 image encoders")
    assert told.counts[1].startswith("1 latency is measured when the search runs")


def test_what_is_shared_takes_its_time_once(world: Path, tmp_path: Path) -> None:
    told = planned(small_config(world, **EVERYTHING), tmp_path)

    setups = [step for step in told.steps if step.stage == "set-up"]
    assert len(setups) == 5
    assert [bool(step.seconds) for step in setups] == [True, False, False, False, False]
    assert len({step.flops for step in setups}) == 1
    assert told.all_flops == sum(step.flops for step in told.steps) - 4 * setups[0].flops


def test_a_plan_fits_json_and_a_narrow_terminal(world: Path, tmp_path: Path) -> None:
    told = planned(small_config(world, verify=1), tmp_path)
    console = Console(width=80, record=True, file=io.StringIO())

    console.print(plan_table(told, width=console.width))

    assert json.loads(to_json(told))["steps"][0]["stage"] == "embedding"
    shown = console.export_text()
    assert all(name in shown for name in (*IMAGES, *TEXTS))
    assert "the baseline's grid, ape · text, would cost" in " ".join(shown.split())


def test_a_plan_has_no_total_for_what_is_not_known(world: Path, tmp_path: Path) -> None:
    (tmp_path / "vit.toml").write_text(
        TIMM.replace("gflops = 2.5\n", "").replace("timm", "sentence-transformers").replace("image", "text")
    )
    config = small_config(world, zoo=(str(world / "zoo.toml"), str(tmp_path / "vit.toml")))

    told = planned(config, tmp_path / "cache")

    assert next(step for step in told.steps if "tiny-vit" in step.what).seconds is None
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(plan_table(told, width=console.width))
    assert "and what is not known" in " ".join(console.export_text().split())


def test_large_data_is_planned_at_once(tmp_path: Path) -> None:
    """Shapes are all that is looked at: half a million rows of 768 numbers per side take no memory."""
    from hyperalign.forecast import forecast, hollow_grid
    from hyperalign.solve import Method

    grid = hollow_grid([768] * 12, [384] * 4, np.arange(500_000))
    config = SearchConfig()

    cost = forecast(Method("hypernet", "both", 0), grid, grid.pairs(), config.recipe())

    assert cost.setup_flops > 500_000 * 2 * 512**2 * 12
    assert cost.solution.weights[0].device == torch.device("meta")


def test_the_total_counts_a_shared_set_up_once() -> None:
    from hyperalign.ledger import Line

    lines = [
        Line("set-up", "a", "made", 100, 1.0),
        Line("set-up", "b", "shared with a", 100),
        Line("training", "b", "", 10, 2.0),
        Line("optimiser", "b", "AdamW", 1),
    ]

    assert total_flops(lines) == 111
