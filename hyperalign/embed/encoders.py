"""A spec becomes a frozen encoder; pictures and captions become rows of float32.

An encoder is never trained here, its rows are as its makers meant them: its own preprocessing, its own
pooling, unless the spec says otherwise.
"""

import statistics
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final
from weakref import WeakSet

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hyperalign.embed.feed import feed, worthwhile_workers
from hyperalign.embed.fitting import fitting
from hyperalign.embed.networks import PictureInput, build_network, first_line, picture_transform
from hyperalign.embed.pictures import Pictures
from hyperalign.embed.samples import cut_short
from hyperalign.embed.sentences import build_sentence_encoder, n_cut, n_parameters, probe_caption
from hyperalign.embed.shards import read_array
from hyperalign.embed.spread import SHARE, RowBatch, can_spread, embed_spread, worthwhile_processes
from hyperalign.embed.zoo import EncoderSpec, Facts

Progress = Callable[[str, int, int], None]

BATCH_SIZE = 64  # items computed at a time, as long as memory holds them
_LATENCY_SECONDS = 2.0
_CAPTIONS_AT_ONCE = 2048  # sorted by length among themselves, so that batches hold little padding


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Encoder:
    """One frozen encoder, ready to embed.

    Attributes:
        spec: What was declared.
        facts: What it measured when it was built.
        network: (B, 3, H, W) → (B, D) for pictures; a `SentenceTransformer` for captions.
        picture: The picture it wants; None for captions.
        transform: An RGB picture → (3, H, W) uint8; None for captions.
        device: Where it computes.
        n_threads: Threads of the CPU while this process computes; None leaves torch's setting. Where processes
            embed many pictures they have one each, and so has this one for the first of them.
        autocast: Whether matrix products run in bfloat16.
    """

    spec: EncoderSpec
    facts: Facts
    network: nn.Module
    picture: PictureInput | None
    transform: Callable[[Image.Image], Tensor] | None
    device: torch.device
    n_threads: int | None
    autocast: bool

    @torch.inference_mode()
    def encode(self, batch: Tensor | Sequence[str], *, batch_size: int = 64) -> Tensor:
        """Embed pictures or captions.

        Args:
            batch: (B, 3, H, W) from `preprocess`: bytes, or floats that are normalised already; or B captions.
            batch_size: Captions computed at a time; pictures are computed at once.

        Returns:
            (B, D) float32 on the encoder's device.
        """
        with _threads(self.n_threads), torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            if isinstance(batch, Tensor):
                return _embed(self.network, self._normalised(batch)).float()
            return self._embed_captions(list(batch), batch_size)

    def preprocess(self, picture: Image.Image) -> Tensor:
        """Resize and crop one picture: (3, H, W) uint8; `encode` normalises."""
        if self.transform is None:
            raise ValueError(f"encoder {self.spec.name!r} embeds captions, not pictures")
        return self.transform(picture)

    def n_cut(self, captions: Sequence[str]) -> int:
        """How many of the captions the tokenizer cuts."""
        return n_cut(self.network, captions, self.spec.prompt) if self.spec.modality == "text" else 0

    def _normalised(self, pictures: Tensor) -> Tensor:
        """Float32 on the device, channels last; bytes lose the mean and are divided by the deviation."""
        if self.picture is None:
            raise ValueError(f"encoder {self.spec.name!r} embeds captions, not pictures")
        rows = pictures.to(self.device, memory_format=torch.channels_last)
        if rows.dtype != torch.uint8:
            return rows.float()
        mean, std = (torch.tensor(x, device=self.device).view(3, 1, 1) for x in (self.picture.mean, self.picture.std))
        return rows.float().div_(255).sub_(mean).div_(std)

    def _embed_captions(self, captions: list[str], batch_size: int) -> Tensor:
        """(n, D), captions of like length together."""
        model: Any = self.network
        for caption in captions:
            if not isinstance(caption, str):
                raise ValueError(f"a caption must be text, got {cut_short(repr(caption))}")
        if not captions:
            return torch.empty(0, self.facts.embed_dim, device=self.device)
        rows: Tensor = model.encode(
            captions, prompt=self.spec.prompt, batch_size=batch_size, convert_to_tensor=True, show_progress_bar=False
        )
        return rows.float()


