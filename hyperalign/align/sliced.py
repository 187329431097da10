"""The poster's hypernetwork trained: one network per text encoder, its output sliced to each image encoder."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from hyperalign.align.batches import PairOrder, Sampler, valid_items
from hyperalign.align.connectors import connect, contrastive, is_tiled, unit_rows
from hyperalign.align.grid import KEEP_BYTES, Gather, Grid, blocks, check_pictures
from hyperalign.align.hypernetwork import SlicedNetwork
from hyperalign.align.solution import Progress, Solution, Stop
from hyperalign.align.train import Drawn, TrainConfig, capped_scale, fit, scale_parameter
from hyperalign.ledger import connector_step_flops

SLICED = TrainConfig(
    n_epochs=1,
    batch_size=512,
    pairs_per_step=4,
    learning_rate=1e-2,
    betas=(0.9, 0.95),
    logit_scale=100.0,
    learn_scale=False,
)


class _SlicedLearner:
    """The poster's network for one text encoder on E image encoders a step."""

    def __init__(self, grid: Grid, text: int, network: SlicedNetwork, rows: list[Gather], config: TrainConfig):
        self.grid, self.text, self.network, self.config = grid, text, network, config
        self.images = rows
        self.captions = Gather(grid.texts[text])
        self.log_scale = scale_parameter(config)
        self.sampler = Sampler(grid.owner, config.batch_size, config.seed)
        self.order = PairOrder([(i, text) for i in range(grid.shape[0])], config.pairs_per_step, config.seed)

    @property
    def parameters(self) -> list[Tensor]:
        return [*self.network.parameters(), *([self.log_scale] if self.log_scale.requires_grad else [])]

    def draw(self) -> Drawn:
        captions, pairs = self.sampler.draw(), self.order.draw()
        pictures = self.grid.owner[captions]
        text_ok = self.grid.text_ok[self.text, captions]
        rows = [self.images[i][pictures] for i in pairs[:, 0]]
        padded = [F.pad(r.mean(0), (0, self.network.d_max - r.shape[1])) for r in rows]
        outs = self.network(torch.stack(padded))
        scale = capped_scale(self.log_scale)
        text = self.captions[captions][None]
        losses, flops = [], self.network.step_flops(len(pairs))
        for (i, _), image, out in zip(pairs, rows, outs, strict=True):
            mapped = unit_rows(connect(text, self.network.slice_connector(out, image.shape[1])))
            valid = valid_items(self.grid.image_ok[i, pictures][None], text_ok[None])
            losses.append(contrastive(unit_rows(image)[None], mapped, scale, valid))
            tiled = is_tiled(1, len(captions))
            flops += connector_step_flops(len(captions), text.shape[2], image.shape[1], tiled=tiled)
        loss = torch.cat(losses).mean()
        return Drawn(loss, loss, flops)


def solve_sliced(
    grid: Grid,
    config: TrainConfig = SLICED,
    *,
    progress: Progress | None = None,
    should_stop: Stop | None = None,
) -> Solution:
    """The poster's hypernetwork as published: one network per text encoder, whose costs add up.

    Connectors are emitted at the mean of all training rows, so that they are reproducible.

    Args:
        grid: Training rows.
        config: How to train each network.
        progress: Called with steps done and steps in all.
        should_stop: True leaves out the text encoders whose network is not finished.
    """
    check_pictures(grid)
    images = [Gather(rows, keep_bytes=KEEP_BYTES // len(grid.images)) for rows in grid.images]
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
        record = fit(learner, config, steps, progress=tick, should_stop=should_stop)
        if record.stopped:
            break  # trained for less than the others, its pairs would stand below their place
        fits.append(record)
        with torch.no_grad():
            outs = net(padded)
        emit += net.emit_flops(len(padded))
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
