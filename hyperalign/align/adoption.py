"""One more encoder beside those that were trained together: a set-up of its own pairs, and a few steps.

A newcomer is paired with every encoder of the other side, its partners. Their whitenings are known; its own moments
are taken, and the directions of both sides are found for these pairs alone, since those that the partners kept for
each other leave out much of what a newcomer could tell (measured in reports/LOG.md). On top of the closed form one
transform of the newcomer's coordinates is trained, with all partners in every step. Validation watches, and where no
step helps, the closed form stands. Nothing that belongs to a pair of other encoders is touched.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from hyperalign.align.batches import Sampler, valid_items
from hyperalign.align.canonical import Canonical, CanonicalConfig, Whitening
from hyperalign.align.canonical_grid import CanonicalGrid, build_canonical_grid
from hyperalign.align.closed_form import canonical_solution
from hyperalign.align.connectors import contrastive, is_tiled
from hyperalign.align.grid import Grid
from hyperalign.align.hypernetwork import fold_into, transform, transform_step_flops
from hyperalign.align.solution import Kept, Progress, Solution, Stop, Validate
from hyperalign.align.train import Drawn, TrainConfig, fit
from hyperalign.ledger import infonce_flops, matmul_flops

STEPS_SHARE = 30  # an adoption takes at most this part of the search's steps
_RATE = 2.0  # of the mean loss of its pairs


def adoption_config(config: TrainConfig, n_steps: int) -> TrainConfig:
    """How a newcomer is trained beside a search of `n_steps` steps: few steps, on larger batches and undamped.

    Of one step or two none can be told from noise by what they have in common, but each is of all partners.
    """
    return replace(
        config,
        n_steps=max(1, n_steps // STEPS_SHARE),
        n_epochs=None,
        batch_size=2 * config.batch_size,
        optimizer="sgd",
        learning_rate=_RATE,
        n_validations=1,
    )


class _Learner:
    """One transform of a newcomer's coordinates, all its pairs in every step."""

    def __init__(self, grid: Grid, canonical: CanonicalGrid, side: str, config: TrainConfig, logit_scale: float):
        self.grid, self.canonical, self.side = grid, canonical, side
        self.rank, self.scale = canonical.cross.shape[-1], torch.tensor(logit_scale)
        self.sampler = Sampler(grid.owner, config.batch_size, config.seed)
        self.connectors = canonical.cross.flatten(0, 1)  # one of the two sides is the newcomer alone
        self.change = torch.zeros(1, self.rank, self.rank, requires_grad=True)
        self.alive = self.own.projection.ne(0).any(0)[None, :, None]

    @property
    def own(self) -> Canonical:
        """The newcomer's way to coordinates, before its transform."""
        return (self.canonical.images if self.side == "image" else self.canonical.texts)[0].canonical

    @property
    def parameters(self) -> list[Tensor]:
        return [self.change]

    def transform(self) -> Tensor:
        """(1, R, R), the newcomer's transform as it stands; coordinates that are always zero stay so."""
        return self.change * self.alive

    def draw(self) -> Drawn:
        captions = self.sampler.draw()
        pictures = self.grid.owner[captions]
        image = torch.stack([side[pictures] for side in self.canonical.images])
        text = torch.stack([side[captions] for side in self.canonical.texts])
        if self.side == "image":
            image = transform(image, self.transform()).expand(len(text), -1, -1)
        else:
            text = transform(text, self.transform())
        sides = F.normalize(image, dim=2), F.normalize(text @ self.connectors.mT, dim=2)
        valid = valid_items(self.grid.image_ok[:, pictures], self.grid.text_ok[:, captions])
        loss = contrastive(*sides, self.scale, valid).mean()
        return Drawn(loss, loss, self.step_flops(len(captions)))

    def step_flops(self, batch: int) -> int:
        """FLOPs of one step of all pairs, projections to canonical coordinates not in it.

        Captions are mapped by connectors that are data: of a new text encoder they have a gradient, of partners none.
        """
        n_pairs = len(self.connectors)
        maps = (1 if self.side == "image" else 2) * matmul_flops(batch, self.rank, self.rank)
        logits = infonce_flops(batch, self.rank, tiled=is_tiled(n_pairs, batch))
        return n_pairs * (maps + logits) + transform_step_flops(batch, self.rank)


def meet(grid: Grid, side: str, kept: Kept, config: CanonicalConfig) -> CanonicalGrid:
    """Canonical coordinates of a newcomer and its partners, found for these pairs alone.

    Args:
        grid: Training rows of the newcomer, alone on its side, and of its partners.
        side: The newcomer's: "image" or "text".
        kept: What the search has left, of the partners alone on their side.
        config: How the search made coordinates.
    """
    known: list[Whitening | None] = [None, *kept.texts] if side == "image" else [*kept.images, None]
    return build_canonical_grid(grid, config, known=known)


def adopt(  # noqa: PLR0913 - who is adopted by whom, how, and who watches
    grid: Grid,
    side: str,
    met: CanonicalGrid,
    kept: Kept,
    config: TrainConfig,
    *,
    n_steps: int,
    validate: Validate,
    progress: Progress | None = None,
    should_stop: Stop | None = None,
) -> Solution:
    """Connectors of a newcomer with its partners.

    Args:
        grid: As `meet` has it.
        side: The newcomer's: "image" or "text".
        met: The same grid in canonical coordinates.
        kept: What the search has left.
        config: How the search was trained.
        n_steps: Optimiser steps that it took; the newcomer has a thirtieth of them, the closed form alone where that
            is less than one.
        validate: Score of a solution on validation in per cent; the better of closed form and training wins.
        progress: Called with steps done and steps in all.
        should_stop: True ends the training.
    """
    images, texts = [c.canonical for c in met.images], [c.canonical for c in met.texts]
    if n_steps < STEPS_SHARE:
        return canonical_solution("hypernet", met, images, texts)
    few = adoption_config(config, n_steps)
    learner, emissions, before = _Learner(grid, met, side, few, kept.logit_scale), 0, _projected(met)

    def emit() -> Solution:
        nonlocal emissions
        emissions += 1
        own = learner.own
        with torch.no_grad():
            moved = [own._replace(projection=fold_into(own.projection, learner.transform()[0]))]
        sides = (moved, texts) if side == "image" else (images, moved)
        flops = emissions * matmul_flops(len(own.mean), learner.rank, learner.rank)
        return replace(canonical_solution("hypernet", met, *sides), emit_flops=flops)

    record = fit(
        learner,
        few,
        few.steps(1),
        validate=lambda: validate(emit()),
        progress=progress,
        should_stop=should_stop,
    )
    record.flops += _projected(met) - before  # of batches, where coordinates are not kept
    return replace(emit(), fits=[record])


def welcome(kept: Kept, side: str, met: CanonicalGrid) -> Kept:
    """What the search has left, with the newcomer behind the others of its side."""
    if side == "image":
        return kept._replace(images=[*kept.images, met.whitenings[0]])
    return kept._replace(texts=[*kept.texts, met.whitenings[-1]])


def _projected(canonical: CanonicalGrid) -> int:
    return sum(side.flops for side in (*canonical.images, *canonical.texts))