def load_encoder(
    spec: EncoderSpec, *, device: str | None = None, n_threads: int | None = None, autocast: bool = False
) -> Encoder:
    """Build an encoder with its weights and measure its width, parameters and cost.

    Args:
        spec: Of any loader but "rows", which has no network.
        device: A name as torch knows it; None lets accelerate choose.
        n_threads: Threads of the CPU while this process computes; None leaves torch's setting. Where processes
            embed many pictures they have one each, and so has this one for the first of them.
        autocast: Compute matrix products in bfloat16.

    Raises:
        ValueError: The network is not what the spec declares.
        FileNotFoundError: Its weights are not there.
    """
    if spec.loader == "rows":
        raise ValueError(f"encoder {spec.name!r} is a file of ready embeddings and embeds nothing new")
    place = torch.device(device) if device is not None else _chosen_device()
    if spec.modality == "image":
        module, picture = build_network(spec)
        module = module.to(place).to(memory_format=torch.channels_last)
        facts, transform = probe_pictures(spec, module, picture), picture_transform(picture)
    else:
        module, picture, transform = build_sentence_encoder(spec).to(place), None, None
        facts = probe_sentences(spec, module)
    if spec.embed_dim not in (None, facts.embed_dim):
        raise ValueError(
            f"encoder {spec.name!r} declares embed_dim {spec.embed_dim} but gives {facts.embed_dim} numbers; "
            "correct its zoo file"
        )
    return Encoder(
        spec=spec,
        facts=facts,
        network=module,
        picture=picture,
        transform=transform,
        device=place,
        n_threads=n_threads,
        autocast=autocast,
    )


@torch.inference_mode()
def probe_pictures(spec: EncoderSpec, module: nn.Module, picture: PictureInput) -> Facts:
    """Width, parameters and GFLOP of one picture, measured by one forward pass; the meta device will do."""
    parameter = next(module.parameters(), torch.empty(0))
    size = " × ".join(map(str, picture.size))
    try:
        with FlopCounterMode(display=False) as counter:
            embedding = module(torch.zeros(1, 3, *picture.size, device=parameter.device))
    except Exception as error:  # a network of somebody else's may refuse a size in any way
        hint = "; a network of fixed size takes kwargs = { img_size = … }" if spec.loader == "timm" else ""
        raise ValueError(f"encoder {spec.name!r} refuses a picture of {size}: {first_line(error)}{hint}") from None
    if not isinstance(embedding, Tensor) or embedding.ndim != 2 or len(embedding) != 1:
        got = tuple(embedding.shape) if isinstance(embedding, Tensor) else type(embedding).__name__
        raise ValueError(f"encoder {spec.name!r} must give one embedding per picture, (1, D) for one, got {got}")
    return Facts(embedding.shape[1], n_parameters(module), counter.get_total_flops() / 1e9)


@torch.inference_mode()
def probe_sentences(spec: EncoderSpec, module: Any) -> Facts:
    """Width, parameters and GFLOP of one caption of 16 tokens."""
    with FlopCounterMode(display=False) as counter:
        embedding = module.encode(
            [probe_caption(module, spec.prompt)],
            prompt=spec.prompt,
            convert_to_tensor=True,
            show_progress_bar=False,
        )
    return Facts(embedding.shape[1], n_parameters(module), counter.get_total_flops() / 1e9)


