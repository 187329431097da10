"""Input of strangers by the hundred thousand: no traceback, no hang, no write elsewhere, no code run from data.

Every case has a seed; `python -m trust.hostile SURFACE SEED`, in tests/, does one of them again.
"""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trust.conftest import Tally
from trust.hostile import Case, fuzz
from trust.surfaces import SURFACES

_FEW = 40  # cases of the daily suite


@pytest.mark.trust
@pytest.mark.timeout(0)
@pytest.mark.parametrize("name", SURFACES)
def test_hostile_input_ends_in_one_sentence_at_length(name: str, tally: Tally) -> None:
    surface = SURFACES[name]
    n_cases = int(os.environ.get("HOSTILE_CASES", surface.n_cases))

    harm = fuzz(surface.opens, name, range(n_cases))

    tally.add(
        "inputs",
        f"hostile input: {surface.what}",
        done=harm.n_cases,
        survived=harm.n_cases - harm.n_lost,
        refused=harm.n_refused,
        seeds=f"{name} 0 to {n_cases - 1}",
        slowest_seconds=harm.slowest,
        seconds=harm.seconds,
        cpu_seconds=harm.cpu_seconds,
    )
    assert harm.n_lost == 0, harm.findings


@pytest.mark.parametrize("name", SURFACES)
def test_hostile_input_ends_in_one_sentence(name: str) -> None:
    harm = fuzz(SURFACES[name].opens, name, range(_FEW))

    assert harm.n_cases == _FEW
    assert 0 < harm.n_refused <= _FEW
    assert harm.n_lost == 0, harm.findings


def harmful(what: str) -> Any:
    """A maker of cases that do one kind of harm each."""

    def opens(folder: Path) -> Case:
        def case(rng: random.Random) -> None:
            if what == "write":
                (folder.parent.parent / "elsewhere-of-hostile").write_text("x")
            elif what == "beside":
                Path("../beside").touch()
            elif what == "exec":
                exec("1")
            elif what == "start":
                subprocess.run([sys.executable, "-c", ""], check=True)
            elif what == "leak":
                json.loads("{")

        return case

    return opens


@pytest.mark.parametrize(
    ("what", "finding"),
    [
        ("write", "open of"),
        ("beside", "../beside"),
        ("exec", "exec of <string>"),
        ("start", "subprocess.Popen"),
        ("leak", "JSONDecodeError at ?"),
    ],
)
def test_harm_that_is_done_is_found(what: str, finding: str) -> None:
    harm = fuzz(harmful(what), what, range(3))
    Path("/dev/shm/elsewhere-of-hostile").unlink(missing_ok=True)

    assert (harm.n_cases, harm.n_lost) == (3, 3)
    assert any(finding in found.what for found in harm.findings), harm.findings
    assert harm.findings[0].seed == 0


def test_a_case_that_kills_its_process_is_found_and_the_others_are_tried() -> None:
    def opens(folder: Path) -> Case:
        n_warm = 0

        def case(rng: random.Random) -> None:
            nonlocal n_warm
            n_warm += 1
            if n_warm == 63:  # behind the warm-up, seed 2 of the first child
                os.kill(os.getpid(), signal.SIGKILL)

        return case

    harm = fuzz(opens, "x", range(5))

    assert harm.n_lost == 1  # the second child has only two cases
    assert [found.what for found in harm.findings] == ["the process died: signal 9"]
    assert harm.n_cases == 5
