"""What the hypernetwork costs: FLOPs of a training step, counted from shapes, and pictures a second, measured.

Both are of whole steps, forward, loss and backward (measured steps with the optimiser's too). In use nothing is added:
`specialise` folds what was emitted into the encoder. One multiply-add is two FLOPs; norms, activations and optimiser
are not counted.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hyperalign.align.connectors import siglip, tiled_siglip
from hyperalign.embed.zoo import EncoderSpec
from hyperalign.hyperclip.architectures import build_encoder, picture_of
from hyperalign.hyperclip.hypernetwork import HyperConfig
from hyperalign.hyperclip.model import HyperClip
from hyperalign.hyperclip.normalisation import find_adapted
from hyperalign.hyperclip.text import TextConfig, TextTransformer

__all__ = ["N_TOKENS", "Overhead", "Shape", "count_step", "largest_batch", "measure_overhead"]

Progress = Callable[[str, int, int], None]

N_TOKENS: Final = 32  # of a caption that steps are counted and timed with


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """What a step is made of.

    Attributes:
        image: The image encoder.
        hyper: The hypernetwork.
        text: The text transformer; None where captions are rows of a frozen encoder behind a linear map.
        text_dim: Width of such rows.
        embed_dim: Width of an embedding.
        head: Whether the image encoder has a head of that width.
        n_tokens: Size of the text transformer's vocabulary.
        length: Tokens of a caption.
        n_prompts: Captions of a batch that the hypernetwork sees; None for all.
    """

    image: EncoderSpec
    hyper: HyperConfig
    text: TextConfig | None
    text_dim: int = 384
    embed_dim: int = 512
    head: bool = True
    n_tokens: int = 49408
    length: int = N_TOKENS
    n_prompts: int | None = None


class Overhead(NamedTuple):
    """The cost of a training step without and with a hypernetwork.

    Attributes:
        batch_size: Pictures in a step.
        n_adapted: Scales and biases that are emitted.
        n_params_image: Parameters of the image encoder.
        n_params_hyper: Parameters of the hypernetwork.
        baseline_flops: Of a step of the baseline.
        hyper_flops: Of a step of HyperCLIP.
        baseline_per_second: Pictures a second of the baseline, median over rounds; None where none was timed.
        hyper_per_second: The same of HyperCLIP.
    """

    batch_size: int
    n_adapted: int
    n_params_image: int
    n_params_hyper: int
    baseline_flops: int
    hyper_flops: int
    baseline_per_second: float | None
    hyper_per_second: float | None

    @property
    def added_flops(self) -> float:
        """What the hypernetwork adds, as a share of the baseline's step."""
        return self.hyper_flops / self.baseline_flops - 1

    @property
    def slower(self) -> float | None:
        """Share of the baseline's pictures a second that is lost."""
        if self.baseline_per_second is None or self.hyper_per_second is None:
            return None
        return 1 - self.hyper_per_second / self.baseline_per_second


def count_step(shape: Shape, batch_size: int, *, with_hyper: bool) -> int:
    """FLOPs of one training step, counted on tensors that have a shape and no values.

    Args:
        shape: Of the model and its captions.
        batch_size: Pictures in a step, B.
        with_hyper: Whether there is a hypernetwork.
    """
    with torch.device("meta"):
        network = _network(shape, with_hyper=with_hyper)
        pictures, captions = _batch(shape, batch_size, "meta")
    own = {torch.ops.aten.convolution_backward: _convolution_backward_flops}
    with _plain_attention(), FlopCounterMode(display=False, custom_mapping=own) as counter:
        rows = network(pictures, captions, shape.n_prompts)
        scale, bias = network.log_logit_scale.exp(), network.logit_bias
        siglip(rows.image.unsqueeze(0), rows.text.unsqueeze(0), scale, bias).sum().backward()
    return int(counter.get_total_flops())


