"""Where a fault costs a user, and which tests run there: branches counted by coverage.py, test by test."""

import hashlib
import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
ROOMS = {
    "cache": ("embed/cache", "embed/shards", "embed/partial", "embed/locks", "embed/upkeep", "embed/memory"),
    "ranking": ("rank/*", "board", "relimit"),
    "flops": ("ledger", "forecast", "account", "footprint", "embed/check"),
    "data": (
        *("embed/pictures", "embed/samples", "embed/splits", "embed/duplicates", "embed/streams", "embed/tables"),
        *("embed/frames", "embed/tars", "embed/tar_streams", "embed/clip_retrieval", "embed/hub_data"),
        *("embed/label_sets", "embed/data", "embed/plain", "embed/scenes"),
    ),
    "model": (
        *("align/*", "packing", "solve", "scoring", "hyperclip/normalisation", "hyperclip/hypernetwork"),
        *("hyperclip/architectures", "hyperclip/text", "hyperclip/model", "hyperclip/stored", "hyperclip/specialise"),
    ),
}
_LOOKING_ON = ("rooms.py", "mutants.py", "hunt.py", "test_quality.py")
_TOOK = re.compile(r"^([\d.]+)s (?:setup|call|teardown)\s+(\S.*)$", re.MULTILINE)


def files_of(room: str) -> list[Path]:
    """The modules of a room."""
    found = (path for name in ROOMS[room] for path in (ROOT / "hyperalign").glob(f"{name}.py"))
    return sorted(path for path in found if path.name != "__init__.py")


class Branches(NamedTuple):
    """What the tests of some modules have seen.

    Attributes:
        n: Branches there are.
        taken: How many were taken.
        missing: `line->line` of those that were not, by module.
    """

    n: int
    taken: int
    missing: dict[str, list[str]]

    @property
    def percent(self) -> float:
        """Share of branches that were taken, of 100."""
        return 100 * self.taken / max(1, self.n)


class Seen:
    """What a run of the daily suite under coverage.py has left in a folder."""

    def __init__(self, folder: Path) -> None:
        """Measure, if nobody has since code and tests were last changed."""
        self.folder = folder / _digest()
        if not (self.folder / "took.json").is_file():
            _measure(self.folder)

    @cached_property
    def took(self) -> dict[str, float]:
        """Seconds of each test."""
        found: dict[str, float] = json.loads((self.folder / "took.json").read_text(encoding="utf-8"))
        return found

    @cached_property
    def breadth(self) -> dict[str, int]:
        """How many modules each test runs: one that runs few is about these."""
        asked = (
            "SELECT context, COUNT(DISTINCT file_id) FROM arc JOIN context ON context.id = context_id GROUP BY context"
        )
        found: dict[str, int] = {}
        with closing(sqlite3.connect(self.folder / "coverage")) as database:
            for context, n in database.execute(asked):
                test = context.rsplit("|", 1)[0]
                found[test] = max(n, found.get(test, 0))
        return found

    @cached_property
    def _report(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "branches.json").read_text(encoding="utf-8"))["files"]
        return found

    def branches(self, files: Sequence[Path]) -> Branches:
        """Branches of some modules."""
        told = {str(path.relative_to(ROOT)): self._report[str(path.relative_to(ROOT))] for path in files}
        missing = {name: [f"{a}->{b}" for a, b in one["missing_branches"]] for name, one in told.items()}
        n, taken = (sum(one["summary"][f"{of}_branches"] for one in told.values()) for of in ("num", "covered"))
        return Branches(n, taken, {name: those for name, those in missing.items() if those})

    def tests_of(self, file: Path) -> dict[int, set[str]]:
        """Tests by line of a module that they run."""
        import coverage

        data = coverage.CoverageData(str(self.folder / "coverage"))
        data.read()
        by_line = data.contexts_by_lineno(str(file))
        return {line: {name.rsplit("|", 1)[0] for name in names if "|" in name} for line, names in by_line.items()}


def _digest() -> str:
    """Of all code and tests, but for those that only look at what was measured."""
    found = hashlib.sha256()
    files = [*ROOT.glob("hyperalign/**/*.py"), *ROOT.glob("tests/**/*.py"), ROOT / "pyproject.toml"]
    for path in sorted(path for path in files if path.name not in _LOOKING_ON):
        found.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:16]


def _measure(folder: Path) -> None:
    """Run the daily suite under coverage.py; its processes' own processes are not seen."""
    folder.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "-p", "no:cacheprovider", "--cov=hyperalign"]
    words += ["--cov-branch", "--cov-context=test", "--cov-report=", "--durations=0", "--durations-min=0"]
    environment = {**os.environ, "COVERAGE_FILE": str(folder / "coverage"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"the daily suite must pass before it is measured:\n{done.stdout[-4000:]}{done.stderr}")
    report = [sys.executable, "-m", "coverage", "json", "-q", "-o", str(folder / "branches.json")]
    subprocess.run(report, cwd=ROOT, env=environment, check=True)
    took: dict[str, float] = {}
    for seconds, name in _TOOK.findall(done.stdout):
        took[name] = took.get(name, 0.0) + float(seconds)
    (folder / "took.json").write_text(json.dumps(took), encoding="utf-8")
