"""The methods: from a grid of rows to a connector for every pair, with what it cost.

All see the same rows and give the same thing, a `Solution`: one linear map per pair, between the encoders' own rows
(sides "text") or between their canonical coordinates (sides "both").
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from hyperalign.align.canonical import Canonical, Coordinates
from hyperalign.align.closed_form import CanonicalGrid, to_text_side
from hyperalign.align.connectors import Connector, connect, infonce, init_connector
from hyperalign.align.grid import Gather, Grid, Sampler, blocks
from hyperalign.align.hypernetwork import (
    ResidualConfig,
    ResidualNetwork,
    SlicedNetwork,
    fold_into,
    transform,
    transform_step_flops,
)
from hyperalign.align.train import Fit, TrainConfig, fit
from hyperalign.ledger import connector_step_flops, infonce_flops, matmul_flops

APE = TrainConfig(n_epochs=10, batch_size=512, pairs_per_step=1, learning_rate=3e-3, n_validations=1)
APE_BOTH = replace(APE, n_epochs=2, learning_rate=1e-3)
RESIDUAL = TrainConfig(n_steps=100, batch_size=512, pairs_per_step=4, learning_rate=1e-2)
SLICED = TrainConfig(
    n_epochs=1,
    batch_size=512,
    pairs_per_step=4,
    learning_rate=1e-2,
    betas=(0.9, 0.95),
    logit_scale=100.0,
    learn_scale=False,
)

MAX_LOGIT_SCALE = 100.0
PairIndex = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Solution:
    """One linear connector for each of some pairs.

    Attributes:
        method: "ape", "closed-form" or "hypernet".
        sides: "text" where only text rows are mapped, "both" where maps go between canonical coordinates.
        pairs: (image, text) indices of the pairs.
        weights: For each pair (D_img, D_txt), or (R_img, R_txt) between canonical coordinates.
        biases: For each pair (D_img,) or (R_img,).
        images: For each image encoder its whitening, None where rows are taken as they are.
        texts: The same for text encoders.
        fits: The trainings, empty for the closed form.
        setup_flops: Moments, eigendecompositions, projections, cross-products.
        emit_flops: Making the connectors out of what was trained.
        seconds: Wall time, set-up included.
    """

    method: str
    sides: str
    pairs: list[PairIndex]
    weights: list[Tensor]
    biases: list[Tensor]
    images: Sequence[Canonical | None]
    texts: Sequence[Canonical | None]
    fits: list[Fit] = field(default_factory=list)
    setup_flops: int = 0
    emit_flops: int = 0

    @property
    def train_flops(self) -> int:
        """Forward and backward of all steps, and the emission."""
        return sum(f.flops for f in self.fits) + self.emit_flops


Validate = Callable[[Solution], float]
Progress = Callable[[int, int], None]
Stop = Callable[[], bool]


def _scale_parameter(config: TrainConfig) -> Tensor:
    return torch.tensor(config.logit_scale).log().requires_grad_(config.learn_scale)


def _valid(image_ok: NDArray[np.bool_], text_ok: NDArray[np.bool_]) -> Tensor | None:
    """(P, B) usable items of a batch, None where all are (the common case, and the faster one)."""
    both = image_ok & text_ok
    return None if both.all() else torch.from_numpy(both)


class _PairLearner:
    """One connector by itself, between the rows as they are or between canonical coordinates."""

    def __init__(self, grid: Grid, pair: PairIndex, start: Connector, rows: tuple[object, object], config: TrainConfig):
        self.grid, self.pair = grid, pair
        self.image, self.text = rows
        self.connector = Connector(*(p.clone().requires_grad_() for p in start))
        self.log_scale = _scale_parameter(config)
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
        valid = _valid(self.grid.image_ok[self.pair[0], pictures][None], self.grid.text_ok[self.pair[1], captions][None])
        scale = self.log_scale.exp().clamp_max(MAX_LOGIT_SCALE)
        return infonce(image[None], mapped, scale, valid).mean(), connector_step_flops(len(captions), d_txt, d_img)


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
        should_stop: True leaves out the pairs not begun.
    """
    images = [Gather(rows) for rows in grid.images] if canonical is None else canonical.images
    texts = [Gather(rows) for rows in grid.texts] if canonical is None else canonical.texts
    done, fits, weights, biases = [], [], [], []
    projected = sum(c.flops for c in (*images, *texts) if isinstance(c, Coordinates))
    for n, (i, j) in enumerate(pairs):
        if should_stop is not None and should_stop():
            break
        start = _ape_start(grid, (i, j), canonical, config.seed)
        learner = _PairLearner(grid, (i, j), start, (images[i], texts[j]), config)
        fits.append(fit(learner, config, config.steps(learner.sampler.steps_per_epoch), should_stop=should_stop))
        done.append((i, j))
        weights.append(learner.connector.weight.detach()[0])
        biases.append(learner.connector.bias.detach()[0])
        if progress is not None:
            progress(n + 1, len(pairs))
    projected = sum(c.flops for c in (*images, *texts) if isinstance(c, Coordinates)) - projected
    return Solution(
        method="ape",
        sides="text" if canonical is None else "both",
        pairs=done,
        weights=weights,
        biases=biases,
        images=_whitenings(images),
        texts=_whitenings(texts),
        fits=fits,
        setup_flops=(canonical.flops if canonical is not None else 0) + projected,
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
    return n_steps * sum(connector_step_flops(sampler.batch_size, d_txt, d_img) for d_txt, d_img in widths)


def _whitenings(sides: Sequence[Gather] | Sequence[Coordinates]) -> list[Canonical | None]:
    return [side.canonical if isinstance(side, Coordinates) else None for side in sides]


def solve_closed_form(canonical: CanonicalGrid, *, sides: str = "both") -> Solution:
    """The connectors without a gradient step; with sides "text" their twin between the encoders' own rows."""
    images, texts = [c.canonical for c in canonical.images], [c.canonical for c in canonical.texts]
    solution = _canonical_solution("closed-form", canonical, images, texts)
    return solution if sides == "both" else to_text_sided(solution)


def to_text_sided(solution: Solution) -> Solution:
    """The text-only twin of a solution between canonical coordinates: W = P_img V P_txtᵀ, b = −W μ_txt.

    Text rows are taken as unit vectors where the whitening took them so.
    """
    weights, biases, emit = [], [], 0
    for (i, j), weight in zip(solution.pairs, solution.weights, strict=True):
        image, text = solution.images[i], solution.texts[j]
        assert image is not None, "a solution between canonical coordinates has whitenings"
        assert text is not None, "a solution between canonical coordinates has whitenings"
        w, b = to_text_side(weight, image, text)
        weights.append(torch.zeros(image.width, text.width).index_put_((image.features[:, None], text.features), w))
        biases.append(torch.zeros(image.width).index_put_((image.features,), b))
        (r_img, r_txt), f_img, f_txt = weight.shape, len(image.mean), len(text.mean)
        emit += matmul_flops(f_img, r_img, r_txt) + matmul_flops(f_img, r_txt, f_txt)
    return replace(
        solution,
        sides="text",
        weights=weights,
        biases=biases,
        images=[None] * len(solution.images),
        texts=[_unit_rows(c) for c in solution.texts],
        emit_flops=solution.emit_flops + emit,
    )


def _unit_rows(canonical: Canonical | None) -> Canonical | None:
    """Rows as unit vectors, where a whitening took them so; else as they are."""
    if canonical is None or not canonical.normalise:
        return None
    width = canonical.width
    return Canonical(torch.zeros(width), torch.eye(width), torch.arange(width), width, normalise=True)


def _canonical_solution(
    method: str, canonical: CanonicalGrid, images: Sequence[Canonical], texts: Sequence[Canonical]
) -> Solution:
    """The closed-form connectors, each cut to the two encoders' own ranks, between some coordinates."""
    r_img = [c.canonical.own_rank for c in canonical.images]
    r_txt = [c.canonical.own_rank for c in canonical.texts]
    pairs = [(i, j) for i in range(len(images)) for j in range(len(texts))]
    return Solution(
        method=method,
        sides="both",
        pairs=pairs,
        weights=[canonical.cross[i, j, : r_img[i], : r_txt[j]].contiguous() for i, j in pairs],
        biases=[torch.zeros(r_img[i]) for i, _ in pairs],
        images=images,
        texts=texts,
        setup_flops=canonical.flops,
    )


class _PairOrder:
    """Pairs in shuffled mini-batches of the grid, without end: each pair comes once before any comes twice."""

    def __init__(self, pairs: Sequence[PairIndex], n: int, seed: int):
        self.pairs = np.array(pairs, dtype=np.int64)
        self.n = min(n, len(pairs))
        self.rng = np.random.default_rng([seed, 1])
        self.queue = np.empty((0, 2), dtype=np.int64)

    def draw(self) -> NDArray[np.int64]:
        """(P, 2) pairs, image-major, distinct."""
        if len(self.queue) < self.n:
            fresh = self.pairs[self.rng.permutation(len(self.pairs))]
            waiting = {tuple(p) for p in self.queue}
            late = [tuple(p) in waiting for p in fresh]
            self.queue = np.concatenate([self.queue, fresh[np.logical_not(late)], fresh[late]])
        drawn, self.queue = self.queue[: self.n], self.queue[self.n :]
        return drawn[np.lexsort((drawn[:, 1], drawn[:, 0]))]


class _FoldSampler:
    """Batches whose pictures are all of one fold, the folds in turn."""

    def __init__(self, owner: NDArray[np.int64], n_folds: int, batch_size: int, seed: int):
        self.captions = [np.flatnonzero(owner % n_folds == k) for k in range(n_folds)]
        owners = [np.unique(owner[captions], return_inverse=True)[1] for captions in self.captions]
        self.samplers = [Sampler(own, batch_size, seed + k) for k, own in enumerate(owners)]
        self.turn = -1

    def draw(self) -> tuple[int, NDArray[np.int64]]:
        """The fold, and (B,) caption indices."""
        self.turn = (self.turn + 1) % len(self.captions)
        return self.turn, self.captions[self.turn][self.samplers[self.turn].draw()]

    @property
    def steps_per_epoch(self) -> int:
        return sum(sampler.steps_per_epoch for sampler in self.samplers)


class _ResidualLearner:
    """The residual hypernetwork on mini-batches of pairs; the transform of an encoder is made once a step.

    The connectors shown to a batch are those that have not seen its pictures, so what is learned is what helps on
    pictures not seen.
    """

    def __init__(self, grid: Grid, canonical: CanonicalGrid, network: ResidualNetwork, config: TrainConfig):
        self.grid, self.canonical, self.network = grid, canonical, network
        self.log_scale = _scale_parameter(config)
        self.sampler = _FoldSampler(grid.owner, len(canonical.held_out), config.batch_size, config.seed)
        self.order = _PairOrder(grid.pairs(), config.pairs_per_step, config.seed)

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
        valid = _valid(self.grid.image_ok[pairs[:, 0]][:, pictures], self.grid.text_ok[pairs[:, 1]][:, captions])
        scale = self.log_scale.exp().clamp_max(MAX_LOGIT_SCALE)
        losses = infonce(F.normalize(image, dim=2)[i_to], F.normalize(mapped, dim=2), scale, valid)
        return losses.mean(), self.step_flops(len(captions), len(pairs), len(i_used) + len(j_used))

    def step_flops(self, batch: int, n_pairs: int, n_encoders: int) -> int:
        """FLOPs of one step, projections to canonical coordinates not in it."""
        rank, k = self.network.rank, self.network.k
        per_pair = 2 * matmul_flops(batch, rank, rank) + infonce_flops(batch, rank, both_sides=True)
        per_encoder = transform_step_flops(batch, rank, k)
        return n_pairs * per_pair + n_encoders * per_encoder + self.network.step_flops(n_encoders)


def solve_residual(
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
        progress: Called with steps done and steps in all.
        should_stop: True ends the training.
    """
    whitenings = [c.canonical for c in (*canonical.images, *canonical.texts)]
    alive = torch.stack([c.projection.ne(0).any(0) for c in whitenings])
    net = ResidualNetwork(alive, grid.shape[0], network or ResidualConfig(), torch.Generator().manual_seed(config.seed))
    learner = _ResidualLearner(grid, canonical, net, config)
    before = _projected(canonical)

    def emit() -> Solution:
        with torch.no_grad():
            every = net(torch.arange(len(whitenings)))
            moved = [c._replace(projection=fold_into(c.projection, every, e)) for e, c in enumerate(whitenings)]
        flops = net.emit_flops(len(moved)) + sum(2 * matmul_flops(len(c.mean), net.rank, net.k) for c in moved)
        solution = _canonical_solution("hypernet", canonical, moved[: grid.shape[0]], moved[grid.shape[0] :])
        return replace(solution, emit_flops=flops)

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


class _SlicedLearner:
    """The poster's network for one text encoder on E image encoders a step."""

    def __init__(self, grid: Grid, text: int, network: SlicedNetwork, rows: list[Gather], config: TrainConfig):
        self.grid, self.text, self.network, self.config = grid, text, network, config
        self.images = rows
        self.captions = Gather(grid.texts[text])
        self.log_scale = _scale_parameter(config)
        self.sampler = Sampler(grid.owner, config.batch_size, config.seed)
        self.order = _PairOrder([(i, text) for i in range(grid.shape[0])], config.pairs_per_step, config.seed)

    @property
    def parameters(self) -> list[Tensor]:
        return [*self.network.parameters(), *([self.log_scale] if self.log_scale.requires_grad else [])]

    def loss(self) -> tuple[Tensor, int]:
        captions, pairs = self.sampler.draw(), self.order.draw()
        pictures = self.grid.owner[captions]
        text_ok = self.grid.text_ok[self.text, captions]
        rows = [self.images[i][pictures] for i in pairs[:, 0]]
        padded = [F.pad(r.mean(0), (0, self.network.d_max - r.shape[1])) for r in rows]
        outs = self.network(torch.stack(padded))
        scale = self.log_scale.exp().clamp_max(MAX_LOGIT_SCALE)
        text = self.captions[captions][None]
        losses, flops = [], self.network.step_flops(len(pairs))
        for (i, _), image, out in zip(pairs, rows, outs, strict=True):
            mapped = F.normalize(connect(text, self.network.slice_connector(out, image.shape[1])), dim=2)
            valid = _valid(self.grid.image_ok[i, pictures][None], text_ok[None])
            losses.append(infonce(F.normalize(image, dim=1)[None], mapped, scale, valid))
            flops += connector_step_flops(len(captions), text.shape[2], image.shape[1])
        return torch.cat(losses).mean(), flops


def solve_sliced(
    grid: Grid,
    config: TrainConfig = SLICED,
    *,
    progress: Progress | None = None,
    should_stop: Stop | None = None,
) -> Solution:
    """The poster's hypernetwork as published: one network per text encoder, whose costs add up.

    Connectors are emitted at the mean of all training rows, so that they are reproducible.
    """
    images = [Gather(rows) for rows in grid.images]
    means = [
        torch.cat([b.nan_to_num(0.0, 0.0, 0.0).sum(0, keepdim=True) for _, b in blocks(rows)]).sum(0) / rows.shape[0]
        for rows in grid.images
    ]
    d_max = max(rows.shape[1] for rows in grid.images)
    padded = torch.stack([F.pad(mean, (0, d_max - len(mean))) for mean in means])
    fits, maps, emit = [], {}, 0
    for j, rows in enumerate(grid.texts):
        if should_stop is not None and should_stop():
            break
        net = SlicedNetwork(d_max, rows.shape[1], torch.Generator().manual_seed(config.seed))
        learner = _SlicedLearner(grid, j, net, images, config)
        steps = config.steps(learner.sampler.steps_per_epoch)
        tick = None if progress is None else _offset(progress, j * steps, len(grid.texts) * steps)
        fits.append(fit(learner, config, steps, progress=tick, should_stop=should_stop))
        with torch.no_grad():
            outs = net(padded)
        emit += net.step_flops(len(padded)) // 3
        maps.update({(i, j): net.slice_connector(out, len(means[i])) for i, out in enumerate(outs)})
    pairs = [pair for pair in grid.pairs() if pair in maps]
    return Solution(
        method="hypernet",
        sides="text",
        pairs=pairs,
        weights=[maps[pair].weight[0].clone() for pair in pairs],
        biases=[maps[pair].bias[0].clone() for pair in pairs],
        images=[None] * grid.shape[0],
        texts=[None] * grid.shape[1],
        fits=fits,
        emit_flops=emit,
    )


def _offset(progress: Progress, first: int, total: int) -> Progress:
    return lambda done, _: progress(first + done, total)
