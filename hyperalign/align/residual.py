"""The default hypernetwork trained: a transform for every encoder, on the closed form of every pair."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hyperalign.align.batches import Sampler, SubgridOrder, valid_items
from hyperalign.align.canonical_grid import CanonicalGrid
from hyperalign.align.closed_form import canonical_solution
from hyperalign.align.connectors import contrastive, is_tiled, unit_rows
from hyperalign.align.consensus import bases_flops, find_bases
from hyperalign.align.grid import Grid
from hyperalign.align.hypernetwork import (
    ResidualConfig,
    ResidualNetwork,
    fold_into,
    in_own,
    transform,
    transform_step_flops,
)
from hyperalign.align.solution import Kept, Learned, Progress, Solution, Stop, Validate
from hyperalign.align.train import Drawn, TrainConfig, capped_scale, fit, scale_parameter
from hyperalign.ledger import infonce_flops, matmul_flops

RESIDUAL = TrainConfig(
    n_visits=8,
    batch_size=512,
    pairs_per_step=3,
    optimizer="damped",
    learning_rate=2.7,
    clip_norm=0.0,
    logit_scale=10.0,
    learn_scale=False,
    n_validations=1,
)


_RATED_AT = 512  # items in the batch that rates are chosen for


def shorten_steps(config: TrainConfig, batch_size: int) -> TrainConfig:
    """Of a batch below 512 items the steps are as much shorter as it is smaller, for its gradient is as much noisier.

    Source: the linear scaling rule (Goyal et al. 2017, arXiv:1706.02677), downwards only: larger batches do not stand
    longer steps. AdamW's steps do not grow with the gradient and stay as they are.
    """
    if config.optimizer == "adamw" or batch_size >= _RATED_AT:
        return config
    return replace(config, learning_rate=config.learning_rate * batch_size / _RATED_AT)


class _ResidualLearner:
    """The residual hypernetwork on sub-grids of P image encoders by one text encoder.

    Of a text encoder with r < R coordinates the images are pulled back to them, cos = (Cᵀx)·y / (|x| |C y|), so that
    the logits cost r and not R.
    """

    def __init__(self, grid: Grid, canonical: CanonicalGrid, network: ResidualNetwork, config: TrainConfig):
        self.grid, self.canonical, self.network = grid, canonical, network
        self.log_scale = scale_parameter(config)
        self.sampler = Sampler(grid.owner, config.batch_size, config.seed)
        self.order = SubgridOrder(*grid.shape, config.pairs_per_step, config.seed)
        self.widths = canonical.widths

    @property
    def parameters(self) -> list[Tensor]:
        return [*self.network.parameters(), *([self.log_scale] if self.log_scale.requires_grad else [])]

    def draw(self) -> Drawn:
        captions, (encoders, j) = self.sampler.draw(), self.order.draw()
        pictures, n_img, width = self.grid.owner[captions], self.grid.shape[0], self.widths[self.grid.shape[0] + j]
        index = torch.from_numpy(encoders)
        emitted = self.network(torch.cat([index, torch.tensor([n_img + j])]))
        to_image, to_text = emitted.split([len(encoders), 1])
        image = transform(self.canonical.images_at(encoders, pictures), to_image)
        text = transform(self.canonical.texts[j][captions][None], to_text)
        valid = valid_items(self.grid.image_ok[encoders][:, pictures], self.grid.text_ok[j, captions][None])
        sides = _sides(image, text, self.canonical.cross[index, j], width)
        losses = contrastive(*sides, capped_scale(self.log_scale), valid)
        return Drawn(losses.sum(), losses.mean(), self.step_flops(len(captions), len(encoders), width))

    def step_flops(self, batch: int, n_pairs: int, width: int) -> int:
        """FLOPs of one step, projections to canonical coordinates not in it."""
        return residual_step_flops(self.network, batch, n_pairs, width)


def _sides(image: Tensor, text: Tensor, connectors: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Two sides whose products are the cosines of image rows and mapped text rows.

    Args:
        image: x, (P, B, R)
        text: y, (1, B, R), zero from `width` on.
        connectors: C, (P, R, R)
        width: r, the text encoder's own coordinates.

    Returns:
        Two (P, B, R), or (P, B, r) where the text encoder is narrower.
    """
    image = unit_rows(image)
    if width == text.shape[2]:
        return image, unit_rows(text.expand(len(image), -1, -1) @ connectors.mT)
    connectors, text = connectors[:, :, :width], text[:, :, :width].expand(len(image), -1, -1)
    lengths = torch.linalg.vecdot(text @ (connectors.mT @ connectors), text).unsqueeze(2)
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
    per_encoder = transform_step_flops(batch, rank)
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
    generator = torch.Generator().manual_seed(config.seed)
    bases = _bases(canonical)
    net = ResidualNetwork(bases, grid.shape[0], network or ResidualConfig(), generator)
    learner = _ResidualLearner(grid, canonical, net, config)
    config = shorten_steps(config, learner.sampler.batch_size)
    n_img, before, emissions = grid.shape[0], _projected(canonical), 0

    def emit() -> tuple[Solution, Tensor]:
        nonlocal emissions
        emissions += 1
        with torch.no_grad():
            shared = net.emit(torch.arange(len(whitenings)))
            folded = [fold_into(c.projection, by) for c, by in zip(whitenings, in_own(shared, bases), strict=True)]
        broken = [not (one.isfinite().all() and by.isfinite().all()) for one, by in zip(folded, shared, strict=True)]
        shared[torch.tensor(broken)] = 0.0  # nothing is left of a training that went to pieces
        moved = [
            c if is_broken else c._replace(projection=new)
            for c, new, is_broken in zip(whitenings, folded, broken, strict=True)
        ]
        flops = emission_flops(net, [len(c.mean) for c in moved])
        solution = canonical_solution("hypernet", canonical, moved[:n_img], moved[n_img:])
        return replace(solution, emit_flops=emissions * flops), shared

    record = fit(
        learner,
        config,
        config.steps(learner.sampler.steps_per_epoch, grid.shape),
        validate=None if validate is None else lambda: validate(emit()[0]),
        progress=progress,
        should_stop=should_stop,
    )
    record.flops += _projected(canonical) - before  # what was projected for batches, where coordinates are not kept
    record.flops += bases_flops(canonical.widths[:n_img], canonical.widths[n_img:], net.rank)
    solution, shared = emit()
    learned = [Learned(*one) for one in zip(canonical.whitenings, canonical.directions, bases, shared, strict=True)]
    scale = float(capped_scale(learner.log_scale).detach())
    return replace(solution, fits=[record], kept=Kept(learned[:n_img], learned[n_img:], scale))


def _projected(canonical: CanonicalGrid) -> int:
    return sum(c.flops for c in (*canonical.images, *canonical.texts))


def emission_flops(network: ResidualNetwork, features: Sequence[int]) -> int:
    """FLOPs of emitting all transforms and folding them into projections from so many features each."""
    folded = sum(matmul_flops(n, network.rank, network.rank) for n in features)
    return network.emit_flops(len(features)) + folded


def _bases(canonical: CanonicalGrid) -> Tensor:
    """Q of every encoder; a coordinate that no row of it has stays zero."""
    sides = [*canonical.images, *canonical.texts]
    alive = torch.stack([side.canonical.projection.ne(0).any(0) for side in sides])
    return find_bases(canonical.cross, canonical.widths) * alive.unsqueeze(2)
