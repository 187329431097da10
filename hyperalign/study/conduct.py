"""A study from its first word to its record: begun, gone on with, shared by several processes, and told.

The folder of a study holds `study.json` (what was asked and what came of it), the storage where that is a file, and
`log.jsonl`. `study.json` is written before the first trial and again as trials finish, whole each time.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import optuna

from hyperalign import __version__
from hyperalign.config import build
from hyperalign.embed.consent import UntrustedError, Written, allowed, is_own, trusting
from hyperalign.embed.factories import hold_factory
from hyperalign.embed.locks import owned_now
from hyperalign.embed.streams import is_command, is_stream, streams_of
from hyperalign.embed.zoo import load_zoo
from hyperalign.machine import find_commits, find_hardware, find_versions
from hyperalign.pipeline import ask, digest_inputs, prepare_rows
from hyperalign.record import to_json
from hyperalign.request import SearchConfig, from_record
from hyperalign.run import create_folder, log_event, read_log, write_whole
from hyperalign.study.asked import StudyConfig
from hyperalign.study.kept import FORMAT, RECORD, read_study
from hyperalign.study.outcome import best_trials, describe, metric_names, trial_in_words, write_best
from hyperalign.study.pairs import open_pairs, pairs_task
from hyperalign.study.samplers import make_pruner
from hyperalign.study.seats import finished, give_back_lost, put_seats, waiting, without_others
from hyperalign.study.storage import (
    create_study,
    dashboard_words,
    load_study,
    local_file,
    open_storage,
    quiet,
    settle_storage,
    shown,
)
from hyperalign.study.task import Task
from hyperalign.study.tuning import knobs_of, training_task
from hyperalign.study.work import STOP, Bench, Callback, give_up_if_all_fail, reason_to_stop, together, work

__all__ = ["Opened", "Place", "begin", "best_commands", "find_study", "go_on", "hint"]

Progress = Callable[[str, int, int], None]
Say = Callable[[str], None]
_CONDUCTOR = "conductor"
_WARM = 5  # best trials of another study


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where and how a study is done; it changes no result.

    Attributes:
        cache_dir: Where embeddings are kept.
        out: Where runs are kept.
        storage: Where trials are kept, in words, see `settle_storage`; None for a file inside the folder.
        name: Of the study in its storage; None for the folder's.
        jobs: Processes.
        timeout: Seconds after which no further trial begins; None for never.
        progress: Told `(stage, done, total)`.
        say: Told sentences.
    """

    cache_dir: Path
    out: Path
    storage: str | None = None
    name: str | None = None
    jobs: int = 1
    timeout: float | None = None
    progress: Progress
    say: Say


class Opened(NamedTuple):
    """What trials need.

    Attributes:
        task: What they do.
        inputs: Digest of what they look at.
        steps: At which they can be ended.
        n_trials: Trials in all; no more than there are pairs.
        counts: What the limits let through, as sentences.
    """

    task: Task
    inputs: str
    steps: tuple[int, ...]
    n_trials: int
    counts: tuple[str, ...]


