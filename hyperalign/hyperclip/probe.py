"""A linear probe on frozen pictures' rows, which starts as the zero-shot classifier.

Source: Akinwande et al. 2024, arXiv:2412.16777 (AdamW at 1e-4 with a weight decay of 0.1, from the text embeddings).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)
from torch import Tensor

__all__ = ["Probe", "ProbeConfig", "train_probe"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeConfig:
    """How a probe is trained; the one home of these defaults.

    Attributes:
        learning_rate: Of AdamW, constant.
        weight_decay: Of AdamW.
        n_epochs: Passes over the rows.
        batch_size: Rows in a step.
        seed: Of the order.
    """

    learning_rate: float = 1e-4
    weight_decay: float = 0.1
    n_epochs: int = 40
    batch_size: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values no probe could be trained with."""
        if self.n_epochs < 0 or self.batch_size < 1:
            raise ValueError(
                f"n_epochs must be at least 0 and batch_size at least 1, got {self.n_epochs} and {self.batch_size}"
            )


class Probe(NamedTuple):
    """A linear classifier: logits s · x Wᵀ + b.

    Attributes:
        weight: W, (C, D)
        bias: b, (C,)
        logit_scale: s, fixed.
    """

    weight: Tensor
    bias: Tensor
    logit_scale: float

    def logits(self, rows: Tensor) -> Tensor:
        """(n, C) logits of rows (n, D)."""
        return self.logit_scale * rows @ self.weight.T + self.bias


def train_probe(rows: Tensor, labels: Tensor, classes: Tensor, logit_scale: float, config: ProbeConfig) -> Probe:
    """Train a probe by cross-entropy.

    Args:
        rows: (n, D), unit rows of pictures.
        labels: (n,) class of each, on the same device.
        classes: (C, D), unit rows of the classes: where W starts; b starts at zero.
        logit_scale: s, of the model.
        config: How.

    Returns:
        The probe; without a single step it is the zero-shot classifier.
    """
    weight = classes.clone().requires_grad_()
    bias = torch.zeros(len(classes), device=rows.device, requires_grad=True)
    optimiser = torch.optim.AdamW([weight, bias], lr=config.learning_rate, weight_decay=config.weight_decay)
    dice = torch.Generator().manual_seed(config.seed)
    for _ in range(config.n_epochs if len(rows) else 0):
        for part in torch.randperm(len(rows), generator=dice).to(rows.device).split(config.batch_size):
            loss = F.cross_entropy(Probe(weight, bias, logit_scale).logits(rows[part]), labels[part])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return Probe(weight.detach(), bias.detach(), logit_scale)
