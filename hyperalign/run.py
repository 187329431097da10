"""A run on disk: a folder that tells what was asked, what came out, what it cost and how to go on.

Every file but the log is written whole, under a temporary name, and renamed; a file that is there can be trusted.
`result.json` is written first with the status `running` and last with `finished`, so a folder tells by itself
whether it may be shown or must be resumed. Finished stages lie under `stages/` until the run is finished. Whoever
writes a run holds a lock in its folder that goes with the process: one cut short can be told from one at work.

`kept.safetensors` is what adopting an encoder later starts from: for each encoder how its rows become white, which
directions it keeps and what was learned for it (at most 1.2 MiB at the default widths), the inverse temperature, and
the pairs in the order of `hits.safetensors`. Encoders stand in the order of `result.json`.
"""

import csv
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from hyperalign.embed.locks import owned_now
from hyperalign.embed.plain import first_line, misfit, parse_json
from hyperalign.embed.shards import crc32_of, read_record, unwritten, write_record
from hyperalign.ledger import Line
from hyperalign.machine import find_commits, find_hardware, find_versions
from hyperalign.record import (
    LATE_COLUMNS,
    LEADERBOARD_COLUMNS,
    LEDGER_COLUMNS,
    WORD_COLUMNS,
    LogLine,
    ReadResult,
    Result,
    to_json,
)

__all__ = [
    "Run",
    "Stage",
    "at_work_on",
    "create_folder",
    "create_run",
    "drafted",
    "earlier_seconds",
    "find_cut_short",
    "find_finished",
    "find_unfinished",
    "finish_run",
    "finished_stages",
    "load_run",
    "load_stage",
    "load_tensors",
    "log_event",
    "make_folder",
    "read_log",
    "read_result",
    "resume_run",
    "same_table",
    "save_stage",
    "write_leaderboard",
    "write_ledger",
    "write_result",
    "write_tensors",
    "write_whole",
]