def begin(
    config: SearchConfig,
    asked: StudyConfig,
    place: Place,
    *,
    folder: Path | None = None,
    warm: Path | None = None,
    callbacks: Sequence[Callback] = (),
) -> Path:
    """Begin a study and do its trials, or join one of the same name that was asked for the same.

    An unfinished study that lies there, was asked for the same and that nobody conducts is gone on with.

    Args:
        config: Encoders, data, seed, and what the settings start from.
        asked: What varies and what is scored.
        place: Where and how.
        folder: Of a finished run, to study its settings there; None for a new one.
        warm: Folder of a finished study, whose best trials are tried first, as far as they are in this one's space.
        callbacks: Called with the study and each trial that finishes; `study.stop()` ends the study. One process.

    Returns:
        Folder of the study.
    """
    if callbacks and place.jobs > 1:
        raise ValueError(f"callbacks are called in one process, got jobs = {place.jobs}; leave one of the two out")
    opened = _open(asked, config, place.cache_dir, place.progress)
    for sentence in opened.counts:
        place.say(sentence)
    if warm is not None:
        opened = opened._replace(task=_warmed(opened.task, warm, place.say))
    asked_for = {"configuration": asdict(config), "asked": asdict(asked), "warm": None if warm is None else str(warm)}
    cut = _find_cut_short(place, {**asked_for, "inputs": opened.inputs}, folder)
    if cut is not None:
        place.say(f"going on with {cut}, which was asked for the same and cut short")
        return _take_up(cut, read_study(cut), opened, config, asked, place, callbacks)
    if folder is not None and (folder / RECORD).exists():
        raise ValueError(f"{folder} has a study already; go on with `hyperalign study --resume {folder}`")
    new = folder is None
    folder = folder or create_folder(place.out, label=f"study-{Path(config.data).stem or config.data}")
    try:
        url = settle_storage(place.storage, folder, jobs=place.jobs)
        _hold_place(Written(shown(url)), folder)
        with quiet():
            study = create_study(
                open_storage(url, folder),
                place.name or folder.name,
                _mark(asked, config, opened.inputs),
                directions=["maximize", "minimize"][: len(asked.objectives)],
                pruner=make_pruner(asked, opened.steps),
            )
    except (ValueError, OSError):
        if new:
            shutil.rmtree(folder, ignore_errors=True)  # nothing was begun
        raise
    with quiet():
        _set_front(study, asked, config, folder)
    record = {
        "format": FORMAT,
        "version": __version__,
        "name": study.study_name,
        "storage": _place_words(url, folder),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        **asked_for,
        "inputs": opened.inputs,
        "versions": find_versions(),
        "hardware": find_hardware(),
        "commit": find_commits(),
    }
    _write(folder, {**record, "status": "running"})
    log_event(folder, "study started", pid=os.getpid())
    return _conduct(study, folder, url, asked, config, opened, place, callbacks)


def go_on(
    folder: Path,
    place: Place,
    changes: Mapping[str, Any],
    callbacks: Sequence[Callback] = (),
    *,
    data: str | None = None,
) -> Path:
    """Go on with a study: give back what was cut off, and do what is left.

    Args:
        folder: Of the study.
        place: Where and how; the storage is the one of its record, unless another URL of the same is given.
        changes: Of `trials`, `patience` and `target`: when the study ends.
        callbacks: As for `begin`.
        data: That of its record, written anew where it is a command (see `embed.streams`).

    Returns:
        The folder.
    """
    record = read_study(folder)
    config, asked = _recorded(record)
    if data is not None and data != config.data:
        raise ValueError(f"a resumed study keeps its data, got {data!r} where it has {config.data!r}; leave it out")
    config = replace(config, data=data or config.data)
    asked = replace(asked, **changes)
    _url_of(record, folder, place.storage)
    opened = _open(asked, config, place.cache_dir, place.progress)
    if opened.inputs != record["inputs"]:
        raise ValueError(f"the encoders or the data of {folder} have changed since it began; begin a new study")
    if record.get("warm") and Path(record["warm"]).is_dir():
        opened = opened._replace(task=_warmed(opened.task, Path(record["warm"]), place.say))
    return _take_up(folder, record, opened, config, asked, place, callbacks)


def _take_up(  # noqa: PLR0913 - a study, and how it is gone on with
    folder: Path,
    record: Mapping[str, Any],
    opened: Opened,
    config: SearchConfig,
    asked: StudyConfig,
    place: Place,
    callbacks: Sequence[Callback],
) -> Path:
    """Go on with a study whose inputs are as they were."""
    url = _url_of(record, folder, place.storage)
    with quiet():
        study = load_study(open_storage(url, folder), record["name"])
        study.pruner = make_pruner(asked, opened.steps)
        if study.user_attrs.get(STOP):
            study.set_user_attr(STOP, "")
    _write(folder, {**record, "asked": asdict(asked), "status": "running"})
    log_event(folder, "study resumed", pid=os.getpid())
    return _conduct(study, folder, url, asked, config, opened, place, callbacks)


