"""The default hypernetwork trained: a transform for every encoder, on the closed form of every pair."""

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from hyperalign.align.batches import FoldSampler, PairOrder, valid_items
from hyperalign.align.closed_form import CanonicalGrid, canonical_solution
from hyperalign.align.connectors import contrastive, is_tiled
from hyperalign.align.grid import Grid
from hyperalign.align.hypernetwork import (
    ResidualConfig,
    ResidualNetwork,
    fold_into,
    transform,
    transform_step_flops,
)
from hyperalign.align.solution import Progress, Solution, Stop, Validate
from hyperalign.align.train import TrainConfig, capped_scale, fit, scale_parameter
from hyperalign.ledger import infonce_flops, matmul_flops

RESIDUAL = TrainConfig(n_steps=200, batch_size=512, pairs_per_step=3, learning_rate=1e-2)


class _ResidualLearner:
    """The residual hypernetwork on mini-batches of pairs; the transform of an encoder is made once a step.

    The connectors shown to a batch are those that have not seen its pictures, so what is learned is what helps on
    pictures not seen.
    """

    def __init__(self, grid: Grid, canonical: CanonicalGrid, network: ResidualNetwork, config: TrainConfig):
        self.grid, self.canonical, self.network = grid, canonical, network
        self.log_scale = scale_parameter(config)
        self.sampler = FoldSampler(grid.owner, len(canonical.held_out), config.batch_size, config.seed)
        self.order = PairOrder(grid.pairs(), config.pairs_per_step, config.seed)

    @property
    def parameters(self) -> list[Tensor]:
        return [*self.network.parameters(), *([self.log_scale] if self.log_scale.requires_grad else [])]

    def loss(self) -> tuple[Tensor, int]:
        (fold, captions), pairs = self.sampler.draw(), self.order.draw()
        pictures = self.grid.owner[captions]
        i_used, i_at = np.unique(pairs[:, 0], return_inverse=True)
        j_used, j_at = np.unique(pairs[:, 1], return_inverse=True)
        i_to, j_to = torch.from_numpy(i_at), torch.from_numpy(j_at)
        emitted = self.network(torch.from_numpy(np.concatenate([i_used, j_used + self.grid.shape[0]])))
        on_image = emitted.pick(torch.arange(len(i_used)))
        on_text = emitted.pick(torch.arange(len(i_used), len(i_used) + len(j_used)))

        image = transform(torch.stack([self.canonical.images[i][pictures] for i in i_used]), on_image)
        text = transform(torch.stack([self.canonical.texts[j][captions] for j in j_used]), on_text)
        mapped = text[j_to] @ self.canonical.held_out[fold, pairs[:, 0], pairs[:, 1]].mT
        valid = valid_items(self.grid.image_ok[pairs[:, 0]][:, pictures], self.grid.text_ok[pairs[:, 1]][:, captions])
        losses = contrastive(
            F.normalize(image, dim=2)[i_to], F.normalize(mapped, dim=2), capped_scale(self.log_scale), valid
        )
        return losses.mean(), self.step_flops(len(captions), len(pairs), len(i_used) + len(j_used))

    def step_flops(self, batch: int, n_pairs: int, n_encoders: int) -> int:
        """FLOPs of one step, projections to canonical coordinates not in it."""
        rank, k = self.network.rank, self.network.k
        logits = infonce_flops(batch, rank, both_sides=True, tiled=is_tiled(n_pairs, batch))
        per_pair = 2 * matmul_flops(batch, rank, rank) + logits
        per_encoder = transform_step_flops(batch, rank, k)
        return n_pairs * per_pair + n_encoders * per_encoder + self.network.step_flops(n_encoders)


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
            moved = [c._replace(projection=fold_into(c.projection, every, e)) for e, c in enumerate(whitenings)]
        flops = net.emit_flops(len(moved)) + sum(2 * matmul_flops(len(c.mean), net.rank, net.k) for c in moved)
        solution = canonical_solution("hypernet", canonical, moved[: grid.shape[0]], moved[grid.shape[0] :])
        return replace(solution, emit_flops=emissions * flops)

    record = fit(
        learner,
        config,
        config.steps(learner.sampler.steps_per_epoch),
        validate=None if validate is None else lambda: validate(emit()),
        progress=progress,
        should_stop=should_stop,
    )
    record.flops += _projected(canonical) - before  # what was projected for batches, where coordinates are not kept
    return replace(emit(), fits=[record])


def _projected(canonical: CanonicalGrid) -> int:
    return sum(c.flops for c in (*canonical.images, *canonical.texts))
