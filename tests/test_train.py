"""The training loop: what it keeps, when it stops, and that nothing it keeps is broken."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hyperalign.align.train import Drawn, TrainConfig, fit, rate_at, scale_parameter
from hyperalign.ledger import adamw_flops, damped_flops, sgd_flops

CONFIG = TrainConfig(n_steps=40, learning_rate=0.2, warmup_frac=0.0, clip_norm=0.0, n_validations=4)


class Parabola:
    """(x − 3)², booked at 5 FLOP; its loss or its gradient breaks at a step, where told so."""

    def __init__(self, *, start: float = 0.0, broken_at: int | None = None, gradient_alone: bool = False) -> None:
        """Nothing is broken yet."""
        self.x = torch.tensor([start], requires_grad=True)
        self.n_losses, self.broken_at, self.gradient_alone = 0, broken_at, gradient_alone

    @property
    def parameters(self) -> Sequence[Tensor]:
        """One number."""
        return [self.x]

    def draw(self) -> Drawn:
        """The same at every step; two pairs of equal losses."""
        self.n_losses += 1
        value = (self.x - 3).square().sum()
        if self.n_losses - 1 == self.broken_at:
            value = value + (0 * self.x.abs()).sqrt().sum() if self.gradient_alone else value * math.nan
        return Drawn(value, value / 2, 5)

    def score(self) -> float:
        """Highest at 3."""
        return -float((self.x.detach() - 3).abs())


def test_the_rate_rises_to_its_peak_and_falls_to_nothing() -> None:
    config = TrainConfig(n_steps=100, learning_rate=2.0, warmup_frac=0.1)

    rates = [rate_at(step, 100, config) for step in range(100)]

    assert rates[0] == pytest.approx(2 / 11)
    assert rates[10] == max(rates) == 2
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx(1)  # halfway down
    assert 0 < rates[99] < 0.001


def test_one_step_is_taken_at_the_peak() -> None:
    assert rate_at(0, 1, TrainConfig(n_steps=1, learning_rate=0.5, warmup_frac=0.0)) == 0.5


def test_a_training_finds_the_bottom_and_books_every_step() -> None:
    learner, told = Parabola(), list[tuple[int, int]]()

    record = fit(learner, CONFIG, 40, progress=lambda done, total: told.append((done, total)))

    assert abs(learner.x.item() - 3) < 0.5
    assert (record.n_steps, record.best_step, record.rolled_back, record.diverged) == (40, 40, False, False)
    assert record.flops == 5 * 40
    assert record.optimiser_flops == adamw_flops(1, 40)
    assert told == [(step, 40) for step in range(1, 41)]
    assert [look.step for look in record.looks] == list(range(2, 41, 2))
    assert record.looks[-1].loss < record.looks[0].loss


def test_a_run_that_gets_worse_ends_where_it_started() -> None:
    learner = Parabola(start=2.9)

    record = fit(learner, TrainConfig(n_steps=10, learning_rate=1e4), 10, validate=learner.score)

    assert learner.x.item() == pytest.approx(2.9)
    assert record.rolled_back
    assert record.best_step == 0
    assert record.n_steps == 10


def test_the_best_state_wins_over_the_last() -> None:
    learner, seen = Parabola(), dict[int, float]()

    def validate() -> float:
        seen[len(seen)] = learner.x.item()
        return learner.score()

    record = fit(learner, TrainConfig(n_steps=12, learning_rate=3.0, n_validations=12), 12, validate=validate)

    best = min(seen, key=lambda look: abs(seen[look] - 3))
    assert record.best_step == best
    assert learner.x.item() == seen[best]
    assert 0 < best < 12


def test_without_rollback_the_last_state_stays() -> None:
    learner = Parabola(start=2.9)

    record = fit(learner, TrainConfig(n_steps=10, learning_rate=1e4, rollback=False), 10, validate=learner.score)

    assert abs(learner.x.item()) > 100
    assert record.best_step == 10


def test_equal_scores_keep_the_later_state() -> None:
    learner = Parabola()

    record = fit(learner, CONFIG, 40, validate=lambda: 50.0)

    assert record.best_step == 40


def test_looks_are_spread_over_the_run_and_end_with_it() -> None:
    record = fit(learner := Parabola(), CONFIG, 40, validate=learner.score)

    assert [look.step for look in record.looks] == [0, 10, 20, 30, 40]
    assert math.isnan(record.looks[0].loss)


def test_fewer_steps_than_looks_are_looked_at_once_each() -> None:
    record = fit(learner := Parabola(), CONFIG, 2, validate=learner.score)

    assert [look.step for look in record.looks] == [0, 1, 2]


@pytest.mark.parametrize("gradient_alone", [False, True])
@pytest.mark.parametrize("validated", [False, True])
def test_a_loss_or_gradient_that_is_not_finite_ends_the_training(gradient_alone: bool, validated: bool) -> None:
    learner = Parabola(broken_at=15, gradient_alone=gradient_alone)

    record = fit(learner, CONFIG, 40, validate=learner.score if validated else None)

    assert record.diverged
    assert record.n_steps == 15
    assert record.flops == 5 * 16  # the broken step ran as well
    assert learner.x.isfinite().all()
    assert record.best_step == (10 if validated else 15)
    assert math.isnan(record.looks[-1].validation)


def test_a_start_that_cannot_be_validated_gives_way_to_anything_that_can() -> None:
    learner, scores = Parabola(), iter([math.nan, 1.0, math.nan, 0.5, 0.2])

    record = fit(learner, CONFIG, 40, validate=lambda: next(scores))

    assert record.best_step == 10


def test_a_stopped_training_is_looked_at_where_it_stands() -> None:
    learner = Parabola()

    record = fit(learner, CONFIG, 40, validate=learner.score, should_stop=lambda: learner.n_losses == 7)

    assert record.n_steps == record.best_step == 7
    assert [look.step for look in record.looks] == [0, 7]


def test_a_training_that_is_stopped_at_once_changes_nothing() -> None:
    learner = Parabola()

    record = fit(learner, CONFIG, 40, should_stop=lambda: True)

    assert (record.n_steps, record.flops, learner.x.item()) == (0, 0, 0.0)


def test_gradients_are_scaled_down_to_the_norm() -> None:
    """Far out the parabola's gradient is −2000; the first Adam moments tell what arrived."""
    learners = [Parabola(start=-997.0), Parabola(start=-997.0)]
    grads = []
    for learner, clip_norm in zip(learners, (0.5, 0.0), strict=True):
        fit(learner, TrainConfig(n_steps=1, clip_norm=clip_norm), 1)
        grads.append(float(learner.x.grad))  # type: ignore[arg-type]

    assert grads == [pytest.approx(-0.5, rel=1e-4), -2000]


