"""The baseline `ape`: the connector of each pair trained by itself, one pair after the other."""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from hyperalign.align.batches import Sampler, valid_items
from hyperalign.align.canonical import Canonical, Coordinates
from hyperalign.align.closed_form import CanonicalGrid
from hyperalign.align.connectors import Connector, connect, infonce, init_connector
from hyperalign.align.grid import Gather, Grid, PairIndex
from hyperalign.align.solution import Progress, Solution, Stop
from hyperalign.align.train import MAX_LOGIT_SCALE, TrainConfig, fit, scale_parameter
from hyperalign.ledger import connector_step_flops

APE = TrainConfig(n_epochs=10, batch_size=512, pairs_per_step=1, learning_rate=3e-3, n_validations=1)
APE_BOTH = replace(APE, n_epochs=2, learning_rate=1e-3)


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
    images = [Gather(rows) for rows in grid.images] if canonical is None else canonical.images
    texts = [Gather(rows) for rows in grid.texts] if canonical is None else canonical.texts
    done, fits, weights, biases = [], [], [], []
    for n, (i, j) in enumerate(pairs):
        if should_stop is not None and should_stop():
            break
        start = _ape_start(grid, (i, j), canonical, config.seed)
        learner = _PairLearner(grid, (i, j), start, (images[i], texts[j]), config)
        n_steps, before = config.steps(learner.sampler.steps_per_epoch), _projected(images[i], texts[j])
        record = fit(learner, config, n_steps, should_stop=should_stop)
        if record.n_steps < n_steps and should_stop is not None and should_stop():
            break  # trained for less than the others, it would stand below its place
        record.flops += _projected(images[i], texts[j]) - before
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
        images=_whitenings(images),
        texts=_whitenings(texts),
        fits=fits,
        setup_flops=0 if canonical is None else canonical.flops,
    )


def _projected(*sides: Gather | Coordinates) -> int:
    """FLOPs of projections to canonical coordinates so far; batches are projected where coordinates are not kept."""
    return sum(side.flops for side in sides if isinstance(side, Coordinates))


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
    return n_steps * sum(connector_step_flops(sampler.batch_size, d_txt, d_img) for d_txt, d_img in widths)


class _PairLearner:
    """One connector by itself, between the rows as they are or between canonical coordinates."""

    def __init__(self, grid: Grid, pair: PairIndex, start: Connector, rows: tuple[object, object], config: TrainConfig):
        self.grid, self.pair = grid, pair
        self.image, self.text = rows
        self.connector = Connector(*(p.clone().requires_grad_() for p in start))
        self.log_scale = scale_parameter(config)
        self.sampler = Sampler(grid.owner, config.batch_size, config.seed)

    @property
    def parameters(self) -> list[Tensor]:
        return [*self.connector, *([self.log_scale] if self.log_scale.requires_grad else [])]

    def loss(self) -> tuple[Tensor, int]:
        captions = self.sampler.draw()
        pictures = self.grid.owner[captions]
        _, d_img, d_txt = self.connector.weight.shape
        image = F.normalize(self.image[pictures][:, :d_img], dim=1)  # type: ignore[index]
        mapped = F.normalize(connect(self.text[captions][None, :, :d_txt], self.connector), dim=2)  # type: ignore[index]
        valid = valid_items(
            self.grid.image_ok[self.pair[0], pictures][None], self.grid.text_ok[self.pair[1], captions][None]
        )
        scale = self.log_scale.exp().clamp_max(MAX_LOGIT_SCALE)
        return infonce(image[None], mapped, scale, valid).mean(), connector_step_flops(len(captions), d_txt, d_img)


def _whitenings(sides: Sequence[Gather] | Sequence[Coordinates]) -> list[Canonical | None]:
    return [side.canonical if isinstance(side, Coordinates) else None for side in sides]