def embed_pictures(  # noqa: PLR0913 - whose pictures, which of them, how, and who is told
    encoder: Encoder,
    pictures: Pictures,
    start: int,
    stop: int,
    *,
    batch_size: int = BATCH_SIZE,
    n_workers: int | None = None,
    tell: Callable[[int], None] | None = None,
    shrunk: Callable[[int], None] | None = None,
) -> tuple[NDArray[np.float32], list[tuple[int, str]]]:
    """Embed the pictures from `start` to `stop`.

    Args:
        encoder: Of pictures.
        pictures: Decoded one by one, or cut from `pictures.block(start, stop)` where there is such a method.
        start: First index.
        stop: One past the last index.
        batch_size: Pictures computed at a time, at most 16 by each of several processes; halved where memory does not
            hold so many.
        n_workers: Processes that decode, and on a CPU of a system that forks embed what they decoded, if the main
            thread asks; None chooses, 0 is this one alone, as it should be where other threads compute meanwhile.
        tell: Told after each batch how many of these pictures are done.
        shrunk: Told the smaller batch size where memory did not hold a larger one.

    Returns:
        Rows, (stop - start, D), NaN where a picture could not be decoded, and (index, reason) of each of these.
    """
    rows = np.empty((stop - start, encoder.facts.embed_dim), np.float32)
    bad: list[tuple[int, str]] = []
    size = batch_size
    with closing(_row_batches(encoder, pictures, range(start, stop), batch_size, n_workers)) as batches:
        for batch in batches:
            done = batch.start - start + len(batch.rows)
            rows[batch.start - start : done] = batch.rows
            bad.extend(batch.bad)
            if batch.size < min(size, len(batch.rows)) and shrunk is not None:
                shrunk(batch.size)
            size = min(size, batch.size)
            if tell is not None:
                tell(done)
    for index, _ in bad:
        rows[index - start] = np.nan
    return rows, bad


_stays: Final = WeakSet[nn.Module]()  # networks that did not compute in other processes


def stays_here(encoder: Encoder) -> bool:
    """Whether this process computes by itself, since others that were to help failed or gave no answer."""
    return encoder.network in _stays


def _row_batches(
    encoder: Encoder, pictures: Pictures, bounds: range, batch_size: int, n_workers: int | None
) -> Generator[RowBatch, None, None]:
    """Rows by processes, as far as these get; the others by this one, on all its threads or on its device."""
    if encoder.picture is None or encoder.transform is None:
        raise ValueError(f"encoder {encoder.spec.name!r} embeds captions, not pictures")
    given = encoder.transform, encoder.picture
    n_processes, n_decoders = _share_out(encoder, pictures, len(bounds), n_workers)
    if n_processes:
        done, share = bounds.start, min(batch_size, SHARE)
        compute = partial(_encode_what_fits, replace(encoder, n_threads=1))
        spread = embed_spread(pictures, bounds, *given, compute, batch_size=share, n_processes=n_processes)
        with closing(spread) as batches:
            for batch in batches:
                done += len(batch.rows)
                yield batch
        if done < bounds.stop:
            _stays.add(encoder.network)
            yield from _row_batches(encoder, pictures, range(done, bounds.stop), batch_size, n_workers)
        return
    size = batch_size
    for fed in feed(pictures, bounds, *given, batch_size=batch_size, n_workers=n_decoders):
        rows, size = _encode_what_fits(encoder, fed.pictures, size)
        yield RowBatch(fed.start, rows, fed.bad, size)


def _share_out(encoder: Encoder, pictures: Pictures, n_pictures: int, n_workers: int | None) -> tuple[int, int]:
    """Processes that decode and embed, or none of these and processes that decode beside this one."""
    device, asked = encoder.device.type, n_workers is not None
    if n_workers is None:
        n_workers = worthwhile_workers(n_pictures, device=device)
    if not n_workers or stays_here(encoder) or not can_spread(pictures, device=device):
        return 0, n_workers
    return n_workers if asked else worthwhile_processes(n_workers, encoder.n_threads or torch.get_num_threads()), 0


