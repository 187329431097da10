"""Planted worlds: test sets of images and captions drawn anew, seen by one pair or by a grid with a best pair.

An item is a latent row; its image shows it, its captions show it with noise. All pairs of a grid have noise of one law
and differ in its size alone, so the pair with the least noise has the highest expected score.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from hyperalign.rank.metrics import Hits, retrieval_hits
from hyperalign.rank.resampling import Contributions, per_image

__all__ = ["WORLDS", "Size", "World", "draw", "hits_of", "noise_for", "plant_grid", "play_grid"]

_WIDTH = 24
_DIFFICULTY = 0.3  # spread of log noise from item to item


class Size(NamedTuple):
    """Of a test set."""

    n_images: int
    n_captions: int  # of each image

    def __str__(self) -> str:
        """In words."""
        return f"{self.n_images:,} images × {self.n_captions}"

    def owner(self) -> NDArray[np.int64]:
        """(n,) index of each caption's image."""
        return np.repeat(np.arange(self.n_images, dtype=np.int64), self.n_captions)


class World(NamedTuple):
    """How items lie.

    Attributes:
        name: In tables.
        hubs: Spread of the log similarity from image to image.
        n_clusters: Centres that items are drawn around; 0 draws each by itself.
        apart: Distance of an item from its centre, in units of the centres' length.
        image_noise: What an image has that its captions do not tell, in units of its latent row.
        seed: Of the centres, which stay from test set to test set.
    """

    name: str
    hubs: float = 0.0
    n_clusters: int = 0
    apart: float = 0.3
    image_noise: float = 0.0
    seed: int = 0


WORLDS = (
    World("even"),
    World("hubs", hubs=0.4),
    World("clusters", n_clusters=60, apart=0.6, image_noise=0.5),
)


def plant_grid(shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float32]:
    """Sizes of the noise (N, M) of a grid: encoders and pairs differ, by little or by much, evenly or with outliers."""
    sides = [rng.normal(size=(shape[0], 1)), rng.normal(size=(1, shape[1])), rng.normal(size=shape)]
    apart = sum(rng.choice([0.2, 0.5, 1.0]) * side for side in sides)
    kind = rng.integers(3)
    if kind == 1:
        apart = apart + 1.5 * (rng.random((shape[0], 1)) < 0.5)  # good encoders and bad ones
    if kind == 2:
        apart = 0.6 * rng.standard_t(3, size=shape)
    middle = np.exp(rng.uniform(np.log(1.5), np.log(8)))
    return np.asarray(middle * np.exp(rng.choice([0.02, 0.05, 0.15, 0.3]) * apart), dtype=np.float32)


def play_grid(noise: NDArray[np.float32], size: Size, *, world: World, generator: torch.Generator) -> Contributions:
    """One test set seen by every pair of a grid, in the order of the flattened `noise`.

    What is noise to a pair is in equal parts its image encoder's and its text encoder's, and half as much its own; an
    item that is hard is hard for all.
    """
    (n, m), owner = noise.shape, size.owner()
    latent, image, hard = _items(size, world, generator)
    from_image = torch.randn(n, 1, size.n_images, _WIDTH, generator=generator)[:, :, owner]
    from_text = torch.randn(1, m, len(owner), _WIDTH, generator=generator)
    own = torch.randn(n, m, len(owner), _WIDTH, generator=generator)
    error = hard[owner] * (0.4**0.5 * (from_image + from_text) + 0.2**0.5 * own)
    rows = (latent[owner] + torch.from_numpy(noise)[:, :, None, None] * error).flatten(0, 1)
    found = [hits_of(image, text, size) for text in F.normalize(rows, dim=2)]
    t2i, i2t = np.stack([hits.t2i[:, 0] for hits in found]), np.stack([hits.i2t[:, 0] for hits in found])
    return per_image(t2i, i2t, owner)


def _items(size: Size, world: World, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Items drawn anew.

    Returns:
        Rows (n, D) that captions are made of, of length √D; rows (n, D) of the images, of length √D but for hubs; how
        hard each item is (n, 1).
    """
    latent = torch.randn(size.n_images, _WIDTH, generator=generator)
    if world.n_clusters:
        centres = torch.randn(world.n_clusters, _WIDTH, generator=torch.Generator().manual_seed(world.seed))
        place = torch.randint(world.n_clusters, (size.n_images,), generator=generator)
        latent = centres[place] + world.apart * latent
    seen = latent + world.image_noise * torch.randn(size.n_images, _WIDTH, generator=generator)
    pull = torch.exp(world.hubs * torch.randn(size.n_images, 1, generator=generator))
    hard = torch.exp(_DIFFICULTY * torch.randn(size.n_images, 1, generator=generator))
    return F.normalize(latent, dim=1) * _WIDTH**0.5, F.normalize(seen, dim=1) * _WIDTH**0.5 * pull, hard


def draw(size: Size, noise: float, world: World, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A test set of one pair: rows of images and of captions; an image's captions share most of their noise."""
    latent, image, hard = _items(size, world, generator)
    owner = size.owner()
    shared = torch.randn(size.n_images, _WIDTH, generator=generator)[owner]
    own = torch.randn(len(owner), _WIDTH, generator=generator)
    error = hard[owner] * (0.7**0.5 * shared + 0.3**0.5 * own)
    return image, F.normalize(latent[owner] + noise * error, dim=1)


def hits_of(image: Tensor, text: Tensor, size: Size) -> Hits:
    """Hits at 1 in both directions."""
    similarity = text @ image.T  # a row whose length is not 1 stands for a unit row with a part that captions lack
    owner = size.owner()
    return retrieval_hits(lambda a, b: similarity[a:b], owner, size.n_images, ks=(1,), block=len(owner))


def _score(hits: Hits) -> float:
    return 50 * float(hits.t2i.mean() + hits.i2t.mean())


def noise_for(score: float, size: Size, world: World, generator: torch.Generator) -> float:
    """The size of the noise that gives about this score, by halving its logarithm."""
    low, high = -2.0, 4.0
    for _ in range(8):
        middle = (low + high) / 2
        found = _score(hits_of(*draw(size, float(np.exp(middle)), world, generator), size))
        low, high = (middle, high) if found > score else (low, middle)
    return float(np.exp((low + high) / 2))
