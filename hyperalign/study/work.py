"""Trials done: by this process, or by several that share the study.

Torch trains small matrices here, so a trial is bound by one thread of Python and threads would wait for each other:
several trials at once are several processes, each with its share of the cores. Who shares a study is told apart by
locks, see `seats`; the one that began it says what happens and looks after those that die.
"""

import math
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from optuna.trial import FrozenTrial, TrialState

from hyperalign.machine import n_cores
from hyperalign.study.asked import StudyConfig
from hyperalign.study.seats import (
    BEGUN,
    ERROR,
    GRACE,
    SEAT,
    WORKER,
    at_work,
    counted,
    finished,
    give_back_lost,
    is_gone,
    is_surplus,
    waiting,
    without_others,
)
from hyperalign.study.storage import quiet
from hyperalign.study.task import Task

__all__ = ["STOP", "Bench", "Callback", "give_up_if_all_fail", "reason_to_stop", "together", "work"]

Callback = Callable[[optuna.Study, FrozenTrial], None]
STOP = "stopped because"  # attribute of a study that needs no further trial
_FAILURES = 3  # first trials that may fail, if all do
_POLL = 0.3  # seconds
_WAIT = 2.0  # the same, where the question goes to another machine


class Bench(NamedTuple):
    """Where trials are done.

    Attributes:
        study: The study, its pruner set.
        folder: Where the locks of its workers lie.
        asked: What it is asked for.
        local: Whether no other folder shares it.
        deadline: Of `time.monotonic()`, one clock for all processes: no trial begins after it; None for never.
    """

    study: optuna.Study
    folder: Path
    asked: StudyConfig
    local: bool
    deadline: float | None = None


def work(bench: Bench, task: Task, callbacks: Sequence[Callback] = ()) -> None:
    """Take seats and do their trials until none is left or there is a reason to stop.

    A trial that fails is noted and not tried again; a worker that is stopped gives its seat back. Where other machines
    share the study, whoever finds no seat stays until it is sure that those who are at work live.

    Raises:
        ValueError: If the first trials have all failed; the sentence is that of the last one.
    """
    with quiet(), at_work(bench.folder) as name:
        while (_sit(bench, task, name, callbacks) or _has_given_back(bench)) and _is_wanted():
            give_up_if_all_fail(bench.study)


def reason_to_stop(bench: Bench) -> str | None:
    """Why no further trial is begun; None while trials are."""
    said = bench.study.user_attrs.get(STOP)
    if said:
        return str(said)
    if bench.deadline is not None and time.monotonic() >= bench.deadline:
        return "the time is up"
    done = [trial for trial in finished(bench.study) if trial.state == TrialState.COMPLETE]
    asked = bench.asked
    if not done or len(asked.objectives) > 1:
        return None
    best = max(done, key=lambda trial: (trial.value, -trial.number))
    if asked.target is not None and best.value >= asked.target:
        return f"trial {best.number} has reached {asked.target:g} %"
    since = sum(trial.number > best.number for trial in finished(bench.study))
    if asked.patience is not None and since >= asked.patience:
        return f"{since} trials were no better than trial {best.number}"
    return None


def give_up_if_all_fail(study: optuna.Study) -> None:
    """A mistake that every trial makes is one of what was asked, and not of a trial.

    Raises:
        ValueError: If the first trials have all failed.
    """
    done = finished(study)
    if len(done) >= _FAILURES and all(trial.state == TrialState.FAIL for trial in done):
        raise ValueError(f"the first {len(done)} trials have all failed, the last with {done[-1].user_attrs[ERROR]}")


def together(serve: Callable[..., None], words: Mapping[str, Any], n_jobs: int, watch: Callable[[], bool]) -> None:
    """Let several processes do trials, and look after them.

    Args:
        serve: What each of them does; it takes `words`, which are plain values.
        words: See above.
        n_jobs: How many.
        watch: Called again and again meanwhile; False once no further process need take the place of one that died.

    Raises:
        ValueError: With the sentence of a process that could not go on.
    """
    context = multiprocessing.get_context("spawn")
    crew: list[tuple[Any, Connection]] = []

    def start() -> None:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_serve, args=(serve, dict(words), theirs), daemon=True)
        with _share_of_cores(n_jobs):
            process.start()
        theirs.close()
        crew.append((process, ours))

    try:
        for _ in range(n_jobs):
            start()
        while crew:
            time.sleep(_POLL)
            wanted = watch()
            for process, pipe in [one for one in crew if not one[0].is_alive()]:
                crew.remove((process, pipe))
                sentence = _last_words(pipe)
                if sentence is not None:
                    raise ValueError(sentence)
                if process.exitcode and wanted:
                    start()
    finally:
        for process, _ in crew:
            process.terminate()
        for process, _ in crew:
            process.join()
    watch()


