"""Linear connectors of P pairs at once, and the contrastive losses that train them.

Every tensor has the pair axis P in front, even for one pair, and rows are unit vectors where a loss takes them.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)
from torch import Tensor

_LEAST_LENGTH = 1e-12  # a shorter row is divided by this
_HIDDEN = -1e4  # a logit that adds nothing: e^-1e4 is 0, where -inf would make NaN
TILE_LOGITS = 2**22  # logits worked on at a time, 16 MiB as float32
_PART_LOGITS = 2**20  # and of these so many get their weights at a time, which are as many again
MAX_LOGITS = 2**28  # logits of a step that are kept, 1 GiB as float32; more are made twice


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


class _UnitRows(torch.autograd.Function):
    """Rows over their lengths. With u the unit row and l the length the gradient is (g − (u·g) u) / l."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        """(…, D) unit rows."""
        lengths = torch.linalg.vector_norm(rows, dim=-1, keepdim=True).clamp_min_(_LEAST_LENGTH)
        units: Tensor = rows / lengths
        ctx.save_for_backward(units, lengths)
        return units

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """Gradient of the rows, in three passes where that of `F.normalize` takes eleven."""
        units, lengths = ctx.saved_tensors
        along = torch.linalg.vecdot(units, grads[0]).unsqueeze(-1)
        gradient: Tensor = torch.addcmul(grads[0], units, along, value=-1).div_(lengths)
        return gradient


def unit_rows(rows: Tensor) -> Tensor:
    """Rows (…, D) as unit vectors, as `F.normalize` makes them; zeros stay zeros."""
    units: Tensor = _UnitRows.apply(rows)
    return units


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
    logits = logits.masked_fill(_hidden(valid), _HIDDEN)
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


class _TiledSigLIP(torch.autograd.Function):
    """SigLIP a square of the logits at a time; nothing of their size is kept, and one more product makes them again.

    The loss is a sum over logits, so squares need nothing of each other. With σ the sigmoid the gradient with respect
    to a logit is (σ − y₊) / B, y₊ = 1 on the diagonal and 0 elsewhere. The gradients of scale and bias follow from it:
    Σ_j t_j · ∂/∂(s t_j), as for InfoNCE, and its sum.
    """

    @staticmethod
    def forward(  # noqa: PLR0913 - autograd hands everything over by position
        ctx: Any, image: Tensor, text: Tensor, logit_scale: Tensor, logit_bias: Tensor, tile: int, matched: bool
    ) -> Tensor:
        """(P,) losses."""
        total = image.new_zeros(len(image))
        if matched:
            total -= _matched(image, text, logit_scale, logit_bias).sum(1)
        for rows, columns in _squares(image.shape[1], tile):
            total = total + F.softplus(_logits(image, text, logit_scale, logit_bias, rows, columns)).sum((1, 2))
        ctx.save_for_backward(image, text, logit_scale, logit_bias)
        ctx.tile, ctx.matched = tile, matched
        loss: Tensor = total / image.shape[1]
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of rows, scale and bias, square by square."""
        image, text, scale, bias = ctx.saved_tensors
        grad_image, grad_text = torch.zeros_like(image), torch.zeros_like(text)
        grad_bias = torch.zeros(len(image), 1, 1, dtype=image.dtype, device=image.device)
        for rows, columns in _squares(image.shape[1], ctx.tile):
            slopes = _logits(image, text, scale, bias, rows, columns).sigmoid_()
            if ctx.matched and rows == columns:
                slopes.diagonal(dim1=1, dim2=2).sub_(1)
            grad_image[:, rows] += slopes @ text[:, columns]
            grad_text[:, columns] += slopes.mT @ image[:, rows]
            grad_bias += slopes.sum((1, 2), keepdim=True)
        weight = (grads[0] / image.shape[1])[:, None, None]
        grad_scale = weight * torch.linalg.vecdot(grad_text, text).sum(1)[:, None, None]
        return (
            grad_image.mul_(weight * scale),
            grad_text.mul_(weight * scale),
            _shaped_like(scale, grad_scale),
            _shaped_like(bias, weight * grad_bias),
            None,
            None,
        )


