"""Trials shared by processes: none is lost, none is doubled, whatever is stopped, killed or fails."""

import os
import signal
import time
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState

from hyperalign.study.asked import StudyConfig
from hyperalign.study.samplers import FreshSampler, make_sampler
from hyperalign.study.seats import (
    BEGUN,
    ERROR,
    MOST_TRIES,
    SEAT,
    at_work,
    counted,
    finished,
    give_back_lost,
    is_gone,
    put_seats,
    waiting,
    without_others,
)
from hyperalign.study.storage import create_study, load_study, open_storage, quiet, settle_storage
from hyperalign.study.task import Outcome, Task
from hyperalign.study.work import Bench, reason_to_stop, together, work

N_TRIALS = 12


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tested are processes that end, not power cuts."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


def begin(folder: Path, words: str = "journal", n_trials: int = N_TRIALS) -> optuna.Study:
    """A study of one parameter whose seats wait."""
    with quiet():
        storage = open_storage(settle_storage(words, folder, jobs=1), folder)
        study = create_study(storage, "toy", {}, directions=["maximize"])
        put_seats(study, n_trials)
    return study


def parabola(trial: optuna.Trial, params: Mapping[str, Any]) -> Outcome:
    """Best at 3."""
    return Outcome((-((params["x"] - 3) ** 2),))


def toy(judge: Any = parabola, asked: StudyConfig | None = None) -> Task:
    """Trials of one number."""
    return Task(
        choose=lambda trial: {"x": trial.suggest_float("x", 0, 10)},
        judge=judge,
        sampler=partial(make_sampler, asked or StudyConfig(), 0),
    )


def bench_of(study: optuna.Study, folder: Path, **asked: Any) -> Bench:
    """Where its trials are done."""
    return Bench(study, folder, StudyConfig(**{"trials": N_TRIALS, **asked}), local=True)


def seats_of(study: optuna.Study) -> Counter[int]:
    """How many finished trials have each seat."""
    return Counter(trial.user_attrs[SEAT] for trial in finished(study))


def drawn_by_chance(study: optuna.Study) -> dict[int, float]:
    """What the seats got that were filled before the sampler had learned anything."""
    return {t.user_attrs[SEAT]: t.params["x"] for t in finished(study) if t.user_attrs[SEAT] < 10}


def once(n_trials: int = N_TRIALS) -> Counter[int]:
    """Every seat had once."""
    return Counter(range(n_trials))


def test_every_seat_is_had_once(tmp_path: Path) -> None:
    study = begin(tmp_path)

    work(bench_of(study, tmp_path), toy())

    assert seats_of(study) == once()
    assert not waiting(study)
    assert all(trial.state == TrialState.COMPLETE for trial in study.trials)


def test_a_study_that_was_stopped_goes_on_as_it_would_have_gone(tmp_path: Path) -> None:
    def stopped(trial: optuna.Trial, params: Mapping[str, Any]) -> Outcome:
        if trial.number == 5:
            raise KeyboardInterrupt
        return parabola(trial, params)

    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    whole, cut = (begin(tmp_path / name) for name in ("whole", "cut"))
    work(bench_of(whole, tmp_path / "whole"), toy())
    with pytest.raises(KeyboardInterrupt):
        work(bench_of(cut, tmp_path / "cut"), toy(stopped))
    put_seats(cut, N_TRIALS)
    work(bench_of(cut, tmp_path / "cut"), toy())

    assert seats_of(cut) == once()
    assert drawn_by_chance(cut) == drawn_by_chance(whole)


def test_a_failed_trial_is_noted_and_not_tried_again(tmp_path: Path) -> None:
    def failing(trial: optuna.Trial, params: Mapping[str, Any]) -> Outcome:
        if trial.number == 4:
            raise RuntimeError("out of memory")
        return parabola(trial, params)

    study = begin(tmp_path)
    work(bench_of(study, tmp_path), toy(failing))
    put_seats(study, N_TRIALS)

    assert seats_of(study) == once()
    assert study.trials[4].user_attrs[ERROR] == "RuntimeError: out of memory"
    assert not waiting(study)


def test_a_score_that_is_not_finite_is_a_failure(tmp_path: Path) -> None:
    study = begin(tmp_path)

    work(bench_of(study, tmp_path), toy(lambda trial, params: Outcome((float("nan") if trial.number == 3 else 1.0,))))

    assert [trial.number for trial in finished(study) if trial.state == TrialState.FAIL] == [3]