def _find_cut_short(place: Place, asked_for: Mapping[str, Any], folder: Path | None) -> Path | None:
    """The newest unfinished study of this installation that was asked for the same and that nobody conducts.

    Args:
        place: Where.
        asked_for: What its record must say.
        folder: The only one it may lie in; None for any of `place.out`.
    """
    same = json.loads(to_json({**asked_for, "versions": find_versions(), "commit": find_commits()}))
    for path in sorted((place.out if folder is None else folder.parent).glob(f"*/{RECORD}"), reverse=True):
        other = path.parent
        try:
            record = read_study(other)
        except (ValueError, OSError):
            continue
        stored = place.storage is None or record["storage"] == _place_words(
            settle_storage(place.storage, other, jobs=place.jobs), other
        )
        named = place.name in (None, record["name"]) and folder in (None, other)
        if record["status"] == "finished" or not (stored and named):
            continue
        if all(record.get(name) == value for name, value in same.items()):
            with owned_now(other, _CONDUCTOR, "--out") as ours:
                if ours:
                    return other
    return None


def find_study(out: Path, *, pid: int) -> Path | None:
    """The newest study under `out` that process `pid` has begun, or gone on with, and not finished."""
    for path in sorted(out.glob(f"*/{RECORD}"), key=lambda path: path.stat().st_mtime, reverse=True):
        with suppress(ValueError, OSError):  # a study that cannot be read is not gone on with
            begun = any(line.get("pid") == pid for line in read_log(path.parent))
            if begun and read_study(path.parent).get("status") != "finished":
                return path.parent
    return None


def best_commands(folder: Path, storage: str | None = None) -> list[tuple[str, str]]:
    """What repeats the best trial, or each of the Pareto front: the trial in words, and the command.

    Raises:
        ValueError: If no trial within the limits is finished yet, or what it takes is not trusted.
    """
    record = read_study(folder)
    config, asked = _recorded(record)
    with quiet():
        study = load_study(open_storage(_url_of(record, folder, storage), folder), record["name"])
        best = best_trials(study)
    _hold_words(config)
    if not best:
        raise ValueError(f"no trial of {folder} is finished and within the limits; go on with --resume {folder}")
    return [(trial_in_words(trial, []), write_best(folder, trial, asked, config)) for trial in best]


def _conduct(  # noqa: PLR0913 - a study, and how it is done
    study: optuna.Study,
    folder: Path,
    url: str,
    asked: StudyConfig,
    config: SearchConfig,
    opened: Opened,
    place: Place,
    callbacks: Sequence[Callback],
) -> Path:
    """Do what is left of a study, say what happens, and keep the record up to date."""
    deadline = None if place.timeout is None else time.monotonic() + place.timeout
    bench = Bench(study, folder, asked, _is_local(url, folder), deadline)
    teller = _Teller(bench, opened.n_trials, place)
    with owned_now(folder, _CONDUCTOR, "--out"), quiet():  # others may join in; one who conducts is seen by them
        with without_others(folder):
            give_back_lost(study, folder, local=bench.local, suspect=False)
            put_seats(study, opened.n_trials, opened.task.first)
        try:
            if place.jobs == 1:
                work(bench, opened.task, [*callbacks, teller.after])
            else:
                words = {"folder": str(folder), "cache_dir": str(place.cache_dir), "url": url, "deadline": deadline}
                words["own"] = all(map(is_own, config.zoo))
                together(_serve, words, place.jobs, teller.watch)
        finally:
            with without_others(folder):
                give_back_lost(study, folder, local=bench.local, suspect=False)
                put_seats(study, opened.n_trials)
            teller.tell()
            teller.keep(ended=True)
    return folder


def _warmed(task: Task, warm: Path, say: Say) -> Task:
    """A task that begins with the best trials of another study, behind today's defaults."""
    record = read_study(warm)
    done = [trial for trial in record.get("trials", []) if trial["values"]]
    best = sorted(done, key=lambda trial: (trial["number"] not in record["best"], -trial["values"][0]))[:_WARM]
    fitting = [trial["params"] for trial in best if task.fits(trial["params"])]
    say(f"{len(fitting)} of the {len(best)} best trials of {warm} are in this study's space and are tried first")
    return task._replace(first=[*task.first, *(one for one in fitting if one not in task.first)])