def test_a_damped_training_finds_the_bottom_too() -> None:
    learner = Parabola()

    record = fit(learner, replace(CONFIG, optimizer="damped", learning_rate=0.4), 40)

    assert abs(learner.x.item() - 3) < 0.5
    assert record.optimiser_flops == damped_flops(1, 40)


def test_a_plain_step_goes_down_the_gradient_at_the_rate() -> None:
    """The parabola's slope at 0 is −6."""
    learner = Parabola()

    record = fit(learner, replace(CONFIG, optimizer="sgd", learning_rate=0.1), 1)

    assert learner.x.item() == pytest.approx(0.6)
    assert record.optimiser_flops == sgd_flops(1) == 2


@pytest.mark.parametrize("n_steps", [2, 3, 5])
def test_a_damped_training_of_a_few_steps_goes_somewhere(n_steps: int) -> None:
    """The first gradient cannot be told from noise; two that agree can."""
    learner = Parabola()

    fit(learner, replace(CONFIG, optimizer="damped", learning_rate=0.1), n_steps)

    assert learner.x.item() > 0


def test_the_scale_is_learned_as_a_logarithm_or_not_at_all() -> None:
    learned = scale_parameter(TrainConfig(n_steps=1, logit_scale=20.0))
    fixed = scale_parameter(TrainConfig(n_steps=1, learn_scale=False))

    assert learned.exp().item() == pytest.approx(20)
    assert (learned.requires_grad, fixed.requires_grad) == (True, False)


@pytest.mark.parametrize(("length", "steps"), [({"n_steps": 7}, 7), ({"n_epochs": 2.5}, 25), ({"n_epochs": 0.01}, 1)])
def test_steps_are_given_or_made_of_epochs(length: dict[str, Any], steps: int) -> None:
    assert TrainConfig(**length).steps(10) == steps


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"n_steps": None, "n_visits": 0}, "n_visits must be at least 1, got 0"),
        ({"n_epochs": 1.0}, "n_steps or n_epochs, not both, got 10 and 1.0"),
        ({"n_steps": 0}, "at least one step, got n_steps=0"),
        ({"n_steps": None, "n_epochs": 0.0}, "at least one step"),
        ({"n_steps": None, "n_epochs": math.nan}, "at least one step"),
        ({"batch_size": 1}, "batch_size must be at least 2, got 1"),
        ({"pairs_per_step": 0}, "pairs_per_step must be at least 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"learning_rate": math.nan}, "learning_rate must be above 0"),
        ({"warmup_frac": 1.0}, r"warmup_frac must be in \[0, 1\)"),
        ({"logit_scale": 101.0}, r"logit_scale must be in \(0, 100\], got 101"),
        ({"betas": (0.9, 1.0)}, r"betas must be in \[0, 1\)"),
        ({"clip_norm": -1.0}, "clip_norm must be at least 0, got -1"),
        ({"weight_decay": math.nan}, "weight_decay must be at least 0"),
        ({"memory_frac": 0.0}, r"memory_frac must be in \(0, 1\], got 0"),
        ({"optimizer": "adam"}, "optimizer must be adamw, damped or sgd, got adam"),
        ({"n_validations": 0}, "n_validations must be at least 1, got 0"),
    ],
)
def test_a_configuration_that_no_run_could_use_is_refused(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        TrainConfig(**{"n_steps": 10, **wrong})
