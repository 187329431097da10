"""Linear connectors of P pairs at once, and the contrastive losses that train them.

Every tensor has the pair axis P in front, even for one pair, and rows are unit vectors where a loss takes them.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)
from torch import Tensor


class Connector(NamedTuple):
    """Parameters of P linear maps from text space to image space.

    Attributes:
        weight: (P, D_img, D_txt)
        bias: (P, D_img)
    """

    weight: Tensor
    bias: Tensor


def connect(text: Tensor, connector: Connector) -> Tensor:
    """Map text rows into image space: f(z_t) = W z_t + b.

    Args:
        text: (P, B, D_txt)
        connector: P maps.

    Returns:
        (P, B, D_img), not normalised.
    """
    return torch.baddbmm(connector.bias.unsqueeze(1), text, connector.weight.mT)


def init_connector(n_pairs: int, d_img: int, d_txt: int, generator: torch.Generator) -> Connector:
    """Random connectors, uniform in ±1/√D_txt as in `torch.nn.Linear`."""
    bound = d_txt**-0.5
    weight = torch.empty(n_pairs, d_img, d_txt).uniform_(-bound, bound, generator=generator)
    bias = torch.empty(n_pairs, d_img).uniform_(-bound, bound, generator=generator)
    return Connector(weight, bias)


def infonce(image: Tensor, text: Tensor, logit_scale: Tensor, valid: Tensor | None = None) -> Tensor:
    """Symmetric InfoNCE between matched rows, one value for each pair.

    For logits L = s · I Tᵀ the loss is ½ (CE(L, i) + CE(Lᵀ, i)): row i of `image` and row i of `text` describe the
    same item, all other rows are negatives. Source: Radford et al. 2021, arXiv:2103.00020, Fig. 3.

    Args:
        image: (P, B, D), unit rows.
        text: (P, B, D), unit rows.
        logit_scale: s, the inverse temperature (not its logarithm); scalar or (P, 1, 1).
        valid: (P, B), False where an item is neither query nor candidate; None for all.

    Returns:
        (P,) mean losses in nats; log B for unrelated embeddings at s = 0.
    """
    logits = logit_scale * (image @ text.mT)
    diagonal = logits.diagonal(dim1=1, dim2=2)
    if valid is None:
        total = logits.logsumexp(2) + logits.logsumexp(1) - 2 * diagonal
        return total.mean(1) / 2
    hidden = ~valid
    logits = logits.masked_fill(hidden.unsqueeze(1) | hidden.unsqueeze(2), -1e4)  # e^-1e4 is 0; -inf would make NaN
    total = logits.logsumexp(2) + logits.logsumexp(1) - 2 * diagonal
    return (total * valid).sum(1) / (2 * valid.sum(1).clamp_min(1))


def siglip(image: Tensor, text: Tensor, logit_scale: Tensor, logit_bias: Tensor) -> Tensor:
    """Sigmoid loss between matched rows, one value for each pair.

    −(1/B) Σ_ij log σ(y_ij (s · i_i·t_j + β)), y = 1 on the diagonal and −1 elsewhere.
    Source: Zhai et al. 2023, arXiv:2303.15343, Algorithm 1.

    Args:
        image: (P, B, D), unit rows.
        text: (P, B, D), unit rows.
        logit_scale: s, not its logarithm; scalar or (P, 1, 1).
        logit_bias: β, about −10 at the start; scalar or (P, 1, 1).

    Returns:
        (P,) losses in nats; B · log 2 at s = β = 0.
    """
    logits = logit_scale * (image @ text.mT) + logit_bias
    diagonal = logits.diagonal(dim1=1, dim2=2)
    return (F.softplus(logits).sum((1, 2)) - diagonal.sum(1)) / logits.shape[1]


class _TiledInfoNCE(torch.autograd.Function):
    """InfoNCE without its B×B logits: tiles are made, used and made again for the gradient."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, text: Tensor, logit_scale: Tensor, tile: int) -> Tensor:
        """(P,) losses; keeps both rows of log-sum-exps, (P, B) each."""
        n_rows = image.shape[1]
        over_text = image.new_empty(image.shape[:2])
        over_image = image.new_full(image.shape[:2], -torch.inf)
        for start in range(0, n_rows, tile):
            logits = logit_scale * (image[:, start : start + tile] @ text.mT)
            over_text[:, start : start + tile] = logits.logsumexp(2)
            over_image = torch.logaddexp(over_image, logits.logsumexp(1))
        ctx.save_for_backward(image, text, logit_scale, over_text, over_image)
        ctx.tile = tile
        matched = logit_scale.reshape(-1, 1) * (image * text).sum(2)
        return (over_text + over_image - 2 * matched).mean(1) / 2

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Gradients of rows and scale, tile by tile."""
        image, text, scale, over_text, over_image = ctx.saved_tensors
        weight = (grads[0] / (2 * image.shape[1]))[:, None, None]
        grad_image, grad_text = torch.zeros_like(image), torch.zeros_like(text)
        grad_scale = torch.zeros_like(grads[0])
        for start in range(0, image.shape[1], ctx.tile):
            rows = slice(start, start + ctx.tile)
            cosine = image[:, rows] @ text.mT
            logits = scale * cosine
            inner = (logits - over_text[:, rows, None]).exp() + (logits - over_image[:, None, :]).exp()
            inner.diagonal(offset=start, dim1=1, dim2=2).sub_(2)
            inner *= weight
            grad_scale += (inner * cosine).sum((1, 2))
            grad_image[:, rows] = (scale * inner) @ text
            grad_text += (scale * inner).mT @ image[:, rows]
        grad_scale = grad_scale.reshape(scale.shape) if scale.numel() > 1 else grad_scale.sum().reshape(scale.shape)
        return grad_image, grad_text, grad_scale, None


def tiled_infonce(image: Tensor, text: Tensor, logit_scale: Tensor, *, tile: int = 1024) -> Tensor:
    """`infonce` in memory P·tile·B instead of P·B²; costs one more product of the logits.

    Args:
        image: (P, B, D), unit rows.
        text: (P, B, D), unit rows.
        logit_scale: s; scalar or (P, 1, 1).
        tile: Rows of the logits held at a time.

    Returns:
        (P,) mean losses in nats.
    """
    loss: Tensor = _TiledInfoNCE.apply(image, text, logit_scale, tile)
    return loss
