"""One training loop for the hypernetworks and the baseline.

A learner owns its parameters and draws its own batches; the loop knows nothing but losses. Validation is handed in,
and where it is, the best validated state wins, the start included: a run that gets worse is rolled back.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from hyperalign.align.damped import DampedMean, power
from hyperalign.ledger import adamw_flops, damped_flops, sgd_flops

MAX_LOGIT_SCALE = 100.0
_N_LOSSES = 59  # of the training curve, beside the first
_LEAST_MEMORY = 2.0  # gradients: fewer cannot be told from noise, and nothing would ever move


_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "warmup_frac": (lambda share: 0 <= share < 1, "in [0, 1)"),
    "logit_scale": (lambda scale: 0 < scale <= MAX_LOGIT_SCALE, f"in (0, {MAX_LOGIT_SCALE:g}]"),
    "betas": (lambda betas: all(0 <= beta < 1 for beta in betas), "in [0, 1)"),
    "memory_frac": (lambda share: 0 < share <= 1, "in (0, 1]"),
    "optimizer": (lambda name: name in ("adamw", "damped", "sgd"), "adamw, damped or sgd"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How connectors are trained. The defaults of each method stand beside it.

    Attributes:
        n_steps: Optimiser steps.
        n_epochs: Or passes over the captions.
        n_visits: Or, where neither is given, how often each encoder is drawn at least; a larger grid takes more steps.
        batch_size: Items per step, B; cut to the number of items.
        pairs_per_step: Encoder pairs per step, P; cut to the size of the grid. The baseline has one.
        optimizer: AdamW, steps along the damped mean of the gradients (see `damped`), or plain gradient steps.
        learning_rate: Peak rate.
        warmup_frac: Share of the steps spent rising to the peak rate, in [0, 1); the rest falls as a cosine to zero.
        betas: AdamW's decay rates of the two moments.
        weight_decay: AdamW's decay.
        memory_frac: Share of the steps whose gradients the damped mean is of, in (0, 1].
        clip_norm: Gradients are scaled down to this norm; 0 for never.
        logit_scale: Inverse temperature at the start.
        learn_scale: Whether the inverse temperature is trained; it is capped at 100.
        n_validations: How often a validated run looks, the start not counted.
        rollback: Whether the best validated state wins over the last.
        seed: Seeds initialisation, batch order and pair order.
    """

    n_steps: int | None = None
    n_epochs: float | None = None
    n_visits: int = 18
    batch_size: int = 512
    pairs_per_step: int = 8
    optimizer: Literal["adamw", "damped", "sgd"] = "adamw"
    learning_rate: float = 2e-3
    warmup_frac: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    memory_frac: float = 0.2
    clip_norm: float = 1.0
    logit_scale: float = 20.0
    learn_scale: bool = True
    n_validations: int = 2
    rollback: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values no run could use."""
        if self.n_steps is not None and self.n_epochs is not None:
            raise ValueError(f"give n_steps or n_epochs, not both, got {self.n_steps} and {self.n_epochs}")
        if (self.n_steps is not None and self.n_steps < 1) or (self.n_epochs is not None and not self.n_epochs > 0):
            raise ValueError(f"training needs at least one step, got n_steps={self.n_steps}, n_epochs={self.n_epochs}")
        if self.batch_size < 2:
            raise ValueError(
                f"batch_size must be at least 2, got {self.batch_size}: a contrastive batch of one has no negatives"
            )
        least_of = {"n_visits": 1, "pairs_per_step": 1, "n_validations": 1, "weight_decay": 0, "clip_norm": 0}
        for name, least in least_of.items():
            if not getattr(self, name) >= least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")
        for name, (held, rule) in _RULES.items():
            if not held(getattr(self, name)):
                raise ValueError(f"{name} must be {rule}, got {getattr(self, name)}")

    def steps(self, steps_per_epoch: int, shape: tuple[int, int] = (1, 1)) -> int:
        """Optimiser steps of a run whose epoch has so many, on a grid of so many image and text encoders.

        A step sees `pairs_per_step` image encoders and one text encoder.
        """
        if self.n_steps is not None:
            return self.n_steps
        if self.n_epochs is not None:
            return max(1, round(self.n_epochs * steps_per_epoch))
        return self.n_visits * max(math.ceil(shape[0] / self.pairs_per_step), shape[1])

    @property
    def length(self) -> str:
        """How long it trains, in words."""
        if self.n_steps is not None:
            return f"{self.n_steps} steps"
        return f"{self.n_visits} visits an encoder" if self.n_epochs is None else f"{self.n_epochs:g} epochs"


def scale_parameter(config: TrainConfig) -> Tensor:
    """The logarithm of the inverse temperature, a leaf; it has a gradient where the scale is learned."""
    return torch.tensor(config.logit_scale).log().requires_grad_(config.learn_scale)


def capped_scale(log_logit_scale: Tensor) -> Tensor:
    """The inverse temperature; a parameter above the cap is put back to it, so that it can fall again."""
    with torch.no_grad():
        log_logit_scale.clamp_(max=math.log(MAX_LOGIT_SCALE))
    return log_logit_scale.exp()


class Drawn(NamedTuple):
    """A batch and what it cost.

    Attributes:
        objective: What the step goes down on.
        loss: Mean over the pairs of the batch, in nats.
        flops: Forward and backward.
    """

    objective: Tensor
    loss: Tensor
    flops: int


class Learner(Protocol):
    """What the loop trains."""

    @property
    def parameters(self) -> Sequence[Tensor]:
        """Leaves that the optimiser updates."""

    def draw(self) -> Drawn:
        """Losses of the next batch."""


class Look(NamedTuple):
    """One look at a running training.

    Attributes:
        step: Optimiser steps done.
        loss: Mean loss of the last batch, in nats; NaN before the first step.
        validation: Score on validation in per cent; NaN where not measured.
    """

    step: int
    loss: float
    validation: float


@dataclass(slots=True)
class Fit:
    """What happened in one training.

    Attributes:
        looks: The curve of validation.
        losses: Steps, and the loss of the batch at each of them, in nats; at most 60.
        n_steps: Optimiser steps done.
        flops: Forward and backward of all steps.
        optimiser_flops: Updates, by formula.
        best_step: The step whose state was kept.
        diverged: Whether a loss or a gradient that was not finite ended the training.
        stopped: Whether it was told to stop before it was finished.
    """

    looks: list[Look] = field(default_factory=list)
    losses: list[tuple[int, float]] = field(default_factory=list)
    n_steps: int = 0
    flops: int = 0
    optimiser_flops: int = 0
    best_step: int = 0
    diverged: bool = False
    stopped: bool = False

    @property
    def rolled_back(self) -> bool:
        """Whether an earlier state than the last was kept."""
        return self.best_step < self.n_steps


def rate_at(step: int, n_steps: int, config: TrainConfig) -> float:
    """Learning rate of step `step` in [0, n_steps): a linear rise, then half a cosine to zero."""
    warm = config.warmup_frac * n_steps
    if step < warm:
        return config.learning_rate * (step + 1) / (warm + 1)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(n_steps - warm, 1)))


def fit(
    learner: Learner,
    config: TrainConfig,
    n_steps: int,
    *,
    validate: Callable[[], float] | None = None,
    progress: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Fit:
    """Train `learner` in place for `n_steps` steps.

    Args:
        learner: Parameters and losses.
        config: Rates, clipping, validation.
        n_steps: Optimiser steps.
        validate: Score of the learner as it stands, in per cent, higher is better; None to keep the last state.
        progress: Called with steps done and steps in all.
        should_stop: Asked before each step; True ends the training where it stands.

    Returns:
        The curve and the cost. A loss or a gradient that is not finite ends the training before the step is taken, so
        parameters stay finite. Where there is a validation the best state it has seen is kept.
    """
    parameters = list(learner.parameters)
    update, n_params = _updates(parameters, config, n_steps), sum(p.numel() for p in parameters)
    record = Fit()
    watch = _Watch(parameters, record, config, n_steps, validate)
    while record.n_steps < n_steps and not (should_stop is not None and should_stop()):
        for parameter in parameters:
            parameter.grad = None
        drawn = learner.draw()
        record.flops += drawn.flops
        if not _backward(drawn.objective, parameters, config):
            record.diverged = True
            break
        update(rate_at(record.n_steps, n_steps, config))
        record.n_steps += 1
        record.optimiser_flops += update_flops(config, n_params)
        if progress is not None:
            progress(record.n_steps, n_steps)
        watch.after_step(drawn.loss)
    watch.finish()
    record.stopped = record.n_steps < n_steps and not record.diverged
    return record


def update_flops(config: TrainConfig, n_params: int, n_steps: int = 1) -> int:
    """FLOPs of the updates of a training, by formula."""
    return {"adamw": adamw_flops, "damped": damped_flops, "sgd": sgd_flops}[config.optimizer](n_params, n_steps)


def _updates(parameters: Sequence[Tensor], config: TrainConfig, n_steps: int) -> Callable[[float], object]:
    """What moves the parameters along their gradients, at a rate."""
    if config.optimizer == "damped":
        return DampedMean(parameters, max(_LEAST_MEMORY, config.memory_frac * n_steps)).step
    if config.optimizer == "sgd":
        return lambda rate: _descend(parameters, rate)
    adamw = torch.optim.AdamW(
        parameters, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay, fused=True
    )

    def step(rate: float) -> None:
        adamw.param_groups[0]["lr"] = rate
        adamw.step()

    return step


@torch.no_grad()
def _descend(parameters: Sequence[Tensor], rate: float) -> None:
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.sub_(parameter.grad, alpha=rate)


def _backward(loss: Tensor, parameters: Sequence[Tensor], config: TrainConfig) -> bool:
    """Gradients, scaled down to the norm; False where they or the loss are not finite and no step may be taken."""
    if not math.isfinite(loss.item()):
        return False
    loss.backward()
    if not config.clip_norm:
        return math.isfinite(power(p.grad for p in parameters if p.grad is not None))
    return bool(torch.nn.utils.clip_grad_norm_(parameters, config.clip_norm).isfinite())


class _Watch:
    """Looks at a running training, and keeps the best state that validation has seen."""

    def __init__(
        self,
        parameters: Sequence[Tensor],
        record: Fit,
        config: TrainConfig,
        n_steps: int,
        validate: Callable[[], float] | None,
    ) -> None:
        """Look at the start, where there is a validation."""
        self.parameters, self.record, self.config, self.validate = parameters, record, config, validate
        n_looks = config.n_validations if validate is not None else 20
        self.looks_at = {round(n_steps * (k + 1) / n_looks) for k in range(n_looks)}
        self.losses_at = {round(n_steps * (k + 1) / _N_LOSSES) for k in range(_N_LOSSES)} | {1}
        self.best, self.kept, self.last = -math.inf, list[Tensor](), math.nan
        if validate is not None:
            self._look()

    def after_step(self, loss: Tensor) -> None:
        """Look, where it is time to."""
        self.last = float(loss.detach())
        if self.record.n_steps in self.losses_at:
            self.record.losses.append((self.record.n_steps, self.last))
        if self.record.n_steps in self.looks_at:
            self._look()

    def finish(self) -> None:
        """Look at where a training was stopped, and go back to the best state."""
        step = self.record.n_steps
        if self.record.diverged:
            self.record.looks.append(Look(step, math.nan, math.nan))
        elif self.validate is not None and self.record.looks[-1].step < step:
            self._look()
        if self.validate is None or not self.config.rollback:
            self.record.best_step = step
            return
        with torch.no_grad():
            for parameter, value in zip(self.parameters, self.kept, strict=True):
                parameter.copy_(value)

    def _look(self) -> None:
        score = math.nan if self.validate is None else self.validate()
        self.record.looks.append(Look(self.record.n_steps, self.last, score))
        if not self.kept or score >= self.best:
            self.best = -math.inf if math.isnan(score) else score
            self.kept = [p.detach().clone() for p in self.parameters] if self.validate is not None else []
            self.record.best_step = self.record.n_steps
