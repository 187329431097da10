"""The hypernetwork of HyperCLIP: text embeddings of any number of prompts → changes of scales and biases.

Prompts are a set. In evaluation rows are put into one order before anything is computed, so that the order in which
they were given cannot matter to the last bit; in training it matters as far as sums of floats do.
Source: Akinwande et al. 2024, arXiv:2412.16777, section 3 and appendix A.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)
from torch import Tensor, nn

__all__ = ["HyperConfig", "HyperNetwork", "automatic_scale", "canonical_order", "transformer_layers"]

Pool = Literal["last", "early"]


@dataclass(frozen=True, kw_only=True, slots=True)
class HyperConfig:
    """Shape of the hypernetwork; the one home of these defaults.

    Attributes:
        transformer: Whether prompts see each other before they are averaged. The variant without has a hidden layer
            in its place.
        n_layers: Of the transformer.
        width: Of its tokens, one a prompt, or of the hidden layer.
        n_heads: Of its attention.
        feed_forward: Width of its hidden layers.
        dropout: Share of activations dropped in training, in [0, 1).
        bottleneck: Width in front of the last layer, which is by far the largest.
        pool: "last" averages over prompts behind the bottleneck, "early" in front of it.
        weight_scale: What the last layer's output is multiplied by, learned from there on: a number, "auto" for
            `automatic_scale`, or None for no such factor.
    """

    transformer: bool = True
    n_layers: int = 12
    width: int = 768
    n_heads: int = 8
    feed_forward: int = 2560
    dropout: float = 0.1
    bottleneck: int = 512
    pool: Pool = "last"
    weight_scale: float | Literal["auto"] | None = "auto"

    def __post_init__(self) -> None:
        """Refuse values no network could have."""
        for name in ("n_layers", "width", "n_heads", "feed_forward", "bottleneck"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.transformer and self.width % self.n_heads:
            raise ValueError(f"width must be a multiple of n_heads, got {self.width} and {self.n_heads}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        if self.pool not in ("last", "early"):
            raise ValueError(f"pool must be 'last' or 'early', got {self.pool!r}")
        if isinstance(self.weight_scale, str) and self.weight_scale != "auto":
            raise ValueError(f"weight_scale must be a number, 'auto' or none, got {self.weight_scale!r}")
        if isinstance(self.weight_scale, float | int) and not self.weight_scale > 0:
            raise ValueError(f"weight_scale must be above 0, got {self.weight_scale}")


class HyperNetwork(nn.Module):
    """Prompts (K, D) → change (A,) of the scales and biases of an image encoder."""

    def __init__(self, text_dim: int, n_numbers: int, config: HyperConfig) -> None:
        """Make the layers.

        Args:
            text_dim: Width D of a prompt's embedding.
            n_numbers: Scales and biases to emit, A.
            config: Widths and variant.
        """
        super().__init__()
        self.config, self.n_numbers = config, n_numbers
        self.enter = nn.Linear(text_dim, config.width)
        self.layers = transformer_layers(
            config.n_layers if config.transformer else 0,
            config.width,
            n_heads=config.n_heads,
            feed_forward=config.feed_forward,
            dropout=config.dropout,
        )
        self.narrow = nn.Linear(config.width, config.bottleneck)
        self.norm = nn.LayerNorm(config.bottleneck)
        self.leave = nn.Linear(config.bottleneck, n_numbers)
        start = automatic_scale(config.bottleneck) if config.weight_scale == "auto" else config.weight_scale
        self.log_weight_scale = None if start is None else nn.Parameter(torch.tensor(float(start)).log())

    def forward(self, prompts: Tensor) -> Tensor:
        """Emit one change for a set of prompts.

        Args:
            prompts: (K, D), unit rows, K at least 1.

        Returns:
            (A,) float32, close to zero at the start.
        """
        if prompts.ndim != 2 or len(prompts) == 0:
            raise ValueError(
                f"prompts must be (K, {self.enter.in_features}) with K at least 1, got {(*prompts.shape,)}"
            )
        if not self.training:
            prompts = prompts[canonical_order(prompts)]
        tokens = self.enter(prompts * prompts.shape[1] ** 0.5).unsqueeze(0)  # entries of a unit row are tiny
        if not self.layers:
            tokens = F.gelu(tokens)
        for layer in self.layers:
            tokens = layer(tokens)
        if self.config.pool == "early":
            tokens = tokens.mean(1, keepdim=True)
        pooled = self.norm(self.narrow(tokens)).mean(1)
        change: Tensor = self.leave(pooled)[0].float()
        return change if self.log_weight_scale is None else change * self.log_weight_scale.exp()


def automatic_scale(bottleneck: int) -> float:
    """The weight scale that lets an emitted number move as fast as if it were trained itself.

    Adam moves every weight by its rate η. A number emitted from d inputs h is the sum of d such moves and a bias's, up
    to η·(Σ|h| + 1) a step; behind a layer norm |h| is √(2/π) on average, so the factor is 1 / (√(2/π)·d + 1). Without
    it scales, which pass through an exponential, would move two orders of magnitude faster than the rest.
    """
    return 1 / (math.sqrt(2 / math.pi) * bottleneck + 1)


def transformer_layers(n: int, width: int, *, n_heads: int, feed_forward: int, dropout: float) -> nn.ModuleList:
    """Transformer layers with the norm in front, which train without care at any depth; each is drawn by itself."""
    return nn.ModuleList(
        nn.TransformerEncoderLayer(
            width, n_heads, feed_forward, dropout, activation=F.gelu, batch_first=True, norm_first=True
        )
        for _ in range(n)
    )


def canonical_order(rows: Tensor) -> Tensor:
    """(K,) indices that put rows (K, D) into lexicographic order: one order for one set of rows."""
    values = rows.detach().float().cpu().numpy()
    return torch.from_numpy(np.lexsort(values.T[::-1])).to(rows.device)