def _last_words(pipe: Connection) -> str | None:
    """Why a process could not go on; None where it was done, or killed."""
    try:
        return pipe.recv_bytes().decode()
    except EOFError:
        return None


def _serve(serve: Callable[..., None], words: Mapping[str, Any], pipe: Connection) -> None:
    """In a process of its own: Ctrl-C is the business of whoever began it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    try:
        serve(**words)
    except Exception as error:
        pipe.send_bytes((str(error.args[0]) if error.args else repr(error)).encode())


@contextmanager
def _share_of_cores(n_jobs: int) -> Iterator[None]:
    """Processes that are started here use so many threads that all together have one a core."""
    before = os.environ.get("OMP_NUM_THREADS")
    share = max(1, n_cores() // n_jobs)
    os.environ["OMP_NUM_THREADS"] = str(min(share, int(before)) if before and before.isdigit() else share)
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def _is_wanted() -> bool:
    """Whether the process that began this one still lives."""
    parent = multiprocessing.parent_process()
    return parent is None or parent.is_alive()


def _sit(bench: Bench, task: Task, name: str, callbacks: Sequence[Callback]) -> bool:
    """One trial; False where there is none to do."""
    study = bench.study
    with ExitStack() as alone:
        alone.enter_context(without_others(bench.folder))
        give_back_lost(study, bench.folder, local=bench.local)
        free = waiting(study)
        if not free or reason_to_stop(bench):
            return False
        study.sampler = task.sampler(free[0].user_attrs.get(SEAT, 0))
        study.optimize(
            lambda trial: _do(bench, task, name, trial, alone.close),
            n_trials=1,
            catch=(Exception,),
            callbacks=[*callbacks, _after],
        )
    if getattr(study, "_stop_flag", False):  # a callback has called `study.stop()`
        study.set_user_attr(STOP, "a callback has stopped it")
    return True


def _has_given_back(bench: Bench) -> bool:
    """Wait for trials of other machines, as long as a heart may be silent; whether one of them waits again."""
    end = time.monotonic() + GRACE + _POLL
    while not bench.local and reason_to_stop(bench) is None and _is_wanted():
        optuna.storages.fail_stale_trials(bench.study)  # Optuna looks for them only when a trial begins
        if waiting(bench.study):
            return True
        if time.monotonic() > end or not bench.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            return False
        time.sleep(_WAIT)
    return False


def _do(bench: Bench, task: Task, name: str, trial: optuna.Trial, let_others: Callable[[], None]) -> Any:
    """The objective: parameters while alone, the score beside others."""
    trial.set_user_attr(WORKER, name)
    frozen = bench.study.get_trials(deepcopy=False)[trial.number]
    if is_surplus(bench.study, frozen):
        raise _SurplusError
    try:
        params = task.choose(trial)
        if task.n_possible is not None and _is_double(bench.study, trial, params):
            raise _SurplusError
        trial.set_user_attr(BEGUN, True)
        let_others()
        outcome = task.judge(trial, params)
        if not all(math.isfinite(value) for value in outcome.values):
            raise ValueError(f"a score must be finite, got {outcome.values}")
    except _SurplusError:
        raise
    except Exception as error:
        trial.set_user_attr(ERROR, f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")
        raise
    if outcome.pruned:
        raise optuna.TrialPruned
    return outcome.values if len(outcome.values) > 1 else outcome.values[0]


class _SurplusError(Exception):
    """A trial that another machine has taken at the same moment; its seat is taken, or waits again."""


def _is_double(study: optuna.Study, trial: optuna.Trial, params: Mapping[str, Any]) -> bool:
    return any(other.number < trial.number and other.params == params for other in counted(study))


def _after(study: optuna.Study, trial: FrozenTrial) -> None:
    """Nothing is lost where a trial had to give way."""
    if is_gone(trial):
        others = [*counted(study), *waiting(study)]
        held = any(other.user_attrs.get(SEAT) == trial.user_attrs.get(SEAT) for other in others)
        if not held and SEAT in trial.user_attrs:
            study.enqueue_trial({}, user_attrs={SEAT: trial.user_attrs[SEAT]})