_LOCK = "run"


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run, as read back.

    Attributes:
        path: Its folder.
        result: `result.json`.
        leaderboard: `LEADERBOARD_COLUMNS`, in the order of the file.
        ledger: `LEDGER_COLUMNS`.
    """

    path: Path
    result: Result
    leaderboard: pd.DataFrame
    ledger: pd.DataFrame

    def document(self) -> dict[str, Any]:
        """All of it as plain JSON: `result.json` with the two tables, row by row."""
        tables = {"leaderboard": self.leaderboard.to_dict("records"), "ledger": self.ledger.to_dict("records")}
        return {"run": str(self.path), **self.result, **tables}


class Stage(NamedTuple):
    """A finished stage of an unfinished run."""

    tensors: dict[str, NDArray[Any]]
    record: dict[str, Any]


def create_run(out: Path, *, label: str, configuration: Mapping[str, Any]) -> Path:
    """Make the folder of a new run and record what was asked.

    Args:
        out: Folder of all runs; made if it is not there.
        label: Words for the name, such as the data set's.
        configuration: As `to_record` gives it.

    Returns:
        `out/2026-03-01-142501-<label>`, with a number behind it where two runs start in one second.
    """
    run = create_folder(out, label=label)
    result: Result = {
        "name": run.name,
        "status": "running",
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "configuration": dict(configuration),
        "versions": find_versions(),
        "hardware": find_hardware(),
        "commit": find_commits(),
    }
    write_result(run, result)
    log_event(run, "started", pid=os.getpid())
    return run


def create_folder(out: Path, *, label: str) -> Path:
    """Make an empty folder `out/2026-03-01-142501-<label>`, with a number behind it where there is one already."""
    return make_folder(out, f"{datetime.now().astimezone():%Y-%m-%d-%H%M%S}-{_slug(label)}")


@contextmanager
def at_work_on(run: Path) -> Iterator[None]:
    """Hold an unfinished run while this process writes it; the lock goes when the process ends, however it ends.

    Raises:
        ValueError: If another process holds it, or it is finished.
    """
    _refuse_finished(run, read_result(run))
    with owned_now(run, _LOCK, "--out") as ours:
        if not ours:
            raise ValueError(f"another process is at work on {run}; wait for it or stop it")
        yield
    if read_result(run)["status"] == "finished":
        shutil.rmtree(run / ".locks", ignore_errors=True)


def find_cut_short(out: Path, configuration: Mapping[str, Any], *, inputs: str) -> Path | None:
    """The newest unfinished run under `out` that was asked for the same, of the same inputs, by this very installation.

    Args:
        out: Folder of all runs.
        configuration: What is asked now; what a run settles may have been left open.
        inputs: Digest of the encoders and data, as in the event `inputs` of the log.

    Returns:
        None where there is none, or another process is at work on it.
    """
    asked = parse_json(to_json(configuration))
    same = {"status": "running", "versions": find_versions(), "commit": find_commits()}
    for path in sorted(out.glob("*/result.json"), reverse=True):
        try:
            result: Mapping[str, Any] = read_result(path.parent)
        except (ValueError, OSError):
            continue
        if any(result.get(name) != value for name, value in same.items()):
            continue
        if _unsettled(result["configuration"], asked) != asked or _inputs_of(path.parent) != [inputs]:
            continue
        with suppress(OSError), owned_now(path.parent, _LOCK) as ours:  # of somebody else, who lets nobody write there
            if ours:
                return path.parent
    return None


def _unsettled(was: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """What a run was asked for, without what it has settled when it began, as far as that was left open."""
    found, given = dict(was), asked.get("canonical", {})
    if asked.get("exhaustive") is None:
        found["exhaustive"] = None
    if found.get("canonical") == {**given, "store_bytes": 0}:
        found["canonical"] = given  # memory was short, see `pipeline`
    return found


def _inputs_of(run: Path) -> list[str | None]:
    """Digests of what an unfinished run looks at: one, or none where it was cut short before that was known."""
    return [line.get("digest") for line in read_log(run) if line.get("event") == "inputs"]


def _refuse_finished(run: Path, result: Result) -> None:
    if result["status"] == "finished":
        repeat, draw = f"`hyperalign rerun {run}` repeats it", f"`hyperalign report {run}` draws its page"
        raise ValueError(f"{run} is finished, there is nothing to go on with; {repeat}, {draw}")


def resume_run(run: Path) -> Result:
    """Note that this process goes on with an unfinished run, and return what was asked.

    Raises:
        ValueError: If the run is finished, or an encoder was to be adopted there.
    """
    result = read_result(run)
    _refuse_finished(run, result)
    for line in read_log(run):
        if line["event"] == "adopting" and {"name", "into"} <= {*line}:
            command = shlex.join(["hyperalign", "search", "--add", line["name"], "--run", line["into"]])
            raise ValueError(  # no zoo is named: a log may be anyone's, and its code would run for whoever types it
                f"{run} is an adoption that was cut short and no search; `{command}`, with its --zoo if it had one, "
                "does it again on what is embedded"
            )
    for draft in (*run.glob(".*.tmp"), *run.glob("stages/.*.tmp")):
        draft.unlink(missing_ok=True)  # of a process that was killed
    log_event(run, "resumed", pid=os.getpid())
    return result


def earlier_seconds(run: Path) -> float:
    """Wall time that the parts of an unfinished run have taken so far, each from its first event to its last."""
    parts: list[list[datetime]] = []
    for line in read_log(run):
        if line.get("event") in ("started", "resumed"):
            parts.append([])
        if parts and (moment := _moment(line.get("time", ""))) is not None:
            parts[-1].append(moment)
    return sum(max(0.0, (part[-1] - part[0]).total_seconds()) for part in parts if part)  # clocks are set back


def _moment(words: str) -> datetime | None:
    """When a line of the log was written."""
    try:
        moment = datetime.fromisoformat(words)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def write_result(run: Path, result: Result) -> None:
    """Write `result.json`; NaN becomes null, for JSON has no other word for it."""
    write_whole(run / "result.json", to_json(result, indent=2).encode())


def finish_run(run: Path, result: Result, *, leaderboard: pd.DataFrame, ledger: Iterable[Line]) -> Run:
    """Write the tables, then `result.json` as finished, and drop the stages; the run can be shown from here on.

    Raises:
        ValueError: If the leaderboard has other columns than `LEADERBOARD_COLUMNS`.
    """
    write_leaderboard(run, leaderboard)
    write_ledger(run, ledger)
    write_result(run, {**read_result(run), **result, "status": "finished"})
    log_event(run, "finished")
    shutil.rmtree(run / "stages", ignore_errors=True)
    return load_run(run)


def write_leaderboard(run: Path, table: pd.DataFrame) -> None:
    """Write `leaderboard.csv`, one row per pair, method and seed."""
    if tuple(table.columns) != LEADERBOARD_COLUMNS:
        wrong = sorted(set(table.columns) ^ set(LEADERBOARD_COLUMNS)) or "their order"
        raise ValueError(f"leaderboard.csv has fixed columns, and these differ: {wrong}")
    write_whole(run / "leaderboard.csv", _as_csv(table))


def write_ledger(run: Path, lines: Iterable[Line]) -> None:
    """Write `ledger.csv`, one row per booking."""
    table = pd.DataFrame([line._asdict() for line in lines], columns=list(LEDGER_COLUMNS))
    write_whole(run / "ledger.csv", _as_csv(table))


def _as_csv(table: pd.DataFrame) -> bytes:
    """A table that can be read back: pandas leaves a lone carriage return, as in a licence, outside of quotes."""
    words = {name: table[name] for name in table.columns if name in WORD_COLUMNS}
    plain = {name: [w.replace("\r", " ") if isinstance(w, str) else w for w in cells] for name, cells in words.items()}
    return table.assign(**plain).to_csv(index=False, lineterminator="\n").encode()


def write_tensors(path: Path, tensors: Mapping[str, ArrayLike]) -> None:
    """Write arrays, or tensors on the CPU, as safetensors; straight to the file, for they may be half of the memory."""
    arrays = {name: np.ascontiguousarray(np.asarray(tensor)) for name, tensor in tensors.items()}
    with drafted(path) as draft:
        save_file(arrays, draft)


def log_event(run: Path, event: str, **facts: Any) -> None:
    """Append one line to `log.jsonl`; it is on its way to the disk when this returns."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    line = (to_json({"time": now, "event": event, **facts}) + "\n").encode()
    path = run / "log.jsonl"
    try:
        with path.open("ab+") as log:
            if log.tell() and (log.seek(-1, os.SEEK_END), log.read(1))[1] != b"\n":
                line = b"\n" + line  # whoever wrote the last line was cut off in the middle of it
            log.write(line)
    except OSError as error:
        raise unwritten(path, error) from None