def _matched(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """(P, B) logits of the matched rows."""
    matched: Tensor = scale.reshape(-1, 1) * torch.linalg.vecdot(image, text) + bias.reshape(-1, 1)
    return matched


def _logits(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, rows: slice, columns: slice) -> Tensor:
    """(P, rows, columns) logits of some images with some texts."""
    return (image[:, rows] @ text[:, columns].mT).mul_(scale).add_(bias)


def _squares(n_rows: int, tile: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of each square of the logits in turn."""
    return ((rows, columns) for rows in _tiles(n_rows, tile) for columns in _tiles(n_rows, tile))


def _shaped_like(parameter: Tensor, by_pair: Tensor) -> Tensor:
    """(P, 1, 1) gradients in the shape of a parameter that is a scalar or one value a pair."""
    return (by_pair if parameter.numel() > 1 else by_pair.sum()).reshape(parameter.shape)


def tiled_siglip(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    *,
    tile: int | None = None,
    matched: bool = True,
) -> Tensor:
    """`siglip` in squares of the logits, so that memory beyond the rows is that of one square.

    Args:
        image: (P, B, D), unit rows.
        text: (P, B, D), unit rows.
        logit_scale: s, not its logarithm; scalar or (P, 1, 1).
        logit_bias: β; scalar or (P, 1, 1).
        tile: Side b of a square: P·b² values are held at a time; None for as many as `TILE_LOGITS` holds.
        matched: Whether row i of one describes the item of row i of the other; if not, all are negatives, as the texts
            of another process are.

    Returns:
        (P,) losses in nats; B · log 2 at s = β = 0.
    """
    if tile is None:
        tile = max(1, math.isqrt(TILE_LOGITS // image.shape[0]))
    loss: Tensor = _TiledSigLIP.apply(image, text, logit_scale, logit_bias, tile, matched)
    return loss


class _TiledInfoNCE(torch.autograd.Function):
    """InfoNCE a tile of the logits at a time: tiles are kept for the gradient, or made again.

    Rows are unit vectors, so a logit lies in [−s, s] and its exponential can be taken as it is: one pass over a tile
    gives both sums. With p the softmax over texts and q that over images, the gradient with respect to the logits is
    (p + q − 2·1) / 2n; it takes the place of the exponentials tile by tile, so nothing of their size is made twice.
    The scale's gradient is that of the texts times the texts, Σ_j t_j · ∂/∂(s t_j), and needs no pass over the logits.
    """

    @staticmethod
    def forward(  # noqa: PLR0913 - autograd hands everything over by position
        ctx: Any, image: Tensor, text: Tensor, logit_scale: Tensor, valid: Tensor | None, tile: int, keep: bool
    ) -> Tensor:
        """(P,) losses; keeps the inverse of both sums of exponentials, (P, B) each."""
        over_text, over_image = image.new_empty(image.shape[:2]), image.new_zeros(image.shape[:2])
        keep = keep and any(ctx.needs_input_grad)
        ctx.tiles, ctx.shift = [], _shift(logit_scale)
        for rows in _tiles(image.shape[1], tile):
            exponentials = _exponentials(image, text, logit_scale, ctx.shift, valid, rows)
            over_text[:, rows] = exponentials.sum(2)
            over_image += exponentials.sum(1)
            if keep:
                ctx.tiles.append(exponentials)
        tiny = torch.finfo(image.dtype).tiny  # where nothing is left of a row of opposites
        over_text.clamp_min_(tiny), over_image.clamp_min_(tiny)
        matched = logit_scale.reshape(-1, 1) * torch.linalg.vecdot(image, text)
        total = over_text.log() + over_image.log() - 2 * matched
        if ctx.shift is not None:
            total += 2 * ctx.shift.reshape(-1, 1)
        over_text.reciprocal_(), over_image.reciprocal_()
        if valid is not None:
            total = total.masked_fill(~valid, 0.0)
            over_text.masked_fill_(~valid, 0.0)  # what does not count has no gradient
            over_image.masked_fill_(~valid, 0.0)
        ctx.save_for_backward(image, text, logit_scale, valid, over_text, over_image)
        ctx.tile = tile
        loss: Tensor = total.sum(1) / (2 * _n_valid(image, valid))
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of rows and scale, tile by tile; of the sides that have one."""
        image, text, scale, valid, over_text, over_image = ctx.saved_tensors
        to_image, to_text, to_scale = ctx.needs_input_grad[:3]
        to_text_too = to_text or to_scale
        grad_image = torch.empty_like(image) if to_image else None
        grad_text = torch.zeros_like(text) if to_text_too else None
        tiles, ctx.tiles = ctx.tiles, []  # they are used up; a second backward makes them again
        for rows in _tiles(image.shape[1], ctx.tile):
            inner = tiles.pop(0) if tiles else _exponentials(image, text, scale, ctx.shift, valid, rows)
            for some in _tiles(inner.shape[1], max(1, _PART_LOGITS // (len(inner) * inner.shape[2]))):
                part = slice(rows.start + some.start, rows.start + some.stop)
                inner[:, some] *= over_text[:, part, None] + over_image[:, None, :]
            diagonal = inner.diagonal(offset=rows.start, dim1=1, dim2=2)
            diagonal.sub_(2 if valid is None else 2 * valid[:, rows])
            if grad_image is not None:
                _multiply(inner, text, grad_image[:, rows])
            if grad_text is not None:
                _multiply(inner.mT, image[:, rows], grad_text, add=True)
        weight = (grads[0] / (2 * _n_valid(image, valid)))[:, None, None]
        grad_scale = None
        if to_scale and grad_text is not None:
            by_pair = weight * torch.linalg.vecdot(grad_text, text).sum(1)[:, None, None]
            grad_scale = _shaped_like(scale, by_pair)
        return (
            None if grad_image is None else grad_image.mul_(weight * scale),
            grad_text.mul_(weight * scale) if to_text and grad_text is not None else None,
            grad_scale,
            None,
            None,
            None,
        )


def _tiles(n_rows: int, tile: int) -> Iterator[slice]:
    """The rows of each tile in turn."""
    return (slice(start, min(start + tile, n_rows)) for start in range(0, n_rows, tile))


def _exponentials(
    image: Tensor, text: Tensor, scale: Tensor, shift: Tensor | None, valid: Tensor | None, rows: slice
) -> Tensor:
    """(P, tile, B) exponentials of the logits of some images with all texts; 0 where one of the two does not count."""
    some = image[:, rows] * scale
    logits = _multiply(some, text.mT, image.new_empty(*some.shape[:2], text.shape[1]))
    if shift is not None:
        logits -= shift
    if valid is not None:
        logits.masked_fill_(~valid[:, rows, None], _HIDDEN).masked_fill_(~valid[:, None, :], _HIDDEN)
    return logits.exp_()


def _multiply(left: Tensor, right: Tensor, out: Tensor, *, add: bool = False) -> Tensor:
    """Products of P pairs into `out`, or on top of what is there.

    A CPU gives each thread whole pairs: three pairs on two threads take as long as four. So as many pairs as the
    threads divide evenly are multiplied at once, and each of the rest by all threads (measured in reports/LOG.md).
    """
    n_pairs, n_threads = len(left), torch.get_num_threads() if left.device.type == "cpu" else 1
    even = n_pairs - n_pairs % n_threads
    for part in (slice(0, even), *(slice(k, k + 1) for k in range(even, n_pairs))):
        if part.stop > part.start:
            torch.baddbmm(out[part], left[part], right[part], beta=int(add), out=out[part])
    return out


def _shift(scale: Tensor) -> Tensor | None:
    """What a logit is made smaller by, so that a sum of exponentials stays finite in float32: None up to s = 70."""
    return (scale - 70).clamp_min(0.0) if float(scale.max()) > 70 else None


def _n_valid(image: Tensor, valid: Tensor | None) -> Tensor | int:
    """Items that count: (P,), at least 1."""
    return image.shape[1] if valid is None else valid.sum(1).clamp_min(1)


def _hidden(valid: Tensor) -> Tensor:
    """(P, B, B), True where the image or the text of a similarity does not count."""
    return ~(valid[:, :, None] & valid[:, None, :])


def tiled_infonce(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    valid: Tensor | None = None,
    *,
    tile: int | None = None,
    keep: bool = False,
) -> Tensor:
    """`infonce` without a second copy of its logits, or without its logits.

    Args:
        image: (P, B, D), unit rows.
        text: (P, B, D), unit rows.
        logit_scale: s; scalar or (P, 1, 1).
        valid: (P, B), False where an item is neither query nor candidate; None for all.
        tile: Rows of the logits worked on at a time; None for as many as `TILE_LOGITS` holds.
        keep: Whether the logits stay in memory for the gradient, P·B² values. If not, P·tile·B are held at a time,
            and one more product makes them again.

    Returns:
        (P,) mean losses in nats.
    """
    if tile is None:
        tile = max(1, TILE_LOGITS // (image.shape[0] * image.shape[1]))
    loss: Tensor = _TiledInfoNCE.apply(image, text, logit_scale, valid, tile, keep)
    return loss


def contrastive(image: Tensor, text: Tensor, logit_scale: Tensor, valid: Tensor | None = None) -> Tensor:
    """`infonce` as training uses it: the logits of all pairs are made twice where they would not fit `MAX_LOGITS`."""
    return tiled_infonce(image, text, logit_scale, valid, keep=not is_tiled(*image.shape[:2]))


def is_tiled(n_pairs: int, batch: int) -> bool:
    """Whether the logits of a step are made twice, since they are not kept."""
    return n_pairs * batch**2 > MAX_LOGITS
