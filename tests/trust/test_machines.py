"""One study by four machines that share a PostgreSQL, one of them killed in the middle of a trial."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from small_zoo import write_world

from hyperalign.study.seats import SEAT, WORKER, finished, waiting
from hyperalign.study.storage import load_study, open_storage, quiet
from trust.conftest import Tally

N_TRIALS = 32
PROGRAMS = [
    *map(Path, os.environ.get("PATH", "").split(os.pathsep)),
    *sorted(Path("/usr/lib/postgresql").glob("*/bin")),
]
NOBODY = 65534


def program(name: str) -> str:
    """Where PostgreSQL keeps a program."""
    found = [folder / name for folder in PROGRAMS if (folder / name).is_file()]
    if not found:
        pytest.skip(f"PostgreSQL is not installed: there is no {name}; `apt-get install postgresql`")
    return str(found[-1])


@pytest.fixture
def database() -> Iterator[str]:
    """The URL of a server of our own, in a folder that goes with it; it listens to a socket in this folder alone."""
    pytest.importorskip("psycopg", reason="psycopg is an extra that is not installed")
    commands = program("initdb"), program("postgres")
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    who = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}  # it refuses root
    if who:
        os.chown(folder, NOBODY, NOBODY)
    try:
        make = [commands[0], "-D", str(folder / "data"), "-U", "study", "--auth=trust", "--no-sync"]
        subprocess.run(make, check=True, capture_output=True, cwd=folder, **who)  # type: ignore[call-overload]
        serve = [commands[1], "-D", str(folder / "data"), "-k", str(folder), "-c", "listen_addresses=", "-F"]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(serve, stdout=log, stderr=log, cwd=folder, **who)  # type: ignore[call-overload]
        try:
            while not (folder / ".s.PGSQL.5432").exists():
                assert server.poll() is None, (folder / "log").read_text()
                time.sleep(0.1)
            yield f"postgresql://study@/postgres?host={folder}"
        finally:
            server.send_signal(signal.SIGINT)  # do not wait for whoever is connected still
            server.wait()
    finally:
        shutil.rmtree(folder)


@contextmanager
def closing_storage(url: str, folder: Path) -> Iterator[RDBStorage]:
    """The storage, without a connection that stays behind."""
    storage = open_storage(url, folder)
    assert isinstance(storage, RDBStorage)
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def machine(number: int, world: Path, out: Path, url: str) -> subprocess.Popen[str]:
    """`hyperalign study` with a folder and a cache of its own."""
    words = ["study", "--zoo", str(world / "zoo.toml"), "--data", str(world / "pairs.csv"), "--trials", str(N_TRIALS)]
    words += ["--storage", url, "--name", "shared", "--out", str(out / f"runs{number}")]
    words += ["--cache-dir", str(out / f"cache{number}")]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent.parent)}
    command = [sys.executable, "-m", "hyperalign", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


@pytest.mark.trust
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the driver's, of a process's last hour
@pytest.mark.timeout(1800)
def test_four_machines_share_a_study_and_one_is_killed(tmp_path: Path, database: str, tally: Tally) -> None:
    world = write_world(tmp_path / "world")
    begin = time.monotonic()
    machines = {one.pid: one for one in (machine(number, world, tmp_path, database) for number in range(4))}
    victim, study = None, None
    with quiet(), closing_storage(database, tmp_path) as storage:
        while victim is None:
            assert all(one.poll() is None for one in machines.values()), [
                one.communicate() for one in machines.values() if one.poll() is not None
            ]
            time.sleep(0.2)
            if study is None:
                with suppress(ValueError):
                    study = load_study(storage, "shared")
                continue
            workers = {int(t.user_attrs[WORKER].split("-")[-2]) for t in study.trials if WORKER in t.user_attrs}
            if len(workers & {*machines}) < 4:
                continue
            running = [t for t in study.trials if t.state == TrialState.RUNNING and WORKER in t.user_attrs]
            victim = next((int(t.user_attrs[WORKER].split("-")[-2]) for t in running), None)
        os.kill(victim, signal.SIGKILL)
        survivors = [one for pid, one in machines.items() if pid != victim]
        said = [one.communicate(timeout=900) for one in survivors]
        machines[victim].communicate()
        assert study is not None
        seats = Counter(trial.user_attrs[SEAT] for trial in finished(study))
        left = waiting(study)
        at_work = study.get_trials(states=(TrialState.RUNNING,))

    assert all(one.returncode == 0 for one in survivors), said
    tally.add(
        "processes",
        "one study by 4 machines that share PostgreSQL, one of them killed in the middle of a trial: trials",
        done=N_TRIALS,
        survived=sum(seats[seat] == 1 for seat in range(N_TRIALS)),
        doubled=sum(max(0, n - 1) for n in seats.values()),
        seconds=time.monotonic() - begin,
    )
    assert seats == Counter(range(N_TRIALS))
    assert not left
    assert not at_work
