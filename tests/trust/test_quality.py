"""Where a fault costs a user, the tests take nearly every branch and notice nearly every slip.

`pytest -m trust -k branches` and `-k mutants` run the daily suite once under coverage.py, unless nothing has changed
since; mutants of a room are then drawn by name and hunted (MUTANTS says how many, MUTANTS_SEED which others). Who
survives of the sample that is drawn unless said stands in survivors.toml, each with a reason.
"""

import json
import os
import re
import subprocess
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from trust.conftest import Tally
from trust.hunt import hunt
from trust.mutants import Mutant, find_mutants, module_of, mutate, sample
from trust.rooms import ROOMS, ROOT, Seen, files_of

_ENOUGH_BRANCHES, _ENOUGH_KILLED = 95.0, 85.0  # of 100
_MUTANTS, _SEED = 120, 6
_FIRST = 40, 4.0  # tests that try first, and seconds they take together
_ALL = 250, 15.0  # those that try after them
_BESIDE = ("*", "embed/*", "align/*", "rank/*")
_FORMULA = re.compile(r"(^|\.)(\w*flops|probe_pictures|probe_sentences)$")


@pytest.fixture(scope="session")
def seen() -> Seen:
    """The daily suite under coverage.py."""
    return Seen(ROOT / ".pytest_cache" / "seen")


@pytest.mark.trust
@pytest.mark.timeout(0)
@pytest.mark.parametrize("room", ROOMS)
def test_nearly_all_branches_are_taken_by_the_daily_suite(room: str, seen: Seen, tally: Tally) -> None:
    found = seen.branches(files_of(room))

    tally.add("house", f"branches of {room} that tests take", done=found.n, survived=found.taken, percent=found.percent)
    assert found.percent >= _ENOUGH_BRANCHES, found.missing


@pytest.mark.trust
@pytest.mark.timeout(0)
@pytest.mark.parametrize("room", ["cache", "ranking", "flops"])
def test_nearly_all_mutants_are_killed_by_the_daily_suite(room: str, seen: Seen, tally: Tally, tmp_path: Path) -> None:
    every, begin = list(mutants_of(room)), time.monotonic()
    seed = int(os.environ.get("MUTANTS_SEED", _SEED))
    chosen = sample(every, int(os.environ.get("MUTANTS", _MUTANTS)), seed)

    became = _hunted(_tasks(chosen, seen), tmp_path)

    killed, explained = Counter(became.values()), _explained()
    unexplained = [name for name, fate in became.items() if fate == "survived" and name not in explained]
    n_killed = len(became) - killed["survived"]
    tally.add(
        "house",
        f"mutants of {room} that tests kill" + ("" if seed == _SEED else ", another sample"),
        done=len(became),
        survived=n_killed,
        drawn_from=len(every),
        seed=seed,
        timed_out=killed["timed out"],
        seconds=time.monotonic() - begin,
    )
    assert seed != _SEED or not unexplained, "\n".join(["survived, and survivors.toml does not say why:", *unexplained])
    assert 100 * n_killed >= _ENOUGH_KILLED * len(became)


def mutants_of(room: str) -> Iterator[Mutant]:
    """All mutants of a room; of FLOPs also those of the formulas that stand beside what they count."""
    own = files_of(room)
    beside = [path for name in _BESIDE for path in ROOT.glob(f"hyperalign/{name}.py")] if room == "flops" else []
    for file in [*own, *sorted(set(beside) - set(own))]:
        found = find_mutants(file.read_text(encoding="utf-8"), module_of(file, ROOT))
        yield from (one for one in found if file in own or _FORMULA.search(one.where))


def _tasks(mutants: Sequence[Mutant], seen: Seen) -> list[dict[str, Any]]:
    """Each mutant with the tests that try to kill it: first those that run few modules, and of them the quickest."""
    found = []
    for module in sorted({mutant.module for mutant in mutants}):
        by_line = seen.tests_of(ROOT / "hyperalign" / Path(*module.split(".")).with_suffix(".py"))
        anywhere = set[str]().union(*by_line.values())
        for mutant in mutants:
            if mutant.module == module:
                first, last = mutant.lines
                there = set[str]().union(*(by_line.get(line, set()) for line in range(first, last + 1)))
                found.append({"mutant": mutant._asdict(), "rounds": _rounds(there or anywhere, seen)})
    return found


