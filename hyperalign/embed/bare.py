"""The yardstick of embedding throughput: the loop that a careful engineer writes with timm and nothing else.

Open, resize, normalise, stack, one forward pass: no cache, no checks, no word on a picture that cannot be read.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from hyperalign.embed.networks import PictureInput, picture_transform
from hyperalign.embed.pictures import Blocks, Pictures

__all__ = ["embed_bare", "write_jpegs"]

_SIDE = 256  # of pictures that have no file of their own


class _Files(Dataset[Tensor]):
    """Picture files, as the network wants them."""

    def __init__(self, files: Sequence[str], picture: PictureInput) -> None:
        self.files, self.transform = files, picture_transform(picture, normalised=True)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.files[index]) as picture:
            return self.transform(picture.convert("RGB"))


@torch.inference_mode()
def embed_bare(
    network: nn.Module, picture: PictureInput, files: Sequence[str], *, batch_size: int, n_workers: int
) -> NDArray[np.float32]:
    """Embed picture files in a bare loop.

    Args:
        network: (B, 3, H, W) → (B, D), frozen, its weights channels last.
        picture: What it wants.
        files: The pictures.
        batch_size: Pictures computed at a time.
        n_workers: Processes that decode; 0 for none.

    Returns:
        (n, D)
    """
    loader = DataLoader(_Files(files, picture), batch_size=batch_size, num_workers=n_workers)
    rows = [network(batch.to(memory_format=torch.channels_last)).numpy() for batch in loader]
    return np.concatenate(rows)


def write_jpegs(pictures: Pictures, n: int, folder: Path) -> list[str]:
    """Write the first `n` pictures as JPEG files; those that lie in memory are enlarged to 256 pixels.

    Returns:
        Their paths, in order.
    """
    files = []
    for index in range(n):
        picture = pictures[index]
        if isinstance(pictures, Blocks):
            picture = picture.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
        files.append(str(folder / f"{index:05}.jpg"))
        picture.save(files[-1], quality=90)
    return files
