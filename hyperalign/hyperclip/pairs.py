"""What a training step sees: pictures and one caption each, in an order that seed and epoch alone decide.

Any step can be made by itself, so a training that was cut short goes on with the batch that it would have seen.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (the field's name for it)
from numpy.typing import NDArray
from torch import Tensor

from hyperalign.embed.feed import feed, worthwhile_workers
from hyperalign.embed.networks import PictureInput, picture_transform
from hyperalign.embed.pictures import Pictures, choose

__all__ = ["Batch", "Order", "Pairs", "batches", "likeness_of", "normalise_pictures", "order_of"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Pairs:
    """Pictures with captions, ready to be drawn from.

    Attributes:
        pictures: n of them.
        picture: What the image encoder wants.
        owner: (m,) index of each caption's picture, non-decreasing; every picture has a caption.
        read: Indices of captions → what the text side takes, (B, L) or (B, D_txt).
        likeness: (m, d) unit rows by which captions are alike, for batches of like captions; None where none are asked.
        order: Epoch → what it sees, for who puts batches together himself; None for the order of `order_of`.
    """

    pictures: Pictures
    picture: PictureInput
    owner: NDArray[np.int64]
    read: Callable[[NDArray[np.int64]], Tensor]
    likeness: NDArray[np.float32] | None = None
    order: "Callable[[int], Order] | None" = None


class Order(NamedTuple):
    """What an epoch sees, in turn.

    Attributes:
        pictures: (n,) each picture once.
        captions: (n,) one caption of each.
    """

    pictures: NDArray[np.int64]
    captions: NDArray[np.int64]


class Batch(NamedTuple):
    """One part of a step.

    Attributes:
        pictures: (B, 3, H, W) uint8.
        captions: (B, L) tokens or (B, D_txt) rows.
        bad: How many pictures could not be decoded and are not in it.
    """

    pictures: Tensor
    captions: Tensor
    bad: int


def order_of(pairs: Pairs, *, batch_size: int, seed: int, epoch: int, n_pools: int = 1) -> Order:
    """Shuffle the pictures and draw a caption for each.

    Args:
        pairs: What there is.
        batch_size: Pictures in a step, B.
        seed: With `epoch`, decides everything.
        epoch: Which pass.
        n_pools: Batches that are made of one pool of so many times B pictures. In a pool a batch is a picture and the
            B − 1 others whose captions are most like its own; 1 leaves batches random.
    """
    dice = np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, epoch))))
    n = len(pairs.pictures)
    first = np.searchsorted(pairs.owner, np.arange(n))
    count = np.diff(np.append(first, len(pairs.owner)))
    order = dice.permutation(n)
    captions = first[order] + (dice.random(n) * count[order]).astype(np.int64)
    if n_pools > 1 and pairs.likeness is not None:
        places = _grouped(pairs.likeness[captions], batch_size, n_pools)
        places = _shuffled_batches(places, batch_size, dice)
        order, captions = order[places], captions[places]
    return Order(order, captions)


def _grouped(rows: NDArray[np.float32], batch_size: int, n_pools: int) -> NDArray[np.int64]:
    """Places of an epoch put together so that each run of `batch_size` holds like rows."""
    places: list[NDArray[np.int64]] = []
    for start in range(0, len(rows), batch_size * n_pools):
        left = np.arange(start, min(start + batch_size * n_pools, len(rows)))
        while len(left):
            near = np.argsort(-(rows[left] @ rows[left[0]]), kind="stable")[:batch_size]
            places.append(left[near])
            left = np.delete(left, near)
    return np.concatenate(places)


def _shuffled_batches(places: NDArray[np.int64], batch_size: int, dice: np.random.Generator) -> NDArray[np.int64]:
    """The same batches in random order: the last of a pool are what the others have left."""
    n_whole = len(places) // batch_size
    whole = places[: n_whole * batch_size].reshape(n_whole, batch_size)
    return np.concatenate([whole[dice.permutation(n_whole)].reshape(-1), places[n_whole * batch_size :]])


def batches(  # noqa: PLR0913 - which part of which steps, how
    pairs: Pairs,
    *,
    batch_size: int,
    seed: int,
    start: int,
    stop: int,
    n_pools: int = 1,
    part: tuple[int, int] = (0, 1),
    device: str = "cpu",
) -> Iterator[Batch]:
    """The batches of steps `start` to `stop`.

    Args:
        pairs: What there is.
        batch_size: Pictures in a step; at most as many as there are. What is left of an epoch is not seen in it.
        seed: Decides the order.
        start: First step.
        stop: One past the last.
        n_pools: See `order_of`.
        part: (i, k): the i-th of k equal parts of each step, as for the i-th of k processes.
        device: Kind of device that is fed, which decides how many processes decode.
    """
    n_steps = len(pairs.pictures) // batch_size
    which, of = part
    share = batch_size // of
    transform = picture_transform(pairs.picture)
    step = start
    while step < stop:
        epoch = step // n_steps
        if pairs.order is not None:
            order = pairs.order(epoch)
        else:
            order = order_of(pairs, batch_size=batch_size, seed=seed, epoch=epoch, n_pools=n_pools)
        places = np.arange(n_steps * batch_size).reshape(n_steps, batch_size)[:, which * share : (which + 1) * share]
        places = places[step % n_steps : step % n_steps + stop - step].reshape(-1)
        chosen, captions = choose(pairs.pictures, order.pictures[places]), order.captions[places]
        workers = worthwhile_workers(len(places), device=device)
        bounds = range(len(places))
        for fed in feed(chosen, bounds, transform, pairs.picture, batch_size=share, n_workers=workers):
            bad = [index - fed.start for index, _ in fed.bad]
            kept = np.setdiff1d(np.arange(len(fed.pictures)), bad)
            yield Batch(fed.pictures[kept], pairs.read(captions[fed.start + kept]), len(bad))
            step += 1


def normalise_pictures(
    pictures: Tensor, picture: PictureInput, *, crop: float = 1.0, generator: torch.Generator | None = None
) -> Tensor:
    """Bytes → float32 less the mean, over the deviation; each picture cropped at random and resized back.

    Args:
        pictures: (B, 3, H, W) uint8.
        picture: What the image encoder wants.
        crop: Least share of the area that a random crop keeps, in (0, 1]; 1 for no crops.
        generator: Of the crops, on the CPU.
    """
    mean, std = (torch.tensor(x, device=pictures.device).view(3, 1, 1) for x in (picture.mean, picture.std))
    scaled = pictures.float().div_(255).sub_(mean).div_(std)
    if crop < 1:
        scaled = _random_crops(scaled, crop, generator)
    return scaled.contiguous(memory_format=torch.channels_last)


def _random_crops(pictures: Tensor, least: float, generator: torch.Generator | None) -> Tensor:
    """Cut a rectangle of `least` to all of the area and a ratio of 3:4 to 4:3 from each picture, and resize it back."""
    n = len(pictures)
    area, ratio, across, down = torch.rand(4, n, generator=generator).unbind()
    side = (least + (1 - least) * area).sqrt()
    stretch = (4 / 3) ** (ratio - 0.5)
    width, height = (side * stretch).clamp(max=1), (side / stretch).clamp(max=1)
    left, top = (2 * across - 1) * (1 - width), (2 * down - 1) * (1 - height)
    zero = torch.zeros(n)
    theta = torch.stack([torch.stack([width, zero, left], 1), torch.stack([zero, height, top], 1)], 1)
    grid = F.affine_grid(theta.to(pictures.device), list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, padding_mode="reflection", align_corners=False)


def likeness_of(rows: Any, *, width: int = 64, seed: int = 0) -> NDArray[np.float32]:
    """Unit rows by which captions are compared: bags of tokens or rows of a frozen encoder, projected at random.

    Args:
        rows: (m, L) token numbers, 0 for padding, or (m, D_txt) floats.
        width: Width d of the projection.
        seed: Of the projection.
    """
    dice = np.random.Generator(np.random.PCG64(seed))
    if isinstance(rows, Tensor) and not rows.is_floating_point():
        tokens = rows.numpy()
        rarity = np.log(len(tokens) / np.maximum(1, np.bincount(tokens.ravel(), minlength=int(tokens.max()) + 1)))
        vectors = dice.standard_normal((len(rarity), width)).astype(np.float32) * np.maximum(rarity, 0)[:, None]
        vectors[0] = 0
        found = np.stack([vectors[row].sum(0) for row in tokens])
    else:
        values = np.asarray(rows, np.float32)
        found = (values - values.mean(0)) @ dice.standard_normal((values.shape[1], width)).astype(np.float32)
    unit: NDArray[np.float32] = (found / np.maximum(1e-9, np.linalg.norm(found, axis=1, keepdims=True))).astype(
        np.float32
    )
    return unit