def test_a_mistake_that_every_trial_makes_ends_the_study_with_its_sentence(tmp_path: Path) -> None:
    def wrong(trial: optuna.Trial, params: Mapping[str, Any]) -> Outcome:
        raise ValueError("no such encoder")

    with pytest.raises(ValueError, match="first 3 trials have all failed, the last with ValueError: no such encoder"):
        work(bench_of(begin(tmp_path), tmp_path), toy(wrong))


@pytest.mark.parametrize(
    ("asked", "why"), [({"target": -60.0}, "has reached -60"), ({"patience": 1}, "no better"), ({}, None)]
)
def test_a_study_ends_at_its_target_or_when_nothing_gets_better(
    asked: dict[str, Any], why: str | None, tmp_path: Path
) -> None:
    study = begin(tmp_path)

    work(bench_of(study, tmp_path, **asked), toy(lambda trial, params: Outcome((-50.0,))))

    reason = reason_to_stop(bench_of(study, tmp_path, **asked))
    assert (why is None and reason is None) or (why is not None and reason is not None and why in reason)
    assert (len(finished(study)) < N_TRIALS) == (why is not None)


def test_no_trial_begins_after_the_deadline(tmp_path: Path) -> None:
    study = begin(tmp_path)

    work(bench_of(study, tmp_path)._replace(deadline=time.monotonic()), toy())

    assert not finished(study)
    assert len(waiting(study)) == N_TRIALS


