"""The upper bound: scales and biases tuned on pictures of the classes themselves, everything else frozen.

No hypernetwork can emit better ones for these pictures; how far it stays below says what prompts alone do not tell.
Source: Akinwande et al. 2024, arXiv:2412.16777.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)
from numpy.typing import NDArray
from torch import Tensor

from hyperalign.embed.feed import feed, worthwhile_workers
from hyperalign.embed.pictures import Pictures, choose
from hyperalign.hyperclip.normalisation import find_adapted
from hyperalign.hyperclip.pairs import normalise_pictures
from hyperalign.hyperclip.stored import Model

__all__ = ["BoundConfig", "tune_normalisation"]

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class BoundConfig:
    """How scales and biases are tuned; the one home of these defaults.

    Attributes:
        learning_rate: Peak rate of AdamW; it falls as a cosine to zero.
        n_epochs: Passes over the pictures.
        batch_size: Pictures in a step.
        crop: Least share of the area that a random crop keeps, in (0, 1]; 1 for no crops.
        seed: Of order and crops.
    """

    learning_rate: float = 3e-3
    n_epochs: int = 20
    batch_size: int = 64
    crop: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values no tuning could use."""
        if self.n_epochs < 0 or self.batch_size < 1:
            raise ValueError(
                f"n_epochs must be at least 0 and batch_size at least 1, got {self.n_epochs} and {self.batch_size}"
            )
        if not 0 < self.crop <= 1:
            raise ValueError(f"crop must be in (0, 1], got {self.crop}")


def tune_normalisation(
    model: Model,
    pictures: Pictures,
    labels: NDArray[np.int64],
    classes: Tensor,
    config: BoundConfig,
    *,
    progress: Progress = lambda stage, done, total: None,
) -> Mapping[str, Tensor]:
    """Tune the scales and biases of an image encoder to tell classes apart.

    Args:
        model: Left as it is. With a hypernetwork tuning starts at what it emits for the classes, else at the encoder's
            own values. Stored statistics are used throughout.
        pictures: Of the classes; one that cannot be decoded is passed over.
        labels: (n,) class of each.
        classes: (C, D), unit rows of the classes, on the network's device; they stay.
        config: How.
        progress: Told `(stage, done, total)` after every step.

    Returns:
        Scales and biases by name, for `HyperClip.embed_pictures`; without a step those of the start.
    """
    network = model.network.eval()
    device, adapted = classes.device, find_adapted(network.image)
    with torch.no_grad():
        own = dict(network.image.named_parameters(remove_duplicate=False))
        start = network.emit(classes) or {name: own[name] for name in adapted.names}
    tuned = {name: value.detach().clone().requires_grad_() for name, value in start.items()}
    optimiser = torch.optim.AdamW(list(tuned.values()), lr=config.learning_rate, weight_decay=0.0)
    scale = network.log_logit_scale.detach().exp()
    per_epoch = math.ceil(len(pictures) / config.batch_size)
    n_steps, step = config.n_epochs * per_epoch, 0
    for epoch in range(config.n_epochs):
        dice = torch.Generator().manual_seed(config.seed + epoch)
        order = torch.randperm(len(pictures), generator=dice).numpy()
        for batch, index in _batches(model, pictures, order, config.batch_size, device.type):
            for group in optimiser.param_groups:
                group["lr"] = config.learning_rate * (1 + math.cos(math.pi * step / n_steps)) / 2
            seen = normalise_pictures(batch.to(device), model.picture, crop=config.crop, generator=dice)
            rows = network.embed_pictures(seen, tuned)
            loss = F.cross_entropy(scale * rows @ classes.T, torch.from_numpy(labels[index]).to(device))
            grads = torch.autograd.grad(loss, list(tuned.values()))
            for value, grad in zip(tuned.values(), grads, strict=True):
                value.grad = grad
            optimiser.step()
            step += 1
            progress("tuning scales and biases", step, n_steps)
    return {name: value.detach() for name, value in tuned.items()}


def _batches(
    model: Model, pictures: Pictures, order: NDArray[np.int64], batch_size: int, device: str
) -> Iterator[tuple[Tensor, NDArray[np.int64]]]:
    """Batches of bytes in an order, each with the positions of its pictures."""
    chosen, transform = choose(pictures, order), model.transform(normalised=False)
    n_workers = worthwhile_workers(len(order), device=device)
    for fed in feed(chosen, range(len(order)), transform, model.picture, batch_size=batch_size, n_workers=n_workers):
        bad = {index - fed.start for index, _ in fed.bad}
        kept = np.array([place for place in range(len(fed.pictures)) if place not in bad], dtype=np.int64)
        if len(kept):
            yield fed.pictures[kept], order[fed.start + kept]
