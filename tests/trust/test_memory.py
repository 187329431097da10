"""Out of memory is met before it comes: a plan says what a search takes, and large data does not take more.

Private memory (RssAnon) is what is measured, above what importing has taken: rows that are read by memory map are not
the process's own, the system takes their pages back when it needs them. Linux alone tells it.
"""

import shutil
from pathlib import Path
from typing import Any

import pytest

from hyperalign.request import from_record
from hyperalign.run import load_run
from trust.conftest import Tally
from trust.in_child import watch
from trust.worlds import World, fill_cache, write_data, write_zoo

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="only Linux tells private memory"),
    pytest.mark.timeout(7200),
]

WORLDS = {
    "3 x 2 encoders, 100 pictures": World((60, 20, 20), 2, (16, 12, 24), (10, 16)),
    "6 x 3 encoders, 5,000 pictures": World((4000, 500, 500), 3, (128, 256, 192, 64, 128, 256), (256, 128, 384)),
    "4 x 2 encoders, 17,000 pictures": World((15_000, 1000, 1000), 2, (768, 768, 512, 1024), (768, 384)),
    "2 x 2 encoders, 66,000 pictures, not kept": World((60_000, 3000, 3000), 1, (768, 768), (768, 768)),
}


def made(folder: Path, world: World, **more: Any) -> dict[str, Any]:
    """A configuration of a search over rows that lie in `folder/cache`."""
    configuration = {"zoo": [str(write_zoo(folder, world))], "data": str(write_data(folder / "data", world)), **more}
    fill_cache(from_record(configuration), folder / "cache", world)
    return configuration


def size_of(folder: Path) -> int:
    """Bytes of all files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def compare(tmp_path: Path, configuration: dict[str, Any], tally: Tally, what: str) -> None:
    """Plan a search and run it, each in a process of its own, and hold one against the other."""
    planned = watch("plan", configuration, tmp_path / "cache", tmp_path / "runs")
    done = watch("search", configuration, tmp_path / "cache", tmp_path / "runs")

    taken, foreseen = done.peak - done.imported, planned.said["memory_bytes"] - planned.imported
    disk = size_of(Path(done.said["run"]))
    figures = {
        "planned_bytes": foreseen,
        "measured_bytes": taken,
        "planned_disk_bytes": planned.said["disk_bytes"],
        "measured_disk_bytes": disk,
    }
    fits = abs(foreseen / taken - 1) < 0.25 and abs(planned.said["disk_bytes"] / disk - 1) < 0.25
    tally.add("memory", f"a plan held against its search, {what}", done=1, survived=int(fits), **figures)
    assert foreseen == pytest.approx(taken, rel=0.25)
    assert planned.said["disk_bytes"] == pytest.approx(disk, rel=0.25)


@pytest.mark.trust
@pytest.mark.parametrize("name", WORLDS)
def test_a_plan_is_within_a_quarter_of_what_its_search_takes(tmp_path: Path, tally: Tally, name: str) -> None:
    compare(tmp_path, made(tmp_path, WORLDS[name]), tally, name)


@pytest.mark.trust
def test_a_million_cached_rows_on_each_side_take_less_than_two_gigabytes(tmp_path: Path, tally: Tally) -> None:
    world = World((990_000, 5000, 5000), 1, (768, 768), (768, 768))
    if shutil.disk_usage(tmp_path).free < 12e9:
        pytest.skip("needs 12 GB of disk")
    configuration = made(tmp_path, world, verify=0, train={"n_steps": 20})

    done = watch("search", configuration, tmp_path / "cache", tmp_path / "runs")

    taken = done.peak - done.imported
    figures = {"private_bytes": taken, "seconds": done.seconds, "cache_bytes": size_of(tmp_path / "cache")}
    what = "1,000,000 x 768 rows per side, 2 x 2 encoders, searched with less than 2 GB of private memory"
    tally.add("memory", what, done=1, survived=int(taken < 2e9), **figures)
    assert taken < 2e9
    assert load_run(Path(done.said["run"])).leaderboard["score"].max() > 1  # 100 / 5,000 by chance
    shutil.rmtree(tmp_path / "cache")  # six gigabytes