def save_stage(run: Path, name: str, *, tensors: Mapping[str, ArrayLike], record: Mapping[str, Any]) -> None:
    """Keep what a finished stage made, so that a resumed run need not make it again."""
    folder = run / "stages"
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.safetensors"
    write_tensors(path, tensors)
    plain = {"record": parse_json(to_json(record)), "crc32": crc32_of(path)}
    write_record(folder / f"{name}.json", plain)  # last: a stage without it is not finished
    log_event(run, "stage", name=name)


def load_stage(run: Path, name: str) -> Stage | None:
    """What `save_stage` kept under `name`, or None if that stage was not finished or is damaged."""
    path = run / "stages" / f"{name}.safetensors"
    kept = read_record(path.with_suffix(".json"))
    if kept is not None and path.is_file() and crc32_of(path) == kept.get("crc32"):
        with suppress(ValueError):
            return Stage(load_tensors(path), kept["record"])
    if path.with_suffix(".json").is_file():
        log_event(run, "damaged", name=name)
    return None


def finished_stages(run: Path) -> list[str]:
    """Names of the stages an unfinished run has behind it, in the order of finishing."""
    lines = read_log(run)
    return list(dict.fromkeys(line["name"] for line in lines if line["event"] == "stage" and "name" in line))


def read_log(run: Path) -> Iterator[dict[str, Any]]:
    """The lines of `log.jsonl`; one that a crash cut off, or that nobody here has written, is left out."""
    path = run / "log.jsonl"
    if not path.is_file():
        return
    for text in path.read_bytes().splitlines():  # of bytes: a text may hold what Python takes for the end of a line
        try:
            line = parse_json(text)
        except ValueError:
            continue
        if misfit(line, LogLine) is None:
            yield line


def read_result(run: Path) -> Result:
    """`result.json` of a run, finished or not.

    Raises:
        FileNotFoundError: If the folder is not there or is no run.
        ValueError: If the file is not what this module writes.
    """
    if not run.is_dir():
        raise FileNotFoundError(f"no run at {run}: there is no such folder")
    path = run / "result.json"
    if not path.is_file():
        raise FileNotFoundError(f"{run} is not a run: it has no result.json; give a folder that `search` has made")
    try:
        result = parse_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}); the run must be made again") from None
    fault = misfit(result, ReadResult) or misfit(result, Result)
    if fault is not None:
        raise ValueError(f"{path} is not the record of a run: {fault}")
    return cast(Result, result)


def load_run(path: Path) -> Run:
    """Read a finished run.

    Raises:
        FileNotFoundError: If the folder is no run or one of its files is missing.
        ValueError: If the run was cut short or a file is damaged.
    """
    result = read_result(path)
    if result["status"] != "finished":
        raise ValueError(f"{path} was cut short; go on with `hyperalign search --resume {path}`")
    leaderboard = _read_table(path / "leaderboard.csv", LEADERBOARD_COLUMNS)
    ledger = _read_table(path / "ledger.csv", LEDGER_COLUMNS)
    for name in ("position", "rank", "seed"):
        if len(leaderboard) and leaderboard[name].dtype != "int64":
            raise ValueError(f"{path / 'leaderboard.csv'} is damaged: {name} must be whole numbers; run it again")
    if len(leaderboard) and result.get("method") not in {*leaderboard["method"]}:
        raise ValueError(f"{path} is damaged: its leaderboard has no row of its method; the run must be made again")
    return Run(path=path, result=result, leaderboard=leaderboard, ledger=ledger)


