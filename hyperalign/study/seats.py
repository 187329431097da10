"""Trials as seats: all are put into the queue when a study begins, and a worker takes one at a time.

A seat is an Optuna trial that waits. Taking one is atomic in every storage, so however many processes share a study no
trial is done twice and none is left out. A seat whose worker is gone is given back with the same parameters: a worker
holds a lock of the operating system as long as it lives, so that one killed is known at once.
"""

import os
import secrets
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from hyperalign.embed.locks import owned, owned_now

__all__ = [
    "BEGUN",
    "ERROR",
    "GRACE",
    "SEAT",
    "TRIED",
    "WORKER",
    "at_work",
    "counted",
    "finished",
    "give_back",
    "give_back_lost",
    "is_gone",
    "is_surplus",
    "put_seats",
    "waiting",
    "without_others",
]

SEAT, WORKER, ERROR, TRIED, BEGUN = "seat", "worker", "error", "times tried before", "begun"
MOST_TRIES = 5  # of a trial whose worker has died while others lived: it may be what kills them, by its memory
GRACE = 90  # seconds that a worker seen by its heart alone may be silent
_QUEUE = "queue"


def put_seats(study: optuna.Study, n_trials: int, first: Sequence[Mapping[str, Any]] = ()) -> None:
    """Let every seat wait that nobody has had or has; doing it again changes nothing.

    Args:
        study: The study.
        n_trials: Seats in all.
        first: Parameters of the first of them.
    """
    lost: dict[int, FrozenTrial] = {}
    held = set[int]()
    for trial in study.get_trials(deepcopy=False):
        seat = trial.user_attrs.get(SEAT)
        if is_gone(trial):
            lost[seat] = trial
        else:
            held.add(seat)
    for seat in range(n_trials):
        if seat in held:
            continue
        if seat in lost:
            give_back(study, lost[seat], suspect=False)
        else:
            study.enqueue_trial(dict(first[seat]) if seat < len(first) else {}, user_attrs={SEAT: seat})


def waiting(study: optuna.Study) -> list[FrozenTrial]:
    """The seats that are free, in the order in which they are taken."""
    return list(study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))


def counted(study: optuna.Study) -> list[FrozenTrial]:
    """Finished and running trials, without those whose worker has gone: another one stands for these."""
    states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING)
    return [trial for trial in study.get_trials(deepcopy=False, states=states) if not is_gone(trial)]


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """Finished trials, pruned and failed ones with them."""
    return [trial for trial in counted(study) if trial.state.is_finished()]


def is_gone(trial: FrozenTrial) -> bool:
    """Whether a trial has ended without a word, because its worker has."""
    return bool(trial.state == TrialState.FAIL and ERROR not in trial.user_attrs)


def is_surplus(study: optuna.Study, trial: FrozenTrial) -> bool:
    """Whether a trial has no seat, or somebody has had it before: workers of two machines can be that close."""
    seat = trial.user_attrs.get(SEAT)
    return seat is None or any(
        other.user_attrs.get(SEAT) == seat and other.number < trial.number for other in counted(study)
    )


@contextmanager
def at_work(folder: Path) -> Iterator[str]:
    """The name of this worker, whose lock is held meanwhile."""
    name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    with owned_now(folder, name, "--out"):
        yield name
    (folder / ".locks" / f"{name}.lock").unlink(missing_ok=True)


@contextmanager
def without_others(folder: Path) -> Iterator[None]:
    """Alone among the workers of a folder: while a trial gets its parameters, and while lost ones are given back."""
    with owned(folder, _QUEUE, lambda: None, "--out"):
        yield


def give_back_lost(study: optuna.Study, folder: Path, *, local: bool, suspect: bool = True) -> int:
    """Give back the seats of workers that have gone; call it `without_others`.

    Args:
        study: The study.
        folder: Where the locks of its workers lie.
        local: Whether no other folder shares the study.
        suspect: Whether it may be the trials that have ended them; not where somebody has stopped everything.

    Returns:
        How many.
    """
    lost = 0
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if _is_lost(trial, folder, local=local):
            try:
                study.tell(trial.number, state=TrialState.FAIL)
            except (ValueError, RuntimeError):  # another one was faster
                continue
            give_back(study, trial, suspect=suspect)
            lost += 1
    return lost


def give_back(study: optuna.Study, trial: FrozenTrial, *, suspect: bool = True) -> None:
    """Let the parameters of a trial whose worker has gone wait again, unless they have been tried too often."""
    tries = trial.user_attrs.get(TRIED, 0) + int(suspect)
    attrs = {SEAT: trial.user_attrs.get(SEAT), TRIED: tries}
    if tries >= MOST_TRIES:
        text = f"its worker has gone {tries} times in the middle of it"
        study.add_trial(
            optuna.create_trial(
                state=TrialState.FAIL,
                params=trial.params,
                distributions=trial.distributions,
                user_attrs={**attrs, ERROR: text},
            )
        )
    else:
        given = trial.system_attrs.get("fixed_params", {})  # of one killed while it got its parameters, these alone
        study.enqueue_trial({**given, **(trial.params if BEGUN in trial.user_attrs else {})}, user_attrs=attrs)


def _is_lost(trial: FrozenTrial, folder: Path, *, local: bool) -> bool:
    worker = trial.user_attrs.get(WORKER)
    if worker is None:  # killed before it could say who it is; of a shared study it may be about to
        begun = trial.datetime_start
        return local or (begun is not None and datetime.now() - begun > timedelta(seconds=GRACE))
    lock = folder / ".locks" / f"{worker}.lock"
    if lock.name != f"{worker}.lock" or not lock.exists():  # a storage is others' word: no file elsewhere is touched
        return local  # else of a worker of another folder, whose heart is listened to
    with owned_now(folder, worker, "--out") as ours:
        pass
    if ours:
        lock.unlink(missing_ok=True)  # not while it is held, which Windows refuses
    return ours
