"""Linear connectors of P pairs at once, and the contrastive losses that train them.

Every tensor has the pair axis P in front, even for one pair, and rows are unit vectors where a loss takes them.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)
from torch import Tensor

_HIDDEN = -1e4  # a logit that adds nothing: e^-1e4 is 0, where -inf would make NaN
TILE = 1024  # rows of the logits held at a time
MAX_LOGITS = 2**28  # logits of a step kept whole, 1 GiB as float32; more are made in tiles


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
    logits = logits.masked_fill(_hidden(valid, slice(None)), _HIDDEN)
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
    def forward(ctx: Any, image: Tensor, text: Tensor, logit_scale: Tensor, valid: Tensor, tile: int) -> Tensor:
        """(P,) losses; keeps both rows of log-sum-exps, (P, B) each."""
        over_text = image.new_empty(image.shape[:2])
        over_image = image.new_full(image.shape[:2], -torch.inf)
        for start in range(0, image.shape[1], tile):
            rows = slice(start, start + tile)
            logits = logit_scale * (image[:, rows] @ text.mT)
            logits.masked_fill_(_hidden(valid, rows), _HIDDEN)
            over_text[:, rows] = logits.logsumexp(2)
            over_image = torch.logaddexp(over_image, logits.logsumexp(1))
        ctx.save_for_backward(image, text, logit_scale, valid, over_text, over_image)
        ctx.tile = tile
        matched = logit_scale.reshape(-1, 1) * (image * text).sum(2)
        total = (over_text + over_image - 2 * matched).masked_fill(~valid, 0.0)
        return total.sum(1) / (2 * valid.sum(1).clamp_min(1))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        """Gradients of rows and scale, tile by tile; of the sides that have one."""
        image, text, scale, valid, over_text, over_image = ctx.saved_tensors
        to_image, to_text, to_scale = ctx.needs_input_grad[:3]
        weight = (grads[0] / (2 * valid.sum(1).clamp_min(1)))[:, None, None]
        grad_image, grad_text, grad_scale = torch.zeros_like(image), torch.zeros_like(text), torch.zeros_like(grads[0])
        for start in range(0, image.shape[1], ctx.tile):
            rows = slice(start, start + ctx.tile)
            cosine = image[:, rows] @ text.mT
            logits = scale * cosine
            inner = (logits - over_text[:, rows, None]).exp() + (logits - over_image[:, None, :]).exp()
            inner.diagonal(offset=start, dim1=1, dim2=2).sub_(2)
            inner = (inner * weight).masked_fill_(_hidden(valid, rows), 0.0)
            grad_scale += (inner * cosine).sum((1, 2))
            inner *= scale
            if to_image:
                grad_image[:, rows] = inner @ text
            if to_text:
                grad_text += inner.mT @ image[:, rows]
        by_pair = grad_scale if scale.numel() > 1 else grad_scale.sum()
        return (
            grad_image if to_image else None,
            grad_text if to_text else None,
            by_pair.reshape(scale.shape) if to_scale else None,
            None,
            None,
        )


def _hidden(valid: Tensor, rows: slice) -> Tensor:
    """(P, tile, B), True where the image or the text of a similarity does not count."""
    return ~(valid[:, rows, None] & valid[:, None, :])


def tiled_infonce(
    image: Tensor, text: Tensor, logit_scale: Tensor, valid: Tensor | None = None, *, tile: int = TILE
) -> Tensor:
    """`infonce` in memory P·tile·B instead of P·B²; costs one more product of the logits.

    Args:
        image: (P, B, D), unit rows.
        text: (P, B, D), unit rows.
        logit_scale: s; scalar or (P, 1, 1).
        valid: (P, B), False where an item is neither query nor candidate; None for all.
        tile: Rows of the logits held at a time.

    Returns:
        (P,) mean losses in nats.
    """
    if valid is None:
        valid = torch.ones(image.shape[:2], dtype=torch.bool, device=image.device)
    loss: Tensor = _TiledInfoNCE.apply(image, text, logit_scale, valid, tile)
    return loss


def contrastive(image: Tensor, text: Tensor, logit_scale: Tensor, valid: Tensor | None = None) -> Tensor:
    """`infonce`, in tiles where the logits of all pairs together would not fit `MAX_LOGITS`."""
    loss = tiled_infonce if is_tiled(*image.shape[:2]) else infonce
    return loss(image, text, logit_scale, valid)


def is_tiled(n_pairs: int, batch: int) -> bool:
    """Whether the loss of a step is computed in tiles."""
    return n_pairs * batch**2 > MAX_LOGITS