def same_table(first: Path, second: Path) -> bool:
    """Whether two runs have the same leaderboard, the measured latency aside."""
    tables = [_read_table(run / "leaderboard.csv", LEADERBOARD_COLUMNS) for run in (first, second)]
    return bool(tables[0].drop(columns="latency_ms").equals(tables[1].drop(columns="latency_ms")))


def load_tensors(path: Path) -> dict[str, NDArray[Any]]:
    """Read `connectors.safetensors`, `hits.safetensors` or `kept.safetensors` of a run.

    Raises:
        FileNotFoundError: If it is not there.
        ValueError: If it is no whole safetensors file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"the run {path.parent} has no {path.name}; it must be made again")
    try:
        return cast(dict[str, NDArray[Any]], load_file(path))
    except Exception as error:  # the library's own kind, and NumPy's where it has no such numbers
        raise ValueError(f"{path} is damaged ({first_line(error)}); it must be made again") from None


def find_finished(out: Path, *, say: Callable[[str], None] = lambda sentence: None) -> Path:
    """The newest finished run under `out`.

    Args:
        out: Folder of all runs.
        say: Told of each run that cannot be read; it is passed over.

    Raises:
        FileNotFoundError: If there is none.
    """
    finished: list[tuple[str, str]] = []
    for path in sorted(out.glob("*/result.json")):
        try:
            result = read_result(path.parent)
        except (ValueError, OSError) as error:
            say(f"note: {path.parent} is passed over: {error}")
            continue
        if result["status"] == "finished":
            finished.append((result.get("started", ""), path.parent.name))
    if not finished:
        raise FileNotFoundError(f"no finished run in {out}; search first, or give its folder with --run")
    return out / max(finished)[1]


def find_unfinished(out: Path, *, pid: int) -> Path | None:
    """The newest run under `out` that process `pid` has begun, or gone on with, and not finished."""
    for result in sorted(out.glob("*/result.json"), key=lambda path: path.stat().st_mtime, reverse=True):
        run = result.parent
        with suppress(ValueError, OSError):  # a run that cannot be read is not gone on with
            if any(line.get("pid") == pid for line in read_log(run)) and read_result(run)["status"] != "finished":
                return run
    return None


def _read_table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Read a table as it was written: an encoder may be called `NA`, and floats come back to the last bit."""
    if not path.is_file():
        raise FileNotFoundError(f"the run {path.parent} has no {path.name}; it must be made again")
    try:
        with path.open(encoding="utf-8", newline="") as file:
            head, *rows = csv.reader(file, strict=True)
        if tuple(head) not in (tuple(columns), tuple(name for name in columns if name not in LATE_COLUMNS)):
            raise ValueError(f"its columns are not {', '.join(columns)}")
        cells = dict(zip(head, zip(*rows, strict=True), strict=True)) if rows else dict.fromkeys(head, ())
        cells = {name: cells.get(name, ("",) * len(rows)) for name in columns}  # an old run knows less
        return pd.DataFrame({name: (_words if name in WORD_COLUMNS else _numbers)(cells[name]) for name in columns})
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read as a table ({error}); the run must be made again") from None


def _words(cells: Sequence[str]) -> "pd.Series[str]":
    """Text, also where there is none: a column without rows would count as numbers."""
    return pd.Series(cells, dtype=str)


def _numbers(cells: Sequence[str]) -> "pd.Series[Any]":
    """Whole numbers where all are, else floats; an empty cell is NaN. Python's own reading is exact, pandas' is not."""
    try:
        return pd.Series([int(cell) for cell in cells], dtype="int64")
    except (ValueError, OverflowError):
        return pd.Series([float(cell or "nan") for cell in cells], dtype="float64")


def make_folder(out: Path, name: str) -> Path:
    """Make `out/name`, with a number behind it where that is taken."""
    for number in range(1, 1000):
        run = out / (name if number == 1 else f"{name}-{number}")
        try:
            run.mkdir(parents=True)
        except FileExistsError:
            continue
        return run
    raise FileExistsError(f"{out} has a thousand folders called {name}; choose another folder with --out")


def _slug(label: str) -> str:
    """Letters, digits and dashes of `label`, at most 40 of them."""
    return re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")[:40].strip("-") or "run"


def write_whole(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    with drafted(path) as draft:
        draft.write_bytes(data)


@contextmanager
def drafted(path: Path) -> Iterator[Path]:
    """A path to write a file at; it is flushed to the disk and takes its name when all of it is there."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield draft
        with draft.open("rb+") as file:
            os.fsync(file.fileno())
        draft.replace(path)
    except (OSError, SafetensorError) as error:
        raise unwritten(path, error) from None
    finally:
        with suppress(OSError):  # a disk that turned read-only keeps the draft
            draft.unlink(missing_ok=True)
