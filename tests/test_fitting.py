"""Batches that memory does not hold are halved, and nothing else is taken for a want of memory."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hyperalign.embed import feed
from hyperalign.embed.cache import CacheKey
from hyperalign.embed.encoders import Encoder, embed_captions, embed_pictures
from hyperalign.embed.fitting import fitting, is_out_of_memory
from hyperalign.embed.networks import PictureInput, picture_transform
from hyperalign.embed.pictures import decode, whole_files
from hyperalign.embed.zoo import EncoderSpec, Facts
from hyperalign.prepare import _Lazy, _Tally

CPU = "[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError(CPU),
        RuntimeError("MPS backend out of memory"),
    ],
)
def test_a_size_that_does_not_fit_is_halved(error: Exception) -> None:
    tried = []

    def compute(size: int) -> str:
        tried.append(size)
        if size > 16:
            raise error
        return "rows"

    assert fitting(compute, 100, "it") == ("rows", 12)
    assert tried == [100, 50, 25, 12]


def test_one_item_that_does_not_fit_is_one_sentence() -> None:
    def compute(size: int) -> None:
        raise MemoryError

    with pytest.raises(MemoryError, match="'big' needs more memory than there is, with one item at a time; leave it"):
        fitting(compute, 64, "encoder 'big'")


def test_another_error_is_raised_at_once() -> None:
    tried = []

    def compute(size: int) -> None:
        tried.append(size)
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        fitting(compute, 64, "it")

    assert tried == [64]
    assert not is_out_of_memory(ValueError("out of memory"))


class Narrow(torch.nn.Module):
    """A network that holds so many pictures at a time and no more."""

    def __init__(self, most: int) -> None:
        """Hold so many."""
        super().__init__()
        self.most, self.seen = most, list[int]()

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """The mean of each channel."""
        self.seen.append(len(pictures))
        if len(pictures) > self.most:
            raise RuntimeError(CPU)
        return pictures.mean((2, 3))


def narrow_encoder(most: int) -> tuple[Encoder, Narrow]:
    picture = PictureInput(size=(8, 8), mean=(0.0,) * 3, std=(1.0,) * 3, interpolation="bilinear", crop_pct=1.0)
    network = Narrow(most)
    spec = EncoderSpec(name="narrow", modality="image", loader="timm", architecture="made-up")
    return Encoder(
        spec=spec,
        facts=Facts(3, 0, None),
        network=network,
        picture=picture,
        transform=picture_transform(picture),
        device=torch.device("cpu"),
        n_threads=None,
        autocast=False,
    ), network


def pictures(folder: Path, n: int) -> list[str]:
    names = []
    for number in range(n):
        names.append(str(folder / f"{number}.png"))
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(names[-1])
    return names


def test_pictures_are_embedded_in_smaller_batches_and_it_is_said_once(tmp_path: Path) -> None:
    encoder, network = narrow_encoder(5)
    told: list[int] = []

    rows, bad = embed_pictures(
        encoder, whole_files(pictures(tmp_path, 40)), 0, 40, batch_size=16, n_workers=0, shrunk=told.append
    )

    assert not bad
    assert np.allclose(255 * rows[:, 0], np.arange(40), atol=1e-3)
    assert told == [4]
    assert network.seen == [16, 8, *[4] * 10]  # what was once too much is not tried again


def test_captions_are_embedded_in_smaller_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, _ = narrow_encoder(0)
    told: list[int] = []

    def encode(self: Encoder, batch: list[str], *, batch_size: int) -> torch.Tensor:
        if batch_size > 8:
            raise MemoryError
        return torch.tensor([[float(len(text)), 0.0, 0.0] for text in batch])

    monkeypatch.setattr(Encoder, "encode", encode)
    object.__setattr__(encoder, "picture", None)

    rows = embed_captions(encoder, ["a", "bb", "ccc"], batch_size=32, shrunk=told.append)

    assert rows[:, 0].tolist() == [1, 2, 3]
    assert told == [8]


def test_the_next_shard_begins_with_what_was_small_enough_and_a_note_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, network = narrow_encoder(20)
    stages: list[str] = []
    lazy = _Lazy(encoder.spec, tmp_path, autocast=False, jobs=[])
    lazy.encoder = encoder
    tally = _Tally(lambda stage, done, total: stages.append(stage), 100)
    files = whole_files(pictures(tmp_path, 100))

    lazy._embed(files, 0, 70, tally)
    network.seen.clear()
    lazy._embed(files, 70, 100, tally)

    assert network.seen == [16, 14]
    assert lazy.notes == ["narrow embeds 16 at a time: memory did not hold more of them at once"]
    assert stages[-1] == "embedding by narrow, 16 at a time for want of memory"


def test_a_want_of_memory_is_no_fault_of_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else its row would be kept as NaN for good."""
    encoder, _ = narrow_encoder(99)
    names = pictures(tmp_path, 2)

    def no_room(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image, "open", no_room)

    with pytest.raises(MemoryError):
        decode(Path(names[0]).read_bytes())
    with pytest.raises(MemoryError):
        embed_pictures(encoder, whole_files(names), 0, 2, n_workers=0)
    assert encoder.transform is not None, "it is one of pictures"
    with pytest.raises(MemoryError):
        feed._made(encoder.transform, Path(names[0]).read_bytes())  # of a stream


def test_what_workers_are_given_can_be_sent_to_a_process_that_was_not_forked(tmp_path: Path) -> None:
    """MacOS and Windows start workers anew."""
    picture = PictureInput(size=(8, 8), mean=(0.0,) * 3, std=(1.0,) * 3, interpolation="bilinear", crop_pct=1.0)
    batches = feed.Batches(whole_files(pictures(tmp_path, 3)), range(3), picture_transform(picture), picture.size, 2)

    again = pickle.loads(pickle.dumps(batches))

    assert torch.equal(again[1].pictures, batches[1].pictures)


@pytest.mark.parametrize("name", ["con", "CON.v1", "nul", "Lpt1.small", "aux"])
def test_no_folder_of_the_cache_has_a_name_that_windows_keeps_for_itself(name: str) -> None:
    folder = key(name).folder

    assert folder.startswith(f"_{name}--")


def test_encoders_that_differ_in_case_alone_have_folders_of_their_own() -> None:
    assert key("Vit").folder.casefold() != key("vit").folder.casefold()
    assert key("console").folder.startswith("console--")


def key(encoder: str) -> CacheKey:
    words = dict.fromkeys(("weights", "revision", "preprocess", "pooling", "prompt", "content"), "x")
    return CacheKey(encoder=encoder, dataset="d", split="train", **words)