def test_a_callback_can_stop_the_study(tmp_path: Path) -> None:
    study = begin(tmp_path)

    def enough(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        if trial.number == 3:
            study.stop()

    work(bench_of(study, tmp_path), toy(), [enough])

    assert len(finished(study)) == 4


def test_a_trial_of_a_worker_that_is_gone_is_given_back_with_its_parameters(tmp_path: Path) -> None:
    study = begin(tmp_path, n_trials=2)
    with quiet(), at_work(tmp_path) as name:
        lost = study.ask()
        lost.set_user_attr("worker", name)
        lost.suggest_float("x", 0, 10)
        lost.set_user_attr(BEGUN, True)
        with without_others(tmp_path):
            assert give_back_lost(study, tmp_path, local=True) == 0  # it is alive

    with quiet(), without_others(tmp_path):
        assert give_back_lost(study, tmp_path, local=True) == 1
    work(bench_of(study, tmp_path), toy())

    assert is_gone(study.trials[0])
    assert seats_of(study) == once(2)
    assert lost.params in [trial.params for trial in finished(study)]


def test_a_trial_killed_while_it_gets_its_parameters_gets_them_anew(tmp_path: Path) -> None:
    study = begin(tmp_path, n_trials=0)
    put_seats(study, 1, [{"x": 7.0}])
    space = {"y": optuna.distributions.FloatDistribution(0, 1), "x": optuna.distributions.FloatDistribution(0, 10)}

    with quiet(), without_others(tmp_path):
        half = study.ask()
        half.suggest_float("y", 0, 1)  # and no x yet
        give_back_lost(study, tmp_path, local=True)
        again = study.ask(space)

    assert again.params["x"] == 7.0
    assert again.params["y"] != half.params["y"]


def test_a_trial_whose_workers_always_go_fails_in_the_end(tmp_path: Path) -> None:
    study = begin(tmp_path, n_trials=1)

    for _ in range(MOST_TRIES):
        with quiet(), without_others(tmp_path):
            study.ask().suggest_float("x", 0, 10)
            give_back_lost(study, tmp_path, local=True)
    put_seats(study, 1)

    assert not waiting(study)
    assert seats_of(study) == once(1)
    assert "worker has gone 5 times" in finished(study)[0].user_attrs[ERROR]


def test_a_seat_that_two_machines_have_taken_counts_once(tmp_path: Path) -> None:
    study = begin(tmp_path, n_trials=1)
    study.enqueue_trial({}, user_attrs={SEAT: 0})  # as by another machine at the same moment

    work(bench_of(study, tmp_path), toy())

    assert seats_of(study) == once(1)
    assert len(study.trials) == 2


def test_choices_are_never_proposed_a_second_time(tmp_path: Path) -> None:
    space = {name: CategoricalDistribution(list(values)) for name, values in (("a", "pqrs"), ("b", "xyz"))}
    pairs = {(a, b) for a in "pqrs" for b in "xyz"}

    def free(study: optuna.Study, number: int) -> set[tuple[Any, ...]]:
        return pairs - {(t.params["a"], t.params["b"]) for t in counted(study) if t.number != number and t.params}

    def score(trial: optuna.Trial, params: Mapping[str, Any]) -> Outcome:
        return Outcome((float(params["a"] == "r") + float(params["b"] == "y"),))

    for sampler in ("tpe", "gp", "random"):
        (tmp_path / sampler).mkdir()
        study, asked = begin(tmp_path / sampler), StudyConfig(sampler=sampler)
        task = Task(
            choose=lambda trial: {name: trial.suggest_categorical(name, d.choices) for name, d in space.items()},
            judge=score,
            sampler=lambda seat, asked=asked: FreshSampler(  # type: ignore[misc]
                make_sampler(asked, 0, seat, deterministic=True, startup=4), space, free, seat
            ),
            n_possible=len(pairs),
        )
        work(bench_of(study, tmp_path / sampler), task)

        assert {(t.params["a"], t.params["b"]) for t in study.trials} == pairs, sampler


def serve_slowly(*, folder: str, words: str) -> None:
    """A worker of a process of its own, whose trials take a moment."""

    def slow(trial: optuna.Trial, params: Mapping[str, Any]) -> Outcome:
        time.sleep(0.15)
        return parabola(trial, params)

    path = Path(folder)
    with quiet():
        study = load_study(open_storage(settle_storage(words, path, jobs=1), path), "toy")
    work(bench_of(study, path), toy(slow))


@pytest.mark.parametrize("words", ["journal", pytest.param("sqlite", marks=pytest.mark.slow)])
def test_a_worker_that_is_killed_loses_and_doubles_no_trial(words: str, tmp_path: Path) -> None:
    study, killed = begin(tmp_path, words), list[str]()

    def kill_one() -> bool:
        """Kill whoever works on the newest trial, once some are done."""
        running = study.get_trials(states=(TrialState.RUNNING,))
        workers = [trial.user_attrs["worker"] for trial in running if "worker" in trial.user_attrs]
        if len(finished(study)) >= 2 and workers and not killed:
            killed.append(workers[-1])
            os.kill(int(workers[-1].split("-")[-2]), signal.SIGKILL)
        return bool(waiting(study))

    with quiet():
        together(serve_slowly, {"folder": str(tmp_path), "words": words}, 2, kill_one)
        with without_others(tmp_path):
            give_back_lost(study, tmp_path, local=True)
        put_seats(study, N_TRIALS)
        work(bench_of(study, tmp_path), toy())

    assert killed
    assert seats_of(study) == once()
    assert sum(is_gone(trial) for trial in study.trials) == 1


def serve_wrongly(*, folder: str) -> None:
    """A worker that cannot begin."""
    raise ValueError(f"nothing in {folder}; make it first")


def test_what_a_worker_cannot_do_is_said_by_whoever_began_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing in .*; make it first"):
        together(serve_wrongly, {"folder": str(tmp_path)}, 1, lambda: True)


def test_a_trial_of_another_machine_that_is_gone_is_waited_for_and_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("storage.HEARTBEAT", "storage.GRACE", "work.GRACE"):
        monkeypatch.setattr(f"hyperalign.study.{place}", 1)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "ours").mkdir()
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    with quiet():
        study = create_study(open_storage(url, tmp_path / "theirs"), "toy", {}, directions=["maximize"])
        put_seats(study, 2)
    if not (child := os.fork()):
        gone = Bench(study, tmp_path / "theirs", StudyConfig(trials=2), local=False)
        work(gone, toy(lambda trial, params: os._exit(0)))  # in the middle of its trial
    os.waitpid(child, 0)

    with quiet():
        shared = load_study(open_storage(url, tmp_path / "ours"), "toy")
    work(Bench(shared, tmp_path / "ours", StudyConfig(trials=2), local=False), toy())

    assert seats_of(shared) == once(2)
    assert [trial.state for trial in finished(shared)] == [TrialState.COMPLETE] * 2


def test_a_url_of_postgresql_gets_the_driver_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    from hyperalign.study import storage

    monkeypatch.setattr(storage, "find_spec", lambda name: None if name == "psycopg2" else object())
    assert storage._with_driver("postgresql://me@host/db") == "postgresql+psycopg://me@host/db"
    monkeypatch.setattr(storage, "find_spec", lambda name: object())
    assert storage._with_driver("postgresql://me@host/db") == "postgresql://me@host/db"
