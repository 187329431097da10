"""One training loop for HyperCLIP and the SigLIP baseline: same data, same order, same steps.

Whatever is drawn follows from the seed and the step, so a training that was cut short ends where it would have ended:
to the last bit on a CPU.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.nn.functional as functional
from torch import Tensor, nn

from hyperalign.align.connectors import contrastive, tiled_siglip
from hyperalign.align.train import MAX_LOGIT_SCALE, rate_at
from hyperalign.align.train import TrainConfig as Schedule
from hyperalign.hyperclip.checkpoint import keep, restore
from hyperalign.hyperclip.model import HyperClip, Rows
from hyperalign.hyperclip.normalisation import Statistics
from hyperalign.hyperclip.pairs import Batch, Pairs, batches, normalise_pictures
from hyperalign.hyperclip.rollback import Rollback, best_look, blend, copy_state

__all__ = ["Look", "TrainConfig", "Training", "contrast", "division_in_words", "steps_of", "train"]

Precision = Literal["no", "bf16", "fp16"]
Progress = Callable[[str, int, int], None]

_N_LOOKS = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How a model is trained; the one home of these defaults.

    Attributes:
        n_epochs: Passes over the pictures, each with one of its captions.
        n_steps: Or optimiser steps.
        batch_size: Pictures in a step; cut to the number of pictures.
        n_parts: Parts that a step is taken in, one after the other: each has its own contrast, prompts and emission.
        learning_rate: Peak rate of AdamW.
        text_rate: Rate of the text side, in shares of it.
        hyper_rate: Rate of the hypernetwork, in shares of it.
        warmup_frac: Share of the steps spent rising to the peak rate, in [0, 1); the rest falls as a cosine to zero.
        betas: AdamW's decay rates of the two moments.
        weight_decay: AdamW's decay of matrices; scales, biases and single numbers have none.
        clip_norm: Gradients are scaled down to this norm; 0 for never.
        loss: "siglip", or "infonce" for the softmax contrast.
        logit_scale: SigLIP's s at the start, and that of the softmax contrast; None for the model's own, 10.
        logit_bias: SigLIP's β at the start; None for −log of the pictures in a contrast, the odds of a match, which is
            −10 at the batch of its authors.
        bn: Statistics that BatchNorm normalises by in training, the batch's or those that are stored.
        n_prompts: Captions of a part that the hypernetwork sees; None for all.
        n_pools: Pool from which batches of like captions are made, in batches; 1 for random batches.
        crop: Least share of the area that a random crop keeps, in (0, 1]; 1 for no crops.
        precision: Of matrix products: "no" for float32, or mixed.
        n_validations: How often a training that is validated is looked at, the start not counted; its best state is
            kept. 0 for never, and the last state is kept.
        blend: How far from the start to the state that is kept the model ends, in (0, 1]; 1 is that state.
        checkpoint_steps: Steps between two checkpoints.
        seed: Seeds initialisation, order, dropout and crops.
    """

    n_epochs: float = 32
    n_steps: int | None = None
    batch_size: int = 512
    n_parts: int = 1
    learning_rate: float = 1e-3
    text_rate: float = 1.0
    hyper_rate: float = 1.0
    warmup_frac: float = 0.1
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    loss: Literal["siglip", "infonce"] = "siglip"
    logit_scale: float | None = None
    logit_bias: float | None = None
    bn: Statistics = "batch"
    n_prompts: int | None = None
    n_pools: int = 1
    crop: float = 1.0
    precision: Precision = "no"
    n_validations: int = 0
    blend: float = 1.0
    checkpoint_steps: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values no training could use."""
        least = {"batch_size": 2, "n_parts": 1, "n_pools": 1, "checkpoint_steps": 1, "n_steps": 1, "n_prompts": 1}
        for name, low in {**least, **dict.fromkeys(_NOT_NEGATIVE, 0)}.items():
            value = getattr(self, name)
            if value is not None and not value >= low:
                raise ValueError(f"{name} must be at least {low}, got {value}")
        if self.batch_size < 2 * self.n_parts:
            raise ValueError(f"a part of a step needs two pictures, got batch_size {self.batch_size} in {self.n_parts}")
        if not self.n_epochs > 0 or not self.learning_rate > 0:
            raise ValueError(f"n_epochs and learning_rate must be above 0, got {self.n_epochs}, {self.learning_rate}")
        if self.logit_scale is not None and not 0 < self.logit_scale <= MAX_LOGIT_SCALE:
            raise ValueError(f"logit_scale must be above 0 and at most {MAX_LOGIT_SCALE:g}, got {self.logit_scale}")
        if not 0 <= self.warmup_frac < 1:
            raise ValueError(f"warmup_frac must be in [0, 1), got {self.warmup_frac}")
        if outside := [name for name in ("crop", "blend") if not 0 < getattr(self, name) <= 1]:
            raise ValueError(f"{outside[0]} must be in (0, 1], got {getattr(self, outside[0])}")
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be {' or '.join(allowed)}, got {getattr(self, name)!r}")


_NOT_NEGATIVE = ("text_rate", "hyper_rate", "weight_decay", "clip_norm", "n_validations")
_CHOICES = {"loss": ("siglip", "infonce"), "bn": ("running", "batch"), "precision": ("no", "bf16", "fp16")}


class Look(NamedTuple):
    """One look at a running training.

    Attributes:
        step: Steps done.
        loss: Of the last step, in nats.
        parameter_norm: Of the image encoder's parameters.
        update_norm: Of what the step changed in them.
        emitted_norm: Of the change of scales and biases for the step's captions; 0 without a hypernetwork.
        emitted_spread: Root mean square difference of that change from the one of the look before, over its norm.
        logit_scale: SigLIP's s.
        logit_bias: SigLIP's β.
    """

    step: int
    loss: float
    parameter_norm: float
    update_norm: float
    emitted_norm: float
    emitted_spread: float
    logit_scale: float
    logit_bias: float


@dataclass(slots=True)
class Training:
    """What happened in a training.

    Attributes:
        looks: The curve.
        n_steps: Optimiser steps done.
        n_seen: Pictures seen.
        n_bad: Times that a picture could not be decoded.
        seconds: Wall time of the steps, of earlier parts too.
        validated: Steps and scores of the looks at validation, the start first; nothing where there was none.
        diverged: Whether a loss that was not finite ended it.
        resumed_at: Step that it went on from; 0 where it began anew.
    """

    looks: list[Look] = field(default_factory=list)
    n_steps: int = 0
    n_seen: int = 0
    n_bad: int = 0
    seconds: float = 0.0
    validated: list[tuple[int, float]] = field(default_factory=list)
    diverged: bool = False
    resumed_at: int = 0

    @property
    def kept_step(self) -> int:
        """The step whose state was kept: the one that validated best, the latest of equals, or the last."""
        return best_look(self.validated)[0] if self.validated else self.n_steps


def steps_of(config: TrainConfig, n_pictures: int) -> tuple[int, int]:
    """Optimiser steps of a training, and pictures in each.

    Raises:
        ValueError: If a step cannot be cut into its parts with two pictures each.
    """
    batch = min(config.batch_size, n_pictures)
    batch -= batch % config.n_parts
    if batch < 2 * config.n_parts:
        raise ValueError(f"{n_pictures} pictures are too few for a step in {config.n_parts} parts of at least two")
    per_epoch = n_pictures // batch
    return config.n_steps or max(1, round(config.n_epochs * per_epoch)), batch


def division_in_words(config: TrainConfig, n_processes: int) -> list[str]:
    """Who contrasts what with what where several processes train; nothing where there is one."""
    if n_processes == 1:
        return []
    gathered = (
        "the captions of all are gathered as negatives"
        if config.loss == "siglip"
        else "negatives are not gathered: InfoNCE contrasts each share by itself"
    )
    return [f"{n_processes} processes: each takes its share of every batch, and {gathered}"]


def train(  # noqa: PLR0913 - what is trained, how, where it is kept, and who is told
    network: HyperClip,
    pairs: Pairs,
    config: TrainConfig,
    *,
    checkpoint: Path | None = None,
    validate: Callable[[], float] | None = None,
    progress: Progress = lambda stage, done, total: None,
    stage: str = "training",
) -> Training:
    """Train a model in place.

    Args:
        network: With a hypernetwork, or without as the baseline.
        pairs: Pictures and captions.
        config: How.
        checkpoint: File that the training goes on from where it is there, and that is written meanwhile and removed at
            the end; None for none.
        validate: Score of the network as it stands, higher is better; with `n_validations` the best state seen is kept.
        progress: Told `(stage, done, total)` after every step.
        stage: What to call it.

    Returns:
        What happened. A loss that is not finite ends the training; the step is not taken.

    Raises:
        ValueError: If the checkpoint is damaged or of another training.
    """
    n_steps, batch_size = steps_of(config, len(pairs.pictures))
    accelerator = _accelerator(config)
    optimiser = torch.optim.AdamW(_groups(network, config), betas=config.betas, eps=1e-6)
    record, best = Training(), dict[str, Tensor]()
    network.to(accelerator.device)
    with torch.no_grad():
        if config.logit_scale is not None:
            network.log_logit_scale.fill_(math.log(config.logit_scale))
        network.logit_bias.fill_(
            -math.log(batch_size / config.n_parts) if config.logit_bias is None else config.logit_bias
        )
    start_state = copy_state(network) if config.blend < 1 else {}
    if checkpoint is not None and checkpoint.is_file():
        was, best = restore(checkpoint, network, optimiser, config=asdict(config))
        record = _taken_up(was)
    wrapped, prepared = accelerator.prepare(network, optimiser)
    loop = _Loop(network, wrapped, prepared, accelerator, pairs.picture, config, record, n_steps)
    watch = None
    if validate is not None and config.n_validations:
        seen, n_looks = record.validated, config.n_validations
        watch = Rollback(network, validate, n_steps=n_steps, n_looks=n_looks, seen=seen, best=best)
    part = (accelerator.process_index, accelerator.num_processes)
    share = batch_size // config.n_parts
    fed = batches(
        pairs,
        batch_size=share,
        seed=config.seed,
        start=record.n_steps * config.n_parts,
        stop=n_steps * config.n_parts,
        n_pools=config.n_pools,
        part=part,
        device=accelerator.device.type,
    )
    with torch.random.fork_rng(devices=_cuda_devices(accelerator)):
        if watch is not None:
            watch.after_step(record.n_steps)
        while record.n_steps < n_steps and not record.diverged:
            start = time.perf_counter()
            loop.step([next(fed) for _ in range(config.n_parts)])
            record.seconds += time.perf_counter() - start
            progress(stage, record.n_steps, n_steps)
            if watch is not None and not record.diverged:
                watch.after_step(record.n_steps)
            if checkpoint is not None and _is_due(record, config, n_steps) and accelerator.is_main_process:
                best = {} if watch is None else watch.best
                keep(checkpoint, network, optimiser, config=asdict(config), record=asdict(record), best=best)
    _settle(network, watch, start_state, config)
    if checkpoint is not None and accelerator.is_main_process:
        checkpoint.unlink(missing_ok=True)
    return record


def _settle(network: HyperClip, watch: Rollback | None, start: Mapping[str, Tensor], config: TrainConfig) -> None:
    """Leave a trained network in the state that it is to be used in."""
    if watch is not None:
        watch.go_back()
    if config.blend < 1:
        blend(network, start, config.blend)
    network.eval()


class _Loop:
    """One step after the other."""

    def __init__(  # noqa: PLR0913 - what a step needs
        self,
        network: HyperClip,
        wrapped: Any,
        optimiser: Any,
        accelerator: Any,
        picture: Any,
        config: TrainConfig,
        record: Training,
        n_steps: int,
    ) -> None:
        self.network, self.wrapped, self.optimiser, self.accelerator = network, wrapped, optimiser, accelerator
        self.picture, self.config, self.record, self.n_steps = picture, config, record, n_steps
        self.look_at = {round(n_steps * (k + 1) / _N_LOOKS) for k in range(_N_LOOKS)} | {1}
        self.emitted: Tensor | None = None

    def step(self, parts: list[Batch]) -> None:
        """Take one step, of one part or several."""
        config, record, number = self.config, self.record, self.record.n_steps
        torch.manual_seed(_seed(config.seed, number, self.accelerator.process_index))  # dropout
        self.network.training_mode(config.bn)
        share = rate_at(number, self.n_steps, Schedule(learning_rate=1.0, warmup_frac=config.warmup_frac))
        for group in self.optimiser.param_groups:
            group["lr"] = group["peak"] * share
        self.optimiser.zero_grad(set_to_none=True)
        total = 0.0
        for k, part in enumerate(parts):
            with self._together(last=k == len(parts) - 1):
                loss = self._loss(part, number * len(parts) + k) / len(parts)
                if not loss.isfinite():
                    record.diverged = True
                    return
                self.accelerator.backward(loss)
            total += float(loss.detach())
            record.n_seen += len(part.pictures) * self.accelerator.num_processes
            record.n_bad += part.bad
        if config.clip_norm:
            self.accelerator.clip_grad_norm_(self.network.parameters(), config.clip_norm)
        before = self._parameters() if number + 1 in self.look_at else None
        self.optimiser.step()
        with torch.no_grad():
            self.network.log_logit_scale.clamp_(max=math.log(MAX_LOGIT_SCALE))
        record.n_steps += 1
        if before is not None:
            record.looks.append(self._look(total, before, parts[-1]))

    def _loss(self, part: Batch, number: int) -> Tensor:
        """Mean loss of one part, in nats."""
        device, config = self.accelerator.device, self.config
        dice = torch.Generator().manual_seed(_seed(config.seed, number, self.accelerator.process_index, 1))
        pictures = normalise_pictures(part.pictures.to(device), self.picture, crop=config.crop, generator=dice)
        with self.accelerator.autocast():
            rows = self.wrapped(pictures, part.captions.to(device), config.n_prompts)
        return contrast(rows, config)

    @contextmanager
    def _together(self, *, last: bool) -> Iterator[None]:
        """Processes exchange gradients behind the last part only."""
        if last:
            yield
        else:
            with self.accelerator.no_sync(self.wrapped):
                yield

    def _parameters(self) -> Tensor:
        return nn.utils.parameters_to_vector(p.detach() for p in self.network.image.parameters()).clone()

    @torch.no_grad()
    def _look(self, loss: float, before: Tensor, part: Batch) -> Look:
        after = self._parameters()
        norm = spread = 0.0
        if self.network.hyper is not None:
            self.network.eval()
            captions = part.captions.to(self.accelerator.device)
            change = self.network.hyper(self.network.embed_captions(captions)[: self.config.n_prompts])
            norm = float(change.norm())
            if self.emitted is not None:
                spread = float((change - self.emitted).norm()) / max(norm, 1e-12)
            self.emitted = change
        return Look(
            self.record.n_steps,
            loss,
            float(after.norm()),
            float((after - before).norm()),
            norm,
            spread,
            float(self.network.log_logit_scale.exp()),
            float(self.network.logit_bias),
        )


def contrast(rows: Rows, config: TrainConfig) -> Tensor:
    """The loss of a part, in float32; with SigLIP the captions of other processes are negatives too.

    Processes' gradients are averaged, so that the losses of k of them, B/k pictures against B captions each, add up to
    the loss of the whole batch. The softmax contrast stays in each process.
    """
    image, text, scale = rows.image.unsqueeze(0), rows.text.unsqueeze(0), rows.logit_scale
    if config.loss == "infonce":
        return contrastive(image, text, scale)[0] + 0 * rows.logit_bias  # which has no part in it, but a gradient
    loss = tiled_siglip(image, text, scale, rows.logit_bias)[0]
    for other in _of_other_processes(rows.text):
        loss = loss + tiled_siglip(image, other.unsqueeze(0), scale, rows.logit_bias, matched=False)[0]
    return loss


def _of_other_processes(text: Tensor) -> list[Tensor]:
    """The same rows of every other process, their gradients on the way back to it; nothing where there is one."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return []
    everyone = functional.all_gather(text)
    return [rows for rank, rows in enumerate(everyone) if rank != dist.get_rank()]


