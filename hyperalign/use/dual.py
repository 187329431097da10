"""A pair as one model: pictures and captions become unit rows of one space, as they were when the pair was scored."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from hyperalign.embed.consent import trusting
from hyperalign.embed.encoders import Encoder, embed_captions, embed_pictures, load_encoder
from hyperalign.embed.pictures import Pictures, decode, upright
from hyperalign.use.chosen import choose_pair
from hyperalign.use.folder import read_folder
from hyperalign.use.joint import Joint, join_images, join_texts

__all__ = ["DualEncoder", "Encoded", "Picture", "load", "open_pair"]

Picture = str | Path | bytes | Image.Image
Tell = Callable[[int], None]


class Encoded(NamedTuple):
    """Pictures as rows.

    Attributes:
        rows: (n, D) unit rows, float32; NaN where a picture could not be decoded.
        bad: Index and reason of each that could not.
    """

    rows: Tensor
    bad: list[tuple[int, str]]


@dataclass(frozen=True, kw_only=True, eq=False)
class DualEncoder:
    """One image and one text encoder joined by a connector.

    Attributes:
        name: Both encoders' names with a plus sign between.
        image: The image encoder.
        text: The text encoder.
        joint: The connector.
        logit_scale: Inverse temperature of its training; None where none was kept.
    """

    name: str
    image: Encoder
    text: Encoder
    joint: Joint
    logit_scale: float | None = None

    @property
    def embed_dim(self) -> int:
        """Width D of the common space."""
        return self.joint.embed_dim

    @property
    def image_name(self) -> str:
        """Name of the image encoder."""
        return self.image.spec.name

    @property
    def text_name(self) -> str:
        """Name of the text encoder."""
        return self.text.spec.name

    def encode_image(
        self,
        pictures: Picture | Sequence[Picture],
        *,
        batch_size: int = 64,
        n_workers: int | None = None,
        tell: Tell | None = None,
    ) -> Tensor:
        """Embed pictures.

        Args:
            pictures: Paths, bytes of picture files, or PIL pictures; one alone counts as a list of one.
            batch_size: Pictures computed at a time; at most 16 by each of several processes.
            n_workers: Processes that decode, and on a CPU of a system that forks embed what they decoded, if the main
                thread asks; None chooses, 0 is this one alone, as it should be where other threads compute meanwhile.
            tell: Told after each batch how many are done.

        Returns:
            (n, D) unit rows, float32, on the CPU.

        Raises:
            ValueError: If a picture cannot be decoded; the first is named. `encode_pictures` goes on without it.
        """
        given = _Given([pictures] if isinstance(pictures, str | Path | bytes | Image.Image) else list(pictures))
        found = self.encode_pictures(given, batch_size=batch_size, n_workers=n_workers, tell=tell)
        for index, reason in found.bad[:1]:
            more = f", and {len(found.bad) - 1} more like it" if len(found.bad) > 1 else ""
            raise ValueError(f"{given.named(index)} cannot be read: {reason}{more}")
        return found.rows

    def encode_pictures(
        self,
        pictures: Pictures,
        start: int = 0,
        stop: int | None = None,
        *,
        batch_size: int = 64,
        n_workers: int | None = None,
        tell: Tell | None = None,
    ) -> Encoded:
        """Embed the pictures from `start` to `stop` of a sequence, going on where one cannot be decoded.

        Args:
            pictures: Such as `embed.pictures.whole_files` gives; decoded when their turn comes.
            start: First index.
            stop: One past the last index; None is the end.
            batch_size: Pictures computed at a time; at most 16 by each of several processes.
            n_workers: Processes that decode, and on a CPU of a system that forks embed what they decoded, if the main
                thread asks; None chooses, 0 is this one alone, as it should be where other threads compute meanwhile.
            tell: Told after each batch how many of these are done.
        """
        stop = len(pictures) if stop is None else stop
        rows, bad = embed_pictures(
            self.image, pictures, start, stop, batch_size=batch_size, n_workers=n_workers, tell=tell
        )
        joined = join_images(self.joint, torch.from_numpy(rows))
        for index, _ in bad:
            joined[index - start] = torch.nan
        return Encoded(joined, bad)

    def encode_text(self, captions: str | Sequence[str], *, batch_size: int = 64, tell: Tell | None = None) -> Tensor:
        """Embed captions.

        Args:
            captions: One alone counts as a list of one.
            batch_size: Captions computed at a time.
            tell: Told now and then how many are done.

        Returns:
            (n, D) unit rows, float32, on the CPU; zeros for a caption of which the encoder knows no word.
        """
        every = [captions] if isinstance(captions, str) else list(captions)
        return join_texts(
            self.joint, torch.from_numpy(embed_captions(self.text, every, batch_size=batch_size, tell=tell))
        )

    def similarity(self, image: Tensor, text: Tensor) -> Tensor:
        """Cosines of rows: (n_img, D) and (n_txt, D) → (n_img, n_txt), in [-1, 1]."""
        return image @ text.T


def open_pair(  # noqa: PLR0913 - which pair of which run, and how it computes
    run: str | Path,
    pair: str | int | None = None,
    *,
    method: str | None = None,
    zoo: Sequence[str] = (),
    device: str | None = None,
    n_threads: int | None = None,
    trust_code: bool = False,
) -> DualEncoder:
    """Build a pair of a finished run, its encoders from the run's zoos.

    Args:
        run: Folder of a finished run.
        pair: `IMAGE+TEXT`, or its position in the table, 1 being the first; None is the first.
        method: Whose connector; None is the method that answers.
        zoo: Zoos to find the encoders in; none are those of the run.
        device: A name as torch knows it; None lets accelerate choose.
        n_threads: Threads of the CPU while this process computes; None leaves torch's setting. Where processes
            embed many pictures they have one each, and so has this one for the first of them.
        trust_code: Whether an encoder may be built by Python code that the run names; look at it first. Code that was
            run here before, and is unchanged, needs no word.

    Raises:
        FileNotFoundError: If the folder is no run, or a zoo or a file is missing.
        KeyError: If there is no such pair or encoder; near names are offered.
        ValueError: If the run was cut short, has kept no connector of the pair, an encoder has changed since, or code
            is not trusted.
    """
    with trusting(trust_code):
        chosen = choose_pair(Path(run), pair, method=method, zoo=zoo)
        image, text = (
            load_encoder(spec, device=device, n_threads=n_threads, autocast=chosen.autocast)
            for spec in (chosen.image, chosen.text)
        )
    return DualEncoder(name=chosen.name, image=image, text=text, joint=chosen.joint, logit_scale=chosen.logit_scale)


def load(
    folder: str | Path, *, device: str | None = None, n_threads: int | None = None, trust_code: bool = False
) -> DualEncoder:
    """Build a pair that was exported.

    Args:
        folder: As `hyperalign export` wrote it.
        device: A name as torch knows it; None lets accelerate choose.
        n_threads: Threads of the CPU while this process computes; None leaves torch's setting. Where processes
            embed many pictures they have one each, and so has this one for the first of them.
        trust_code: Whether an encoder may be built by Python code that the folder names; look at it first.

    Raises:
        FileNotFoundError: If the folder is none of a pair, or an encoder's files are missing.
        ValueError: If it was written by a newer release, is damaged, an encoder has changed, or code is not trusted.
    """
    stored = read_folder(Path(folder), trust_code=trust_code)
    autocast = bool(stored.config.get("autocast", False))
    image, text = (
        load_encoder(spec, device=device, n_threads=n_threads, autocast=autocast)
        for spec in (stored.image, stored.text)
    )
    scale = stored.config.get("logit_scale")
    return DualEncoder(name=stored.config["pair"], image=image, text=text, joint=stored.joint, logit_scale=scale)


class _Given:
    """Pictures as a user hands them over."""

    def __init__(self, pictures: Sequence[Picture]) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Image.Image:
        picture = self.pictures[index]
        if isinstance(picture, Image.Image):
            return upright(picture)
        if isinstance(picture, bytes):
            return decode(picture)
        if isinstance(picture, str | Path):
            return decode(Path(picture).read_bytes())
        raise ValueError(f"it must be a path, the bytes of a file or a PIL picture, got {type(picture).__name__}")

    def named(self, index: int) -> str:
        """A picture as a message names it."""
        picture = self.pictures[index]
        return f"picture {picture}" if isinstance(picture, str | Path) else f"picture number {index + 1}"