def measure_overhead(
    shape: Shape,
    *,
    batch_size: int | None,
    device: str,
    n_rounds: int = 3,
    precision: torch.dtype | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Overhead:
    """Count and time a training step without and with the hypernetwork, in turn.

    Args:
        shape: Of the model.
        batch_size: Pictures in a step; None for the largest power of two that fits the device with the hypernetwork.
        device: "cpu" or "cuda".
        n_rounds: Timed steps of each; a first one warms up. 0 to count alone.
        precision: Of autocast; None for float32.
        progress: Told `(stage, done, total)`.
    """
    name = shape.image.name
    if batch_size is None:
        batch_size = largest_batch(lambda size: _try_step(shape, size, device, precision))
    networks, steps = {}, {}
    for with_hyper in (False, True):
        torch.manual_seed(0)
        with torch.device(device if n_rounds else "meta"):
            networks[with_hyper] = network = _network(shape, with_hyper=with_hyper)
        if n_rounds:
            steps[with_hyper] = _step(network, shape, batch_size, device, precision)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for done in range(n_rounds + 1 if n_rounds else 0):
        for with_hyper, step in steps.items():
            spent = step()
            if done:
                seconds[with_hyper].append(spent)
        progress(f"timing steps of {name}", done + 1, n_rounds + 1)
    return Overhead(
        batch_size,
        find_adapted(networks[False].image).n_numbers,
        sum(p.numel() for p in networks[False].image.parameters()),
        sum(p.numel() for name, p in networks[True].named_parameters() if name.startswith("hyper.")),
        count_step(shape, batch_size, with_hyper=False),
        count_step(shape, batch_size, with_hyper=True),
        *(batch_size / statistics.median(spent) if spent else None for spent in seconds.values()),
    )


def largest_batch(fits: Callable[[int], bool], *, first: int = 8, most: int = 1 << 15) -> int:
    """The largest power of two times `first` that fits.

    Args:
        fits: Whether a batch does.
        first: Where to begin.
        most: Never more than this.

    Raises:
        ValueError: If not even the first does.
    """
    if not fits(first):
        raise ValueError(f"a batch of {first} pictures does not fit the device's memory; give a smaller --input-size")
    size = first
    while 2 * size <= most and fits(2 * size):
        size *= 2
    return size


def _network(shape: Shape, *, with_hyper: bool) -> HyperClip:
    """A model in training mode, its BatchNorm layers by batch statistics."""
    text: nn.Module = nn.Linear(shape.text_dim, shape.embed_dim)
    if shape.text is not None:
        text = TextTransformer(shape.n_tokens, shape.embed_dim, shape.text)
    network = HyperClip(
        build_encoder(shape.image, shape.embed_dim if shape.head else None),
        text,
        shape.embed_dim,
        shape.hyper if with_hyper else None,
    )
    network.training_mode("batch")
    return network


def _batch(shape: Shape, batch_size: int, device: str) -> tuple[Tensor, Tensor]:
    pictures = torch.randn(batch_size, 3, *picture_of(shape.image).size, device=device)
    captions = torch.randn(batch_size, shape.text_dim, device=device)
    if shape.text is not None:
        captions = torch.randint(3, shape.n_tokens, (batch_size, shape.length), device=device)
    return pictures.contiguous(memory_format=torch.channels_last), captions


def _step(
    network: HyperClip, shape: Shape, batch_size: int, device: str, precision: torch.dtype | None
) -> Callable[[], float]:
    """A training step on random pictures and captions; gives its seconds."""
    optimiser = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-5)
    pictures, captions = _batch(shape, batch_size, device)

    def step() -> float:
        _wait(device)
        start = time.perf_counter()
        with torch.autocast(device, precision or torch.bfloat16, enabled=precision is not None):
            rows = network(pictures, captions, shape.n_prompts)
        loss = tiled_siglip(
            rows.image.unsqueeze(0), rows.text.unsqueeze(0), network.log_logit_scale.exp(), network.logit_bias
        )
        optimiser.zero_grad(set_to_none=True)
        loss.sum().backward()
        optimiser.step()
        _wait(device)
        return time.perf_counter() - start

    return step


def _try_step(shape: Shape, batch_size: int, device: str, precision: torch.dtype | None) -> bool:
    """Whether a step with the hypernetwork fits; two, for the optimiser's moments come with the first."""
    try:
        with torch.device(device):
            network = _network(shape, with_hyper=True)
        step = _step(network, shape, batch_size, device, precision)
        step()
        step()
    except torch.OutOfMemoryError:
        return False
    finally:
        network = step = None  # type: ignore[assignment]
        if device == "cuda":
            torch.cuda.empty_cache()
    return True


def _convolution_backward_flops(
    grad_out: Sequence[int], pictures: Sequence[int], weight: Sequence[int], *rest: Any, **_: Any
) -> int:
    """FLOPs of the two gradients of a convolution that is not transposed: each is as dear as going forward.

    torch 2.15 counts the gradient of grouped weights as if there were one group, which made a step of B2 7 times as
    dear as it is and the hypernetwork's share that much smaller.
    """
    of_pictures, of_weights, _ = rest[-1]  # which gradients are wanted
    each = 2 * math.prod(grad_out) * math.prod(weight[1:])
    return each * (bool(of_pictures) + bool(of_weights))


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


@contextmanager
def _plain_attention() -> Iterator[Any]:
    """Attention as matrix products: the counter knows no other form of it on every device."""
    with sdpa_kernel(SDPBackend.MATH):
        yield