def _serve(*, folder: str, cache_dir: str, url: str, deadline: float | None, own: bool) -> None:
    """One of several processes of a study."""

    def silent(stage: str, done: int, total: int) -> None: ...

    path = Path(folder)
    record = read_study(path)
    config, asked = _recorded(record)
    config = replace(config, data=Written(config.data))  # whoever started this process was allowed to open it
    with trusting(own), quiet():
        opened = _open(asked, config, Path(cache_dir), silent)
        study = load_study(open_storage(url, path), record["name"])
        study.pruner = make_pruner(asked, opened.steps)
        work(Bench(study, path, asked, _is_local(url, path), deadline), opened.task)


class _Teller:
    """Says what happens in a study, and keeps its record up to date."""

    def __init__(self, bench: Bench, n_trials: int, place: Place):
        self.bench, self.n_trials, self.place = bench, n_trials, place
        self.told = {trial.number for trial in finished(bench.study)}
        if self.told:
            place.say(f"{len(self.told)} of {n_trials} trials were finished before")

    def after(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        """What Optuna calls behind each trial of this process."""
        self.tell()

    def watch(self) -> bool:
        """Say what has finished; whether there is anything left to do."""
        self.tell()
        give_up_if_all_fail(self.bench.study)
        return bool(waiting(self.bench.study)) and reason_to_stop(self.bench) is None

    def tell(self) -> None:
        """Say what has finished since the last time."""
        study = self.bench.study
        done = finished(study)
        new = [trial for trial in done if trial.number not in self.told]
        for trial in new:
            self.told.add(trial.number)
            self.place.say(trial_in_words(trial, best_trials(study)))
        if new:
            self.place.progress("trials", len(self.told), self.n_trials)
            self.keep(ended=False)

    def keep(self, *, ended: bool) -> None:
        """Write the record."""
        study, folder = self.bench.study, self.bench.folder
        left = bool(waiting(study)) or len(finished(study)) < self.n_trials
        stopped = (reason_to_stop(self.bench) or "") if left else ""
        status = "running" if not ended else "finished" if stopped or not left else "stopped"
        found = describe(study, self.bench.asked, stopped=stopped)
        _write(folder, {**read_study(folder), "status": status, **found})


def _open(asked: StudyConfig, config: SearchConfig, cache_dir: Path, progress: Progress) -> Opened:
    """Encoders and data; over trainings their rows too."""
    if asked.over == "pairs":
        found = open_pairs(asked, config, cache_dir=cache_dir, progress=progress)
        names = [pair.name for pair in found.candidates.pairs]
        digests = [split.image_digest + split.text_digest for split in found.dataset.splits.values()]
        inputs = hashlib.sha256(" ".join([*names, *digests]).encode()).hexdigest()
        steps = tuple(items.n_train for items in found.samples.items) if found.samples else ()
        n_trials = min(asked.trials, len(names))
        return Opened(pairs_task(found), inputs, steps, n_trials, found.candidates.counts)
    knobs_of(asked, config)  # a mistake in the space costs no embedding
    wanted = ask(config, cache_dir=cache_dir, progress=progress)
    prepared, _ = prepare_rows(wanted, config, cache_dir, progress)
    task = training_task(asked, config, wanted.candidates, prepared, lambda stage, done, total: None)
    steps = tuple(range(1, asked.looks + 1)) if asked.pruning != "none" else ()
    return Opened(task, digest_inputs(wanted.jobs), steps, asked.trials, wanted.candidates.counts)


def _mark(asked: StudyConfig, config: SearchConfig, inputs: str) -> dict[str, Any]:
    """What a study is asked for, as far as its trials depend on it; two machines must agree in it."""
    recipe = config.recipe()
    what = {
        "over": asked.over,
        "objectives": asked.objectives,
        "looks": asked.looks,
        "pruner": asked.pruning,
        "seeds": asked.seeds,
        "seed": config.seed,
        "method": config.answering()._asdict(),
        "recipe": asdict(recipe),
        "limits": asdict(config.limits),
        "task": config.task,
        "inputs": inputs,
    }
    if asked.over == "training":
        what["space"] = {knob.name: str(knob) for knob in knobs_of(asked, config)}
    return {name: _short(value) for name, value in what.items()}


def _short(value: Any) -> Any:
    """A plain value; one that fills a page as a digest."""
    text = to_json(value)
    return json.loads(text) if len(text) <= 60 else hashlib.sha256(text.encode()).hexdigest()[:16]


def _set_front(study: optuna.Study, asked: StudyConfig, config: SearchConfig, folder: Path) -> None:
    """What a dashboard shows of the study before any trial."""
    if study.metric_names is None:
        study.set_metric_names(metric_names(asked))
    facts = {"over": asked.over, "data": config.data, "zoo": ", ".join(config.zoo), "folder": str(folder)}
    facts |= {"method": config.answering().label, "sampler": asked.sampler, "pruner": asked.pruning}
    for name, value in facts.items():
        if name not in study.user_attrs:
            study.set_user_attr(name, value)


def _recorded(record: Mapping[str, Any]) -> tuple[SearchConfig, StudyConfig]:
    return from_record(record["configuration"]), build(StudyConfig, record["asked"])


def _url_of(record: Mapping[str, Any], folder: Path, storage: str | None) -> str:
    """Where a study is kept; a password is in no record and must be given again.

    Raises:
        FileNotFoundError: If it was a file, and is gone.
        ValueError: If another place is given, or it is elsewhere and the user does not know it.
    """
    url = settle_storage(record["storage"], folder, jobs=1)
    file = local_file(url)
    if file is not None and not file.is_file():
        raise FileNotFoundError(f"the trials of {folder} were kept in {file}, where nothing is; bring the file back")
    if storage is not None:
        given = settle_storage(storage, folder, jobs=1)
        if shown(given) != url:
            raise ValueError(f"the study is kept in {url}, got {shown(given)}; leave out --storage")
        _hold_place(Written(url), folder)
        return given
    _hold_place(url, folder)
    if ":***@" in url:
        raise ValueError(f"the study is kept in {url}, whose password is in no record; give the whole URL as --storage")
    return url


def _hold_words(config: SearchConfig) -> None:
    """Write nothing into a configuration file that would run or fetch what its user does not know: it is his then.

    Raises:
        UntrustedError: If a factory or an address is neither named by him nor known to him.
    """
    for spec in (spec for zoo in (*config.zoo, *config.ceiling) for spec in load_zoo(zoo)):
        if spec.loader == "python":
            hold_factory(spec)
    if is_stream(config.data) and not is_command(config.data):  # a command is no part of the file
        streams_of(config.data)


def _hold_place(url: str, folder: Path) -> None:
    """Open no database elsewhere because a record says so.

    Raises:
        UntrustedError: If its user has neither named it nor kept a study there before.
    """
    if not (_is_local(url, folder) or allowed(url, "storage", str(url))):
        raise UntrustedError(
            f"the trials of {folder} are kept in {url}, which its record names and you did not; if you know it, "
            "give it as --storage"
        )


def _is_local(url: str, folder: Path) -> bool:
    """Whether the storage is a file inside the folder, so that nobody else shares it."""
    path = url.removeprefix("journal:").removeprefix("sqlite:///")
    return "://" not in path and Path(path).resolve().parent == folder.resolve()


def _write(folder: Path, record: Mapping[str, Any]) -> None:
    write_whole(folder / RECORD, (to_json(record, indent=1) + "\n").encode())


def _place_words(url: str, folder: Path) -> str:
    """Where a study is kept, for its record: a folder that is moved takes its files along, and no password is told."""
    if not _is_local(url, folder):
        return shown(url)
    return "journal" if url.startswith("journal:") else "sqlite"


def hint(folder: Path) -> str:
    """How a study is shown in a browser."""
    return dashboard_words(settle_storage(read_study(folder)["storage"], folder, jobs=1))