def _rounds(tests: set[str], seen: Seen) -> list[tuple[list[str], int]]:
    """Tests in two rounds, with the seconds that a round may take: most mutants do not see the second."""
    ordered = sorted(tests, key=lambda name: (seen.breadth.get(name, 0), seen.took.get(name, 0.0), name))
    begun, rounds = 0, []
    for most, seconds in (_FIRST, _ALL):
        spent, names = 0.0, list[str]()
        for name in ordered[begun:most]:
            spent += seen.took.get(name, 0.0)
            if spent > seconds and names:
                break
            names.append(name)
        begun += len(names)
        if names:
            rounds.append((names, round(30 + 4 * spent)))
    return rounds


def _hunted(tasks: list[dict[str, Any]], folder: Path) -> dict[str, str]:
    """What became of each mutant, where the same tests pass without one."""
    (folder / "tasks").write_text("\n".join(map(json.dumps, tasks)), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "trust.hunt", str(folder / "tasks")]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *told, unharmed = map(json.loads, done.stdout.splitlines())
    assert unharmed["became"] == "survived", "the tests must pass where nothing is faulty"
    return {one["name"]: one["became"] for one in told}


def _explained() -> set[str]:
    """Mutants that live on for a reason."""
    found = tomllib.loads(Path(__file__).with_name("survivors.toml").read_text(encoding="utf-8"))["survivor"]
    assert all(one["reason"] for one in found)
    return {one["mutant"] for one in found}


_SOURCE = """\
def clip(value: float, most: float = 2) -> float:
    if value > most:
        return most
    return value
"""
_TEST = """\
from hyperalign.clipped import clip


def test_clip() -> None:
    assert (clip(1), clip(3)) == (1, 2)
"""


def test_a_mutant_is_killed_by_a_test_that_sees_it_and_lives_where_none_can(tmp_path: Path) -> None:
    (tmp_path / "hyperalign").mkdir()
    (tmp_path / "hyperalign" / "clipped.py").write_text(_SOURCE, encoding="utf-8")
    (tmp_path / "test_clip.py").write_text(_TEST, encoding="utf-8")
    tests = ["test_clip.py::test_clip"]

    became = {mutant.change: hunt(mutant, tests, 60, tmp_path) for mutant in find_mutants(_SOURCE, "clipped")}

    turned = ("2 becomes 3", "2 becomes 1", "if negated", "returns nothing")
    assert became == {**dict.fromkeys(turned, "killed"), "> becomes >=": "survived"}
    assert hunt(None, ["test_clip.py::test_nothing"], 60, tmp_path) == "killed", "a test that is not there kills all"


def test_a_mutant_that_never_ends_is_ended(tmp_path: Path) -> None:
    (tmp_path / "test_long.py").write_text(
        "def test_long() -> None:\n    while True:\n        pass\n", encoding="utf-8"
    )

    assert hunt(None, ["test_long.py"], 2, tmp_path) == "timed out"


def test_a_mutant_is_known_by_the_same_name_where_lines_above_it_move() -> None:
    mutants = find_mutants(_SOURCE, "clipped")

    moved = find_mutants("import math\n\nPI = math.pi\n" + _SOURCE, "clipped")

    assert [one.name for one in moved] == [one.name for one in mutants]
    assert [one.name for one in sample(moved, 3, seed=1)] == [one.name for one in sample(mutants, 3, seed=1)]


def test_every_kind_of_slip_is_made_once_in_code_and_none_in_words() -> None:
    source = """\
def f(a: int = 1, *rest: "1 + 1") -> 2:
    \"\"\"Add 1 + 1.\"\"\"
    for b in rest:
        if not (a and b) or -a <= b * 0.5:
            continue
        print(f"{a:>10}" + "words")
        a += b
        break
    return [c for c in rest if c is None]
"""

    changes = sorted(mutant.change for mutant in find_mutants(source, "made_up"))

    assert changes == sorted(
        [
            *("1 becomes 2", "1 becomes 0", "if negated", "or becomes and", "not left out", "and becomes or"),
            *("minus left out", "<= becomes <", "* becomes +", "0.5 becomes 1.0", "continue becomes break"),
            *("call left out", "+= becomes -=", "break becomes continue", "returns nothing", "filter negated"),
            "is becomes is not",
        ]
    )


def test_a_mutant_of_other_code_is_not_made() -> None:
    mutant = find_mutants(_SOURCE, "clipped")[0]

    with pytest.raises(LookupError, match="clipped has no mutant"):
        mutate("x = 1\n", mutant)
