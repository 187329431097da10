"""The scale and bias of the loss at which a trained pair is taken up.

A winner's cosines lie close together, and they were learned at a scale of their own. Taken up at SigLIP's first scale
the loss finds nearly everything wrong and undoes what the pair knows before a small rate could have moved the scale
(measured in reports/LOG.md). Scale and bias are two numbers that fit any batch of rows in a moment.
"""

import math
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn

from hyperalign.align.train import MAX_LOGIT_SCALE
from hyperalign.hyperclip.model import HyperClip, Rows
from hyperalign.hyperclip.pairs import Pairs, batches, normalise_pictures
from hyperalign.hyperclip.train import TrainConfig, contrast, steps_of

__all__ = ["Calibration", "calibrate"]

_N_PICTURES: Final = 512  # that the two are fitted to
_LEAST_SCALE: Final = 1.0
_N_STEPS: Final = 50  # of a quasi-Newton method on two numbers; it ends by itself before


class Calibration(NamedTuple):
    """What a loss is started with.

    Attributes:
        logit_scale: SigLIP's s, in [1, 100].
        logit_bias: SigLIP's β.
    """

    logit_scale: float
    logit_bias: float


@torch.no_grad()
def calibrate(network: HyperClip, pairs: Pairs, config: TrainConfig) -> Calibration:
    """Scale and bias of least loss on the first pictures that a training will see, the model as it is.

    Args:
        network: Without a hypernetwork, or with one that has learned nothing; used in evaluation mode.
        pairs: What is trained on.
        config: How; its loss, its batches and its seed.
    """
    _, batch_size = steps_of(config, len(pairs.pictures))
    share = batch_size // config.n_parts
    n_batches = max(1, min(_N_PICTURES, len(pairs.pictures)) // share)
    network.eval()
    rows = []
    for part in batches(pairs, batch_size=share, seed=config.seed, start=0, stop=n_batches, n_pools=config.n_pools):
        if len(part.pictures) > 1:  # the rest of a batch cannot be decoded
            image = network.embed_pictures(normalise_pictures(part.pictures, pairs.picture), {})
            rows.append((image, network.embed_captions(part.captions)))
    begin = Calibration(float(network.log_logit_scale.exp()), -math.log(share))
    return _fit(rows, begin, config) if rows else begin


def _fit(rows: list[tuple[Tensor, Tensor]], begin: Calibration, config: TrainConfig) -> Calibration:
    """The two numbers of least loss on rows (B, D) of pictures and of captions, batch by batch."""
    with torch.enable_grad():
        log_scale = nn.Parameter(torch.tensor(begin.logit_scale).log())
        bias = nn.Parameter(torch.tensor(begin.logit_bias))
        optimiser = torch.optim.LBFGS([log_scale, bias], max_iter=_N_STEPS, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimiser.zero_grad()
            losses = [contrast(Rows(image, text, log_scale.exp(), bias), config) for image, text in rows]
            loss = torch.stack(losses).mean()
            loss.backward()
            return loss

        optimiser.step(closure)
    scale, offset = float(log_scale.detach().exp()), float(bias.detach())
    if not (math.isfinite(scale) and math.isfinite(offset)):
        return begin
    return Calibration(min(max(scale, _LEAST_SCALE), MAX_LOGIT_SCALE), offset)
