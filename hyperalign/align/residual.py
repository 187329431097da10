"""The default hypernetwork trained: a transform for every encoder, on the closed form of every pair."""

from dataclasses import replace

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from hyperalign.align.batches import FoldSampler, SubgridOrder, valid_items
from hyperalign.align.canonical_grid import CanonicalGrid
from hyperalign.align.closed_form import canonical_solution
from hyperalign.align.connectors import contrastive, is_tiled
from hyperalign.align.grid import Grid
from hyperalign.align.hypernetwork import (
    ResidualConfig,
    ResidualNetwork,
    fold_into,
    transform,
    transform_step_flops,
)
from hyperalign.align.solution import Kept, Progress, Solution, Stop, Validate
from hyperalign.align.train import TrainConfig, capped_scale, fit, scale_parameter
from hyperalign.ledger import infonce_flops, matmul_flops

RESIDUAL = TrainConfig(
    n_visits=18, batch_size=512, pairs_per_step=4, learning_rate=5e-3, logit_scale=10.0, n_validations=1
)


class _ResidualLearner:
    """The residual hypernetwork on sub-grids of P image encoders by one text encoder.

    The connectors shown to a batch are those that have not seen its pictures, so what is learned is what helps on
    pictures not seen. Of a text encoder with r < R coordinates the images are pulled back to them,
    cos = (Cᵀx)·y / (|x| |C y|), so that the logits cost r and not R.
    """

    def __init__(self, grid: Grid, canonical: CanonicalGrid, network: ResidualNetwork, config: TrainConfig):
        self.grid, self.canonical, self.network = grid, canonical, network
        self.log_scale = scale_parameter(config)
        self.sampler = FoldSampler(grid.owner, len(canonical.held_out), config.batch_size, config.seed)
        self.order = SubgridOrder(*grid.shape, config.pairs_per_step, config.seed)
        self.widths = canonical.widths

    @property
    def parameters(self) -> list[Tensor]:
        return [*self.network.parameters(), *([self.log_scale] if self.log_scale.requires_grad else [])]

    def loss(self) -> tuple[Tensor, int]:
        (fold, captions), (encoders, j) = self.sampler.draw(), self.order.draw()
        pictures, n_img, width = self.grid.owner[captions], self.grid.shape[0], self.widths[self.grid.shape[0] + j]
        index = torch.from_numpy(encoders)
        emitted = self.network(torch.cat([index, torch.tensor([n_img + j])]))
        image = transform(self.canonical.images_at(encoders, pictures), emitted.pick(slice(0, -1)))
        text = transform(self.canonical.texts[j][captions][None], emitted.pick(slice(-1, None)))[0]
        connectors = self.canonical.held_out[fold, index, j]
        valid = valid_items(self.grid.image_ok[encoders][:, pictures], self.grid.text_ok[j, captions][None])
        losses = contrastive(*_sides(image, text, connectors, width), capped_scale(self.log_scale), valid)
        return losses.mean(), self.step_flops(len(captions), len(encoders), width)

    def step_flops(self, batch: int, n_pairs: int, width: int) -> int:
        """FLOPs of one step, projections to canonical coordinates not in it."""
        return residual_step_flops(self.network, batch, n_pairs, width)


def _sides(image: Tensor, text: Tensor, connectors: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Two sides whose products are the cosines of image rows and mapped text rows.

    Args:
        image: x, (P, B, R)
        text: y, (B, R), zero from `width` on.
        connectors: C, (P, R, R)
        width: r, the text encoder's own coordinates.

    Returns:
        Two (P, B, R), or (P, B, r) where the text encoder is narrower.
    """
    image = F.normalize(image, dim=2)
    if width == text.shape[1]:
        return image, F.normalize(text @ connectors.mT, dim=2)
    connectors, text = connectors[:, :, :width], text[:, :width]
    lengths = ((text @ (connectors.mT @ connectors)) * text).sum(2, keepdim=True)
    return image @ connectors, text * lengths.clamp_min(1e-12).rsqrt()


def residual_step_flops(network: ResidualNetwork, batch: int, n_pairs: int, width: int) -> int:
    """FLOPs of forward and backward of P pairs that share a text encoder of `width` coordinates, the emission in it.

    The connectors are data, so every product with them is done once for the rows' gradient.
    """
    rank = network.rank
    if width == rank:
        maps = 2 * matmul_flops(batch, rank, rank)
    else:
        maps = matmul_flops(width, rank, width) + 2 * matmul_flops(batch, width, width)
        maps += 2 * matmul_flops(batch, rank, width)
    logits = infonce_flops(batch, width, both_sides=True, tiled=is_tiled(n_pairs, batch))
    per_encoder = transform_step_flops(batch, rank, network.k)
    return n_pairs * (maps + logits) + (n_pairs + 1) * per_encoder + network.step_flops(n_pairs + 1)


def solve_residual(  # noqa: PLR0913 - what is trained, how, and who watches
    grid: Grid,
    canonical: CanonicalGrid,
    config: TrainConfig = RESIDUAL,
    *,
    network: ResidualConfig | None = None,
    validate: Validate | None = None,
    progress: Progress | None = None,
    should_stop: Stop | None = None,
) -> Solution:
    """The residual hypernetwork: s = cos((I + T_img) c_img, C (I + T_txt) c_txt), T emitted for each of N + M encoders.

    Each T becomes part of its encoder's projection, so the connectors stay C and nothing is added at inference.

    Args:
        grid: Training rows.
        canonical: The same grid in canonical coordinates.
        config: How to train.
        network: Shape of the hypernetwork.
        validate: Score of a solution on validation in per cent; the best seen state wins, the closed form included.
            Every look emits all transforms, and so much is booked.
        progress: Called with steps done and steps in all.
        should_stop: True ends the training.
    """
    whitenings = [c.canonical for c in (*canonical.images, *canonical.texts)]
    alive = torch.stack([c.projection.ne(0).any(0) for c in whitenings])
    net = ResidualNetwork(alive, grid.shape[0], network or ResidualConfig(), torch.Generator().manual_seed(config.seed))
    learner = _ResidualLearner(grid, canonical, net, config)
    before, emissions = _projected(canonical), 0

    def emit() -> Solution:
        nonlocal emissions
        emissions += 1
        with torch.no_grad():
            every = net(torch.arange(len(whitenings)))
            folded = [fold_into(c.projection, every, e) for e, c in enumerate(whitenings)]
        moved = [
            c._replace(projection=new) if new.isfinite().all() else c  # of a training that went to pieces
            for c, new in zip(whitenings, folded, strict=True)
        ]
        flops = net.emit_flops(len(moved)) + sum(2 * matmul_flops(len(c.mean), net.rank, net.k) for c in moved)
        solution = canonical_solution("hypernet", canonical, moved[: grid.shape[0]], moved[grid.shape[0] :])
        return replace(solution, emit_flops=emissions * flops)

    record = fit(
        learner,
        config,
        config.steps(learner.sampler.steps_per_epoch, grid.shape),
        validate=None if validate is None else lambda: validate(emit()),
        progress=progress,
        should_stop=should_stop,
    )
    record.flops += _projected(canonical) - before  # what was projected for batches, where coordinates are not kept
    n_img, scale = grid.shape[0], float(capped_scale(learner.log_scale).detach())
    kept = Kept(canonical.whitenings[:n_img], canonical.whitenings[n_img:], scale)
    return replace(emit(), fits=[record], kept=kept)


def _projected(canonical: CanonicalGrid) -> int:
    return sum(c.flops for c in (*canonical.images, *canonical.texts))
