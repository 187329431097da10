"""The baseline `ape`: the connector of each pair trained by itself, one pair after the other."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from hyperalign.align.batches import Sampler, valid_items
from hyperalign.align.canonical import Canonical, Coordinates
from hyperalign.align.canonical_grid import CanonicalGrid
from hyperalign.align.connectors import Connector, connect, contrastive, init_connector, is_tiled, unit_rows
from hyperalign.align.grid import Gather, Grid, PairIndex, check_pictures
from hyperalign.align.solution import Progress, Solution, Stop
from hyperalign.align.train import Drawn, TrainConfig, capped_scale, fit, scale_parameter
from hyperalign.ledger import connector_step_flops

APE = TrainConfig(n_epochs=10, batch_size=512, pairs_per_step=1, learning_rate=5e-3, n_validations=1)
APE_BOTH = replace(APE, n_epochs=1, batch_size=256, learning_rate=2e-3, logit_scale=10.0, learn_scale=False)


def solve_ape(
    grid: Grid,
    pairs: Sequence[PairIndex],
    config: TrainConfig = APE,
    *,
    canonical: CanonicalGrid | None = None,
    progress: Progress | None = None,
    should_stop: Stop | None = None,
) -> Solution:
    """The baseline: W, b of each pair by themselves, on symmetric InfoNCE.

    Text-sided, between the rows as they are (Rosenfeld et al. 2022, arXiv:2210.03927). With `canonical`, both sides:
    between canonical coordinates, from the closed form on.

    Args:
        grid: Training rows.
        pairs: Which pairs to train.
        config: How; the seed is the same for all pairs.
        canonical: Train both sides in this space.
        progress: Called with pairs done and pairs in all.
        should_stop: True leaves out the pairs not finished.
    """
    check_pictures(grid)
    done, fits, weights, biases = [], [], [], []
    for n, (i, j) in enumerate(pairs):
        if should_stop is not None and should_stop():
            break
        learner = _PairLearner(grid, (i, j), canonical, config)
        n_steps, before = config.steps(learner.sampler.steps_per_epoch), learner.projected_flops
        record = fit(learner, config, n_steps, should_stop=should_stop)
        if record.stopped:
            break  # trained for less than the others, it would stand below its place
        record.flops += learner.projected_flops - before
        fits.append(record)
        done.append((i, j))
        weights.append(learner.connector.weight.detach()[0])
        biases.append(learner.connector.bias.detach()[0])
        if progress is not None:
            progress(n + 1, len(pairs))
    return Solution(
        method="ape",
        sides="text" if canonical is None else "both",
        pairs=done,
        weights=weights,
        biases=biases,
        images=_whitenings(len(grid.images), None if canonical is None else canonical.images),
        texts=_whitenings(len(grid.texts), None if canonical is None else canonical.texts),
        fits=fits,
        setup_flops=0 if canonical is None else canonical.flops,
    )


def _ape_start(grid: Grid, pair: PairIndex, canonical: CanonicalGrid | None, seed: int) -> Connector:
    i, j = pair
    d_img, d_txt = grid.images[i].shape[1], grid.texts[j].shape[1]
    if canonical is None:
        return init_connector(1, d_img, d_txt, torch.Generator().manual_seed(seed))
    r_img, r_txt = canonical.images[i].canonical.own_rank, canonical.texts[j].canonical.own_rank
    return Connector(canonical.cross[i, j, :r_img, :r_txt][None].contiguous(), torch.zeros(1, r_img))


def ape_flops(grid: Grid, pairs: Sequence[PairIndex], config: TrainConfig = APE) -> int:
    """What text-sided training of `pairs` costs, computed from shapes."""
    sampler = Sampler(grid.owner, config.batch_size, config.seed)
    n_steps = config.steps(sampler.steps_per_epoch)
    widths = ((grid.texts[j].shape[1], grid.images[i].shape[1]) for i, j in pairs)
    batch = sampler.batch_size
    tiled = is_tiled(1, batch)
    return n_steps * sum(connector_step_flops(batch, d_txt, d_img, tiled=tiled) for d_txt, d_img in widths)


class _PairLearner:
    """One connector by itself, between the rows as they are or between canonical coordinates."""

    image: Gather | Coordinates
    text: Gather | Coordinates

    def __init__(self, grid: Grid, pair: PairIndex, canonical: CanonicalGrid | None, config: TrainConfig):
        self.grid, self.pair = grid, pair
        i, j = pair
        if canonical is None:  # read anew for each pair, so that two tables are in memory and not all
            self.image, self.text = Gather(grid.images[i]), Gather(grid.texts[j])
        else:
            self.image, self.text = canonical.images[i], canonical.texts[j]
        start = _ape_start(grid, pair, canonical, config.seed)
        self.connector = Connector(*(p.clone().requires_grad_() for p in start))
        self.log_scale = scale_parameter(config)
        self.sampler = Sampler(grid.owner, config.batch_size, config.seed)

    @property
    def parameters(self) -> list[Tensor]:
        return [*self.connector, *([self.log_scale] if self.log_scale.requires_grad else [])]

    @property
    def projected_flops(self) -> int:
        """Of projections to canonical coordinates so far; batches are projected where coordinates are not kept."""
        return sum(side.flops for side in (self.image, self.text) if isinstance(side, Coordinates))

    def draw(self) -> Drawn:
        captions = self.sampler.draw()
        pictures = self.grid.owner[captions]
        _, d_img, d_txt = self.connector.weight.shape
        image = unit_rows(self.image[pictures][:, :d_img])
        mapped = unit_rows(connect(self.text[captions][None, :, :d_txt], self.connector))
        valid = valid_items(
            self.grid.image_ok[self.pair[0], pictures][None], self.grid.text_ok[self.pair[1], captions][None]
        )
        flops = connector_step_flops(len(captions), d_txt, d_img, tiled=is_tiled(1, len(captions)))
        loss = contrastive(image[None], mapped, capped_scale(self.log_scale), valid).mean()
        return Drawn(loss, loss, flops)


def _whitenings(n_encoders: int, sides: Sequence[Coordinates] | None) -> list[Canonical | None]:
    return [None] * n_encoders if sides is None else [side.canonical for side in sides]
