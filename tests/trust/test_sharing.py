"""Several processes on one cache and on one study: nothing is done twice, nobody waits for the dead."""

import json
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from trust.conftest import Tally
from trust.deeds import run
from trust.harm import (
    Child,
    asked,
    command,
    fork,
    read_counts,
    unsound_in_cache,
    unsound_in_runs,
    warm,
    write_embedding_world,
)

TRUST = [pytest.mark.trust, pytest.mark.timeout(3600)]
LIMIT = 600  # seconds after which waiting is a deadlock


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Encoders that embed, encoders that are rows, and their pairs."""
    warm()
    return write_embedding_world(tmp_path_factory.mktemp("sharing") / "world")


@pytest.mark.parametrize(("n", "again"), [(2, 1), pytest.param(2, 10, marks=TRUST), pytest.param(8, 10, marks=TRUST)])
def test_processes_on_one_cache_embed_everything_once_and_take_over_from_the_dead(
    n: int, again: int, world: Path, tmp_path: Path, tally: Tally
) -> None:
    embed: list[str | Path] = ["embed", *asked(world, "nets"), "--cache-dir"]
    seconds = run([*embed, tmp_path / "whole"], tmp_path / "said", tmp_path / "counts")
    once, rng, n_killed = Counter(read_counts(tmp_path / "counts")), random.Random(0), 0

    for number in range(2 * again):
        cache, counts = tmp_path / f"cache-{number}", tmp_path / f"counts-{number}"
        crew = [fork(command([*embed, cache], counts=counts), tmp_path / f"said-{number}-{k}") for k in range(n)]
        killed = crew.pop().kill_after(rng.uniform(0, n * seconds)) if number % 2 else False
        n_killed += killed
        assert all(child.wait(LIMIT) == 0 for child in crew), [child.said.read_text()[-500:] for child in crew]
        assert unsound_in_cache(cache, tmp_path / "whole") == []
        embedded = Counter(read_counts(counts))
        assert not once - embedded
        assert (embedded - once).total() <= killed, "more than the shard in hand was computed again"

    done = 2 * again
    tally.add("processes", f"{n} processes on one cache", done=done, survived=done, owners_killed=n_killed)


@pytest.mark.parametrize(("n", "again"), [(2, 1), pytest.param(2, 5, marks=TRUST), pytest.param(8, 5, marks=TRUST)])
def test_processes_on_one_study_lose_and_double_no_trial_though_one_is_killed(
    n: int, again: int, world: Path, tmp_path: Path, tally: Tally
) -> None:
    (tmp_path / "run.toml").write_text("[train]\nn_steps = 20\nbatch_size = 16\n")
    how: list[str | Path] = [
        "--config",
        tmp_path / "run.toml",
        "--trials",
        "12",
        "--pruner",
        "none",
        "--sampler",
        "random",
    ]
    how += ["--sampler", "random", "--space", "learning_rate=1e-3:1e-1:log", "--storage", "journal"]
    how += ["--cache-dir", tmp_path / "cache"]
    begun: list[str | Path] = ["study", *asked(world, "zoo"), *how, "--out"]
    seconds = run([*begun, tmp_path / "whole"], tmp_path / "said")
    undisturbed, rng, n_killed = trials_of(tmp_path / "whole"), random.Random(0), 0

    for number in range(again):
        out, said = tmp_path / f"reports-{number}", tmp_path / f"said-{number}"
        first = fork(command([*begun, out]), said)
        folder = begun_in(out, first)
        joined = command(["study", "--resume", folder, "--cache-dir", tmp_path / "cache"])
        crew = [fork(joined, tmp_path / f"said-{number}-{k}") for k in range(n - 1)]
        n_killed += crew.pop().kill_after(rng.uniform(0.2, 1) * seconds)
        assert all(child.wait(LIMIT) == 0 for child in (first, *crew)), said.read_text()[-2000:]
        if json.loads((folder / "study.json").read_text())["n_trials"] != {"complete": 12}:
            run(["study", "--resume", folder, "--cache-dir", tmp_path / "cache"], said)
        assert unsound_in_runs(out) == []
        assert trials_of(out) == undisturbed

    tally.add("processes", f"{n} processes on one study", done=again, survived=again, killed=n_killed)


def begun_in(out: Path, first: Child) -> Path:
    """The folder of a study, as soon as it says what it is."""
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        for path in out.glob("*/study.json"):
            return path.parent
        time.sleep(0.01)
    raise TimeoutError(first.said.read_text()[-2000:])


def trials_of(out: Path) -> list[tuple[Any, ...]]:
    """What was tried in the study of a folder and what came of it, in any order."""
    (path,) = out.glob("*/study.json")
    record = json.loads(path.read_text())
    assert record["n_trials"] == {"complete": 12}
    return sorted((*trial["params"].values(), *trial["values"]) for trial in record["trials"])
