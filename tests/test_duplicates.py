"""Near-duplicates: a recompressed or rescaled copy is found, another picture is not."""

import io

import numpy as np
from PIL import Image

from hyperalign.embed.duplicates import near_duplicates, picture_bits
from hyperalign.embed.pictures import Pictures
from hyperalign.embed.splits import Split


def landscape(seed: int) -> Image.Image:
    """Random soft shapes: what photographs share, without a photograph."""
    noise = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((96, 80), Image.Resampling.BICUBIC)


def split(name: str, pictures: Pictures) -> Split:
    n_images = len(pictures)
    return Split(
        name=name,
        image_ids=[f"{name}{index}" for index in range(n_images)],
        pictures=pictures,
        captions=["x"] * n_images,
        owner=np.arange(n_images),
        image_digest="",
        text_digest="",
    )


def recompressed(picture: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    picture.resize((70, 70)).save(buffer, "JPEG", quality=40)
    return Image.open(buffer).convert("RGB")


def test_a_rescaled_and_recompressed_copy_in_another_split_is_found_and_nothing_else() -> None:
    train = [landscape(seed) for seed in range(40)]
    test = [landscape(100), recompressed(train[17]), landscape(101), recompressed(train[3])]

    twins = near_duplicates({"train": split("train", train), "test": split("test", test)})

    assert [(twin.image_id, twin.other_id) for twin in twins] == [("test1", "train17"), ("test3", "train3")]


def test_copies_within_a_split_are_no_leak() -> None:
    picture = landscape(0)

    assert near_duplicates({"train": split("train", [picture, picture]), "test": split("test", [landscape(1)])}) == []


def test_plain_pictures_of_different_shades_are_not_twins() -> None:
    plain = [Image.new("RGB", (32, 32), (shade, shade, shade)) for shade in (0, 80, 160, 240)]

    assert near_duplicates({"train": split("train", plain[:2]), "test": split("test", plain[2:])}) == []


def test_a_picture_that_cannot_be_decoded_is_passed_over() -> None:
    class Broken:
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> Image.Image:
            raise ValueError("truncated")

    broken: Pictures = Broken()

    assert near_duplicates({"train": split("train", broken), "test": split("test", broken)}) == []


def test_bits_of_a_rising_ramp_are_all_set() -> None:
    ramp = Image.fromarray(np.tile(np.arange(0, 255, 15, dtype=np.uint8), (16, 1)))

    assert picture_bits(ramp).all()
    assert not picture_bits(ramp.transpose(Image.Transpose.FLIP_LEFT_RIGHT)).any()
