"""`kill -9` at moments drawn over the length of an undisturbed run: the same command goes on, to the same end."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from hyperalign.run import finished_stages, read_result, same_table
from hyperalign.study.kept import read_study
from trust.conftest import Tally
from trust.deeds import NAMES, assert_done_again, commands, run
from trust.harm import (
    asked,
    command,
    digest_of,
    events,
    finished_shards,
    fork,
    moments,
    read_counts,
    unsound_in_cache,
    unsound_in_runs,
    warm,
    write_embedding_world,
)

FEW_AND_MANY = [
    pytest.param(3, marks=pytest.mark.slow),
    pytest.param(100, marks=[pytest.mark.trust, pytest.mark.timeout(3600)]),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Encoders that embed, encoders that are rows, and their pairs."""
    warm()
    return write_embedding_world(tmp_path_factory.mktemp("kills") / "world")


def kills(
    words: Callable[[Path], Sequence[str | Path]],
    folder: Path,
    n: int,
    seconds: float,
    *,
    midway: Callable[[Path], Any],
) -> list[Path]:
    """Kill a command `n` times, each in its own folder, at least one of them while it was `midway`; the folders."""
    hit: list[Path] = []
    for number, moment in enumerate(moments(20 * n, seconds, seed=0)):
        place = folder / f"{number:03}"
        place.mkdir()
        if fork(command(words(place), counts=place / "before"), place / "said").kill_after(moment):
            hit.append(place)
        if len(hit) == n:
            if any(midway(one) for one in hit):
                return hit
            hit.pop()
    raise AssertionError(f"no {n} kills of which one was midway")


@pytest.mark.parametrize("n", FEW_AND_MANY)
def test_an_embedding_killed_at_any_moment_goes_on_and_embeds_no_finished_shard_again(
    n: int, world: Path, tmp_path: Path, tally: Tally
) -> None:
    def embed(place: Path) -> list[str | Path]:
        return ["embed", *asked(world, "nets"), "--cache-dir", place / "cache"]

    whole = tmp_path / "whole"
    whole.mkdir()
    seconds = run(embed(whole), whole / "said", whole / "counts")
    shards, n_kept = finished_shards(whole / "cache"), 0

    for place in kills(embed, tmp_path, n, seconds, midway=lambda place: finished_shards(place / "cache")):
        assert unsound_in_cache(place / "cache", whole / "cache") == []
        before = finished_shards(place / "cache")
        run(embed(place), place / "said", place / "counts")
        after = finished_shards(place / "cache")
        assert {name: after[name] for name in before} == before, "a finished shard was written again"
        n_rows = sum(shard.n_rows for shard in shards.values()) - sum(shard.n_rows for shard in before.values())
        embedded = sum(stop - start for _, _, start, stop in read_counts(place / "counts"))
        assert embedded == n_rows, "the encoders were asked for what was finished"
        assert sorted(after) == sorted(shards)
        assert unsound_in_cache(place / "cache", whole / "cache") == []
        n_kept += len(before)

    assert n_kept
    tally.add("faults", "kill -9 during embed", done=n, survived=n, shards_kept=n_kept, undisturbed_seconds=seconds)


@pytest.mark.parametrize("n", FEW_AND_MANY)
def test_a_search_killed_at_any_moment_goes_on_in_its_folder_and_trains_nothing_twice(
    n: int, world: Path, tmp_path: Path, tally: Tally
) -> None:
    cache = tmp_path / "cache"
    how = ["--method", "closed-form,hypernet", "--verify", "2", "--steps", "60", "--batch-size", "16"]
    baseline = ["--baseline-batch-size", "16", "--baseline-epochs", "6"]

    def search(place: Path) -> list[str | Path]:
        return ["search", *asked(world, "zoo"), *how, *baseline, "--cache-dir", cache, "--out", place / "reports"]

    whole = tmp_path / "whole"
    whole.mkdir()
    run(search(whole), whole / "said")  # remembers what is remembered
    seconds = run(search(whole), whole / "said")
    (first, _) = sorted((whole / "reports").glob("*/result.json"))
    n_gone_on, n_done = 0, 0

    for place in kills(search, tmp_path, n, seconds, midway=lambda place: how_far(place) == (True, False)):
        cut = sorted((place / "reports").glob("*/result.json"))
        assert unsound_in_runs(place / "reports") == []
        stages = finished_stages(cut[0].parent) if cut else []
        begun, done = how_far(place)
        run(search(place), place / "said")
        found = sorted((place / "reports").glob("*/result.json"))
        assert unsound_in_runs(place / "reports") == []
        assert len(found) == (2 if done or (cut and not begun) else 1), "a run that was cut short was left"
        assert all(same_table(first.parent, one.parent) for one in found if one.parent.name != "cut")
        if begun and not done:
            after = [str(event["name"]) for event in events(found[0].parent, "stage")]
            assert len(after) == len(set(after)), "a stage was made twice"
            assert after[: len(stages)] == stages
            assert not [*found[0].parent.glob(".*")], "something is left of what was killed"
            n_gone_on += 1
        n_done += done

    assert n_gone_on
    figures = {"gone_on_in_its_folder": n_gone_on, "killed_when_the_run_was_finished": n_done}
    tally.add("faults", "kill -9 during search", done=n, survived=n, undisturbed_seconds=seconds, **figures)


def how_far(place: Path) -> tuple[bool, bool]:
    """Whether the search of a folder had begun its run, and whether it had finished it."""
    cut = sorted((place / "reports").glob("*/result.json"))
    if not cut:
        return False, False
    return bool(events(cut[0].parent, "inputs")), read_result(cut[0].parent)["status"] == "finished"


