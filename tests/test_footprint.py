"""Memory and disk of a search are foreseen, and a search that does not fit says so before it starts."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from small_zoo import small_config, small_search, write_world

from hyperalign import pipeline
from hyperalign.footprint import heights, lacking, setup_bytes
from hyperalign.forecast import forecast, hollow_grid
from hyperalign.grids import Prepared
from hyperalign.machine import available_bytes
from hyperalign.plan import plan
from hyperalign.request import SearchConfig
from hyperalign.run import load_run
from hyperalign.solve import Method

linux = pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="only Linux tells private memory")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, captions and rows."""
    return write_world(tmp_path_factory.mktemp("footprint") / "world")


@linux
def test_private_memory_grows_with_what_is_held_and_shrinks_when_it_is_given_back() -> None:
    """In a process of its own: what other tests have freed would be taken first."""
    code = """
import numpy as np
from hyperalign.machine import give_back, private_bytes
before = private_bytes()
held = [np.ones(1000) for _ in range(10_000)]
with_it = private_bytes()
del held
give_back()
print(with_it - before, with_it - private_bytes())
"""
    grown, given = map(
        int, subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout.split()
    )

    assert grown > 70e6
    assert given > 60e6


def machine(folder: Path, **files: str) -> tuple[Path, Path]:
    """What a system tells of itself, by path; slashes are written as two underscores."""
    for name, text in {"proc__meminfo": "MemTotal: 9000 kB\nMemAvailable:    4000 kB\n", **files}.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / "proc", folder / "groups"


def test_without_a_container_all_that_is_available_is_free(tmp_path: Path) -> None:
    assert available_bytes(*machine(tmp_path)) == 4_096_000
    assert available_bytes(tmp_path / "no", tmp_path / "nor") is None


@pytest.mark.parametrize(("spare", "left"), [("inactive_file 300000\n", 1_300_000), ("", 1_000_000)])
def test_a_container_s_limit_counts_with_pages_that_nobody_needs(tmp_path: Path, spare: str, left: int) -> None:
    files = {
        "proc__self__cgroup": "0::/box/inner\n",
        "groups__box__memory.max": "3000000\n",
        "groups__box__memory.current": "2000000\n",
        "groups__box__memory.stat": f"anon 5\n{spare}",
        "groups__box__inner__memory.max": "max\n",
        "groups__box__inner__memory.current": "1\n",
    }

    assert available_bytes(*machine(tmp_path, **files)) == left


def test_a_limit_of_the_older_kind_counts_too(tmp_path: Path) -> None:
    files = {
        "proc__self__cgroup": "4:cpu,memory:/box\n1:name=systemd:/\n",
        "groups__memory__box__memory.limit_in_bytes": "3000000\n",
        "groups__memory__box__memory.usage_in_bytes": "2500000\n",
    }

    assert available_bytes(*machine(tmp_path, **files)) == 500_000


def test_more_data_takes_more_until_coordinates_are_not_kept() -> None:
    config = SearchConfig().recipe().canonical
    small, large, huge = (
        setup_bytes(hollow_grid([512] * 4, [512] * 2, np.arange(n)), config) for n in (1_000, 30_000, 3_000_000)
    )

    assert small.height < large.height
    assert large.height - small.height > 4 * 29_000 * 6 * 512  # rows of six encoders
    assert huge.height < large.height
    assert huge.height < 1e9


def test_a_part_that_needs_too_much_is_named_with_what_takes_less() -> None:
    grid, recipe = hollow_grid([256] * 3, [128], np.arange(5_000)), SearchConfig().recipe()
    method = Method("hypernet", "both", 0)
    found = heights([(method, forecast(method, grid, grid.pairs(), recipe))], grid, grid, grid, recipe, [], [])

    assert lacking(found, None) == ""
    assert lacking(found, max(found.values())) == ""
    sentence = lacking(found, 10**6)
    assert "GB of memory for its" in sentence
    assert "0.0 GB are free" in sentence
    assert "takes less, and so do fewer encoders" in sentence


def fitted(free: int | None, monkeypatch: pytest.MonkeyPatch) -> tuple[SearchConfig, list[str]]:
    """What becomes of a search over 15,000 pictures, eight encoders by four, where so much memory is free."""
    said: list[str] = []
    train, rest = (hollow_grid([512] * 8, [512] * 4, np.arange(n)) for n in (15_000, 1_000))
    prepared = Prepared(train=train, val=rest, test=rest, labels=None, notes=[])
    asked: Any = SimpleNamespace(candidates=SimpleNamespace(pair_indices=train.pairs))
    monkeypatch.setattr(pipeline, "available_bytes", lambda: free)
    return pipeline._fit_memory(SearchConfig(zoo=("made-up",)), asked, prepared, said.append), said


@pytest.mark.parametrize("free", [None, 10**12, 10**9])
def test_a_search_that_fits_stays_as_it_is(free: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    config, said = fitted(free, monkeypatch)

    assert config.canonical == {}
    assert said == []


def test_a_search_that_does_not_fit_keeps_no_coordinates(monkeypatch: pytest.MonkeyPatch) -> None:
    config, said = fitted(450 * 10**6, monkeypatch)

    assert config.canonical == {"store_bytes": 0}
    assert [line.partition(",")[0] for line in said] == ["coordinates are made again where they are needed"]


def test_a_search_that_does_not_fit_anyhow_says_so_before_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    config, said = fitted(10**8, monkeypatch)

    assert config.canonical == {"store_bytes": 0}
    assert said[1].startswith("note: this search would take about 0.")
    assert "0.1 GB are free; `max_features` under [canonical]" in said[1]


def test_a_search_that_fits_says_nothing_of_memory(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(pipeline, "available_bytes", lambda: 10**12)

    pipeline.search(
        small_config(world),
        cache_dir=tmp_path / "cache",
        out=tmp_path / "runs",
        progress=lambda *_: None,
        say=said.append,
    )

    assert not any("memory" in line or "coordinates" in line for line in said)


@pytest.mark.parametrize("more", [{}, {"methods": ("ape", "closed-form", "hypernet"), "sides": "text,both"}])
def test_the_folder_of_a_run_is_as_large_as_was_planned(
    world: Path, tmp_path: Path, more: dict[str, tuple[str]]
) -> None:
    from hyperalign.show.page import write_page

    config = small_config(world, **more)

    told = plan(config, cache_dir=tmp_path / "cache", progress=lambda *_: None)
    run = small_search(world, config=config, out=str(tmp_path / "runs"))
    write_page(load_run(run))

    size = sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
    assert told.disk_bytes == pytest.approx(size, rel=0.25)
