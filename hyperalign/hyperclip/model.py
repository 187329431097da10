"""A model that embeds pictures and captions, its image encoder adapted to a set of prompts or not.

The SigLIP baseline is the same model without a hypernetwork: same encoder, same text side, same loss.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)
from torch import Tensor, nn

from hyperalign.hyperclip.hypernetwork import HyperConfig, HyperNetwork
from hyperalign.hyperclip.normalisation import (
    Adapted,
    Statistics,
    adapt,
    call_adapted,
    find_adapted,
    freeze_adapted,
    use_statistics,
)

__all__ = ["HyperClip", "Rows"]


class Rows(NamedTuple):
    """Embeddings of a batch.

    Attributes:
        image: (B, D), unit rows.
        text: (B, D), unit rows.
        logit_scale: SigLIP's s, not its logarithm; a scalar.
        logit_bias: SigLIP's β; a scalar.
    """

    image: Tensor
    text: Tensor
    logit_scale: Tensor
    logit_bias: Tensor


class HyperClip(nn.Module):
    """An image encoder, a text side, a hypernetwork between them or none, and SigLIP's scale and bias."""

    def __init__(self, image: nn.Module, text: nn.Module, embed_dim: int, hyper: HyperConfig | None) -> None:
        """Put the parts together.

        Args:
            image: (B, 3, H, W) → (B, D). With a hypernetwork its own scales and biases are frozen.
            text: Captions, as tokens or as rows of a frozen encoder, → (B, D).
            embed_dim: Width D.
            hyper: Shape of the hypernetwork; None for the SigLIP baseline.

        Raises:
            ValueError: If a hypernetwork is asked for and the image encoder has no normalisation layer.
        """
        super().__init__()
        self.image, self.text, self.embed_dim = image, text, embed_dim
        self.adapted: Adapted | None = None if hyper is None else find_adapted(image)
        self.hyper: HyperNetwork | None = None
        if hyper is not None and self.adapted is not None:
            freeze_adapted(image, self.adapted)
            self.hyper = HyperNetwork(embed_dim, self.adapted.n_numbers, hyper)
        self.log_logit_scale = nn.Parameter(torch.tensor(math.log(10.0)))  # SigLIP's start
        self.logit_bias = nn.Parameter(torch.tensor(-10.0))

    def forward(self, pictures: Tensor, captions: Tensor, n_prompts: int | None = None) -> Rows:
        """Embed a batch, the image encoder adapted to its own captions.

        Args:
            pictures: (B, 3, H, W)
            captions: (B, L) tokens or (B, D_txt) rows, in the order of the pictures.
            n_prompts: How many of the captions the hypernetwork sees, the first ones; None for all.
        """
        text = self.embed_captions(captions)
        image = self.embed_pictures(pictures, self.emit(text[:n_prompts]))
        return Rows(image, text, self.log_logit_scale.exp(), self.logit_bias)

    def embed_captions(self, captions: Tensor) -> Tensor:
        """(B, D) unit rows of captions."""
        return F.normalize(self.text(captions).float(), dim=-1)

    def emit(self, prompts: Tensor) -> dict[str, Tensor]:
        """Scales and biases for a set of prompts, (K, D) unit rows; nothing where there is no hypernetwork."""
        if self.hyper is None or self.adapted is None:
            return {}
        return adapt(self.image, self.adapted, self.hyper(prompts))

    def embed_pictures(self, pictures: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """(B, D) unit rows of pictures, by the image encoder with these scales and biases."""
        return F.normalize(call_adapted(self.image, parameters, pictures).float(), dim=-1)

    def training_mode(self, statistics: Statistics) -> None:
        """Train, BatchNorm layers normalising by these statistics."""
        self.train()
        use_statistics(self.image, statistics)
