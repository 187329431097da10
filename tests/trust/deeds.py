"""The four commands that write, and what they made held against an undisturbed run."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hyperalign.run import same_table
from trust.harm import asked, command, finished_shards, fork, read_counts, unsound_in_cache, unsound_in_runs

Words = Callable[[Path], Sequence[str | Path]]
NAMES = ("embed", "search", "study", "export")


def commands(world: Path, tmp_path: Path) -> dict[str, Words]:
    """The four commands that write, each into one folder alone."""
    (tmp_path / "run.toml").write_text("[train]\nn_steps = 20\nbatch_size = 16\n")
    how = ["--config", str(tmp_path / "run.toml"), "--trials", "4", "--pruner", "none"]
    how += ["--space", "learning_rate=1e-3:1e-1:log"]
    methods = ["--method", "closed-form,hypernet", "--verify", "1", "--baseline-batch-size", "16", "--steps", "20"]
    warm_cache, found = tmp_path / "warm", tmp_path / "found"
    nets, rows = asked(world, "nets"), asked(world, "zoo")
    run(["search", *nets, "--verify", "0", "--steps", "10", "--cache-dir", warm_cache, "--out", found], tmp_path / "s")
    (model_of,) = found.glob("*")
    return {
        "embed": lambda place: ["embed", *nets, "--cache-dir", place / "cache"],
        "search": lambda place: ["search", *rows, *methods, "--cache-dir", warm_cache, "--out", place / "reports"],
        "study": lambda place: ["study", *rows, *how, "--cache-dir", warm_cache, "--out", place / "reports"],
        "export": lambda place: ["export", model_of, "--to", place / "model", "--with-weights"],
    }


def run(words: Sequence[str | Path], said: Path, counts: Path | None = None) -> float:
    """Run a command undisturbed; its seconds."""
    begin = time.perf_counter()
    assert fork(command(words, counts=counts), said).wait() == 0, said.read_text()[-3000:]
    return time.perf_counter() - begin


def assert_nothing_looks_whole(place: Path, whole: Path) -> None:
    """Whatever has its name is what an undisturbed run writes, or can be read."""
    assert unsound_in_cache(place / "cache", whole / "cache") == []
    assert unsound_in_runs(place / "reports") == []
    assert not (place / "model").exists()


def assert_done_again(name: str, place: Path, whole: Path, before: dict[str, Any], counts: Path) -> None:
    """All is there that an undisturbed run makes, and nothing finished was done twice."""
    if name == "embed":
        after = finished_shards(place / "cache")
        assert {shard: after[shard] for shard in before} == before
        n_rows = sum(shard.n_rows for shard in after.values()) - sum(shard.n_rows for shard in before.values())
        assert sum(stop - start for _, _, start, stop in read_counts(counts)) == n_rows
        assert unsound_in_cache(place / "cache", whole / "cache") == []
    elif name == "search":
        runs = [max(one.glob("reports/*/result.json")).parent for one in (place, whole)]
        assert same_table(*runs)
    elif name == "study":
        records = [json.loads(max(one.glob("reports/*/study.json")).read_text()) for one in (place, whole)]
        assert records[0]["n_trials"] == records[1]["n_trials"] == {"complete": 4}
        tried = [sorted((*trial["params"].values(), *trial["values"]) for trial in one["trials"]) for one in records]
        assert tried[0] == tried[1]
    else:
        assert sorted(path.name for path in (place / "model").rglob("*")) == sorted(
            path.name for path in (whole / "model").rglob("*")
        )