def _groups(network: HyperClip, config: TrainConfig) -> list[dict[str, Any]]:
    """Parameters by part, matrices apart from the rest."""
    rates = {"image": 1.0, "text": config.text_rate, "hyper": config.hyper_rate}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            rate = config.learning_rate * rates.get(name.partition(".")[0], 1.0)
            decay = config.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((rate, decay), []).append(parameter)
    return [{"params": p, "lr": rate, "peak": rate, "weight_decay": decay} for (rate, decay), p in groups.items()]


def _accelerator(config: TrainConfig) -> Any:
    """The device, precision and processes of this training; another precision than the last one's needs a new state."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != config.precision:
        AcceleratorState._reset_state()
    return Accelerator(mixed_precision=config.precision)


def _seed(*numbers: int) -> int:
    """One seed out of several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def _cuda_devices(accelerator: Any) -> list[int]:
    return [accelerator.device.index or 0] if accelerator.device.type == "cuda" else []


def _is_due(record: Training, config: TrainConfig, n_steps: int) -> bool:
    return record.n_steps % config.checkpoint_steps == 0 and record.n_steps < n_steps


def _taken_up(was: dict[str, Any]) -> Training:
    """What had happened when a checkpoint was written."""
    looks = [Look(**look) if isinstance(look, dict) else Look(*look) for look in was.pop("looks")]
    validated = [(int(step), float(score)) for step, score in was["validated"]]
    return Training(**{**was, "looks": looks, "validated": validated, "resumed_at": was["n_steps"]})