@pytest.mark.parametrize("n", FEW_AND_MANY)
@pytest.mark.parametrize("storage", ["sqlite", "journal"])
def test_a_study_killed_at_any_moment_goes_on_and_loses_and_doubles_no_trial(
    storage: str, n: int, world: Path, tmp_path: Path, tally: Tally
) -> None:
    cache, n = tmp_path / "cache", n if n < 100 else n // 2  # of each storage
    (tmp_path / "run.toml").write_text("[train]\nn_steps = 20\nbatch_size = 16\n")
    how = ["--config", str(tmp_path / "run.toml"), "--trials", "5", "--pruner", "none", "--storage", storage]
    how += ["--space", "learning_rate=1e-3:1e-1:log"]

    def study(place: Path) -> list[str | Path]:
        return ["study", *asked(world, "zoo"), *how, "--cache-dir", cache, "--out", place / "reports"]

    whole = tmp_path / "whole"
    whole.mkdir()
    run(study(whole), whole / "said")
    (whole / "reports").rename(whole / "first")
    seconds = run(study(whole), whole / "said")
    undisturbed, n_kept = trials_of(whole / "reports"), 0

    for place in kills(study, tmp_path, n, seconds, midway=n_trials):
        assert unsound_in_runs(place / "reports") == []
        kept, ended = n_trials(place), has_ended(place)
        run(study(place), place / "said")
        assert unsound_in_runs(place / "reports") == []
        assert len([*(place / "reports").glob("*/study.json")]) == (2 if ended else 1)
        assert trials_of(place / "reports") == undisturbed
        n_kept += kept

    assert n_kept
    figures = {"trials_kept": n_kept, "undisturbed_seconds": seconds}
    tally.add("faults", f"kill -9 during study, {storage}", done=n, survived=n, **figures)


def has_ended(place: Path) -> bool:
    """Whether the study of a folder had said that it was finished; its last trial alone does not."""
    return any(read_study(path.parent)["status"] == "finished" for path in (place / "reports").glob("*/study.json"))


def n_trials(place: Path) -> int:
    """Trials that the study of a folder had when it was killed."""
    begun = [*(place / "reports").glob("*/study.json")]
    return len(read_study(begun[0].parent).get("trials", [])) if begun else 0


def trials_of(out: Path) -> list[tuple[float, ...]]:
    """What was tried in the newest study of a folder, and what came of it, in any order."""
    record = read_study(max(out.glob("*/study.json")).parent)
    assert record["status"] == "finished"
    assert record["n_trials"] == {"complete": 5}
    return sorted((*trial["params"].values(), *trial["values"]) for trial in record["trials"])


@pytest.mark.parametrize("n", FEW_AND_MANY)
def test_an_export_killed_at_any_moment_leaves_no_folder_that_looks_whole(
    n: int, world: Path, tmp_path: Path, tally: Tally
) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    given = [*asked(world, "nets"), "--verify", "0", "--steps", "10", "--cache-dir", tmp_path / "cache"]
    run(["search", *given, "--out", tmp_path / "reports"], whole / "said")
    (found,) = (tmp_path / "reports").glob("*")

    def export(place: Path) -> list[str | Path]:
        return ["export", found, "--to", place / "model", "--with-weights"]

    seconds = run(export(whole), whole / "said")
    undisturbed, n_left = files_of(whole / "model"), 0

    for place in kills(export, tmp_path, n, seconds, midway=lambda place: [*place.glob(".model.*.tmp")]):
        n_left += any(place.glob(".model.*.tmp"))
        if (place / "model").exists():  # killed behind the rename
            assert files_of(place / "model") == undisturbed
            continue
        run(export(place), place / "said")
        assert files_of(place / "model") == undisturbed
        assert not [*place.glob(".model.*")], "a draft was left"

    assert n_left
    figures = {"drafts_swept": n_left, "undisturbed_seconds": seconds}
    tally.add("faults", "kill -9 during export", done=n, survived=n, **figures)


def files_of(folder: Path) -> dict[str, str]:
    """Digest of every file below a folder, the card aside, which names the folder's command."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != "README.md")
    return {str(path.relative_to(folder)): digest_of(path) for path in paths}


@pytest.mark.trust
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", NAMES)
def test_a_real_command_that_is_killed_goes_on(name: str, world: Path, tmp_path: Path, tally: Tally) -> None:
    words, n, rng = commands(world, tmp_path)[name], 5, random.Random(3)

    def start(place: Path) -> "subprocess.Popen[bytes]":
        line = [sys.executable, "-m", "hyperalign", *map(str, words(place))]
        with (place / "said").open("ab") as said:
            return subprocess.Popen(line, stdout=said, stderr=said)

    whole = tmp_path / "whole"
    whole.mkdir()
    begin = time.perf_counter()
    assert start(whole).wait() == 0
    seconds, n_hit = time.perf_counter() - begin, 0

    for number in range(n):
        place = tmp_path / f"{number}"
        place.mkdir()
        process = start(place)
        time.sleep(rng.uniform(0.5, 1) * seconds)  # before that it imports
        process.kill()
        n_hit += process.wait() == -signal.SIGKILL
        assert unsound_in_cache(place / "cache", whole / "cache") == []
        assert unsound_in_runs(place / "reports") == []
        before = finished_shards(place / "cache")
        if not (place / "model").exists():
            assert start(place).wait() == 0, (place / "said").read_text()[-3000:]
        after = finished_shards(place / "cache")
        assert {shard: after[shard] for shard in before} == before
        if name != "embed":
            assert_done_again(name, place, whole, before, place / "none")
        assert unsound_in_cache(place / "cache", whole / "cache") == []

    assert n_hit
    tally.add("faults", f"kill -9 of a process of its own during {name}", done=n_hit, survived=n_hit)