def _encode_what_fits(encoder: Encoder, pictures: Tensor, size: int) -> tuple[NDArray[np.float32], int]:
    """Rows of a batch, so many pictures at a time or fewer, and how many it were."""

    def compute(size: int) -> NDArray[np.float32]:
        return np.concatenate([encoder.encode(part).cpu().numpy() for part in pictures.split(size)])

    return fitting(compute, size, f"encoder {encoder.spec.name!r}")


def embed_captions(
    encoder: Encoder,
    captions: Sequence[str],
    *,
    batch_size: int = BATCH_SIZE,
    tell: Callable[[int], None] | None = None,
    shrunk: Callable[[int], None] | None = None,
) -> NDArray[np.float32]:
    """Embed captions: (n, D); one of unknown words keeps its zero row.

    Args:
        encoder: Of captions.
        captions: n texts.
        batch_size: Captions computed at a time; halved where memory does not hold so many.
        tell: Told how many are done.
        shrunk: Told the smaller batch size where memory did not hold a larger one.
    """
    if encoder.picture is not None:
        raise ValueError(f"encoder {encoder.spec.name!r} embeds pictures, not captions")
    rows = np.empty((len(captions), encoder.facts.embed_dim), np.float32)
    size, what = batch_size, f"encoder {encoder.spec.name!r}"
    for start in range(0, len(captions), _CAPTIONS_AT_ONCE):
        block = captions[start : start + _CAPTIONS_AT_ONCE]

        def compute(size: int, block: Sequence[str] = block) -> NDArray[np.float32]:
            return np.asarray(encoder.encode(block, batch_size=size).cpu().numpy())

        before = size
        rows[start : start + len(block)], size = fitting(compute, size, what)
        if size < before and shrunk is not None:
            shrunk(size)
        if tell is not None:
            tell(start + len(block))
    return rows


def open_rows(spec: EncoderSpec, split: str) -> NDArray[Any]:
    """Ready embeddings of one split, (n, D), read from disk as they are asked for."""
    path = spec.folder / str(spec.checkpoint).replace("{split}", split)
    try:
        rows = read_array(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"encoder {spec.name!r}: no embeddings {path} for split {split!r}") from None
    except ValueError as error:
        raise ValueError(f"encoder {spec.name!r}: {error}") from None
    if rows.ndim != 2 or rows.dtype.kind != "f":
        raise ValueError(f"encoder {spec.name!r}: {path} must hold (n, D) floats, got {rows.shape} {rows.dtype}")
    if spec.embed_dim not in (None, rows.shape[1]):
        raise ValueError(
            f"encoder {spec.name!r} declares embed_dim {spec.embed_dim} but {path} has "
            f"{rows.shape[1]}; correct its zoo file"
        )
    return rows


def measure_latency(encoder: Encoder) -> float:
    """Milliseconds of one picture by itself, the median of up to 50 after three that do not count."""
    if encoder.picture is None:
        raise ValueError(f"encoder {encoder.spec.name!r} embeds captions; latency is measured on pictures")
    picture = torch.zeros(1, 3, *encoder.picture.size, dtype=torch.uint8)
    seconds: list[float] = []
    end = time.perf_counter() + _LATENCY_SECONDS
    while len(seconds) < 8 or (len(seconds) < 53 and time.perf_counter() < end):
        begin = time.perf_counter()
        encoder.encode(picture).cpu()  # the copy waits for the device
        seconds.append(time.perf_counter() - begin)
    return 1000 * statistics.median(seconds[3:])


def _embed(network: nn.Module, pictures: Tensor) -> Tensor:
    """One forward pass."""
    embedding: Tensor = network(pictures)
    return embedding


def _chosen_device() -> torch.device:
    """The device that accelerate gives this process."""
    from accelerate import PartialState

    return torch.device(PartialState().device)


@contextmanager
def _threads(n_threads: int | None) -> Iterator[None]:
    """Compute with `n_threads` of the CPU, then with as many as before."""
    before = torch.get_num_threads()
    if n_threads in (None, before):
        yield
        return
    torch.set_num_threads(n_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
