"""Decoding: what is a picture comes out upright and RGB, what is none says why."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hyperalign.embed.pictures import Chosen, StoredPictures, decode, whole_files

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_lossless_formats_come_back_to_the_bit(kind: str) -> None:
    assert np.array_equal(np.asarray(decode(encoded(NOISE, kind))), np.asarray(NOISE))


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_formats_come_back_nearly(kind: str) -> None:
    grey = Image.new("RGB", (30, 20), (90, 120, 60))

    picture = decode(encoded(grey, kind))

    assert picture.mode == "RGB"
    assert np.abs(np.asarray(picture, dtype=int) - np.asarray(grey, dtype=int)).max() < 12


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "CMYK"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    picture = decode(encoded(NOISE.convert(mode), "TIFF"))

    assert picture.mode == "RGB"
    assert picture.size == (60, 40)


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    ramp = Image.fromarray(np.linspace(0, 65535, 256, dtype=np.uint16).reshape(16, 16))

    values = np.asarray(decode(encoded(ramp, "PNG")))[:, :, 0].ravel()

    assert values[0] == 0
    assert values[-1] == 255
    assert abs(int(values[128]) - 128) <= 1


def test_a_transparent_palette_is_decoded_without_a_word() -> None:
    picture = NOISE.convert("P")

    assert decode(encoded(picture, "PNG", transparency=bytes(range(256)))).mode == "RGB"


def test_a_picture_that_was_taken_sideways_comes_out_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn a quarter to the right

    assert decode(encoded(NOISE, "JPEG", exif=exif)).size == (40, 60)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_picture_that_ends_early_is_refused(kind: str, share: float) -> None:
    data = encoded(NOISE, kind)

    with pytest.raises(ValueError, match=r".+"):
        decode(data[: int(len(data) * share)])


@pytest.mark.parametrize("data", [b"", b"hello", b"%PDF-1.4", b"<svg/>", b"\xff\xd8\xff"])
def test_what_is_no_picture_is_refused_with_the_reason(data: bytes) -> None:
    with pytest.raises(ValueError, match="are not a picture"):
        decode(data)


def png_claiming(width: int, height: int) -> bytes:
    """Make a few bytes that say they are a huge picture."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [9_500, 14_000, 60_000])
def test_a_decompression_bomb_is_refused_before_it_is_unpacked(side: int) -> None:
    with pytest.raises(ValueError, match="pixels"):
        decode(png_claiming(side, side))


@settings(deadline=None)
@given(st.integers(0, 2000), st.integers(0, 255))
def test_any_changed_byte_gives_a_picture_or_a_reason(position: int, value: int) -> None:
    data = bytearray(JPEG)
    data[position % len(data)] = value

    try:
        picture = decode(bytes(data))
    except ValueError as error:
        assert str(error)  # noqa: PT017 - either outcome is right
    else:
        assert picture.mode == "RGB"


JPEG = encoded(NOISE, "JPEG")


def test_pictures_are_found_at_their_offsets(tmp_path: Path) -> None:
    first, second = encoded(NOISE, "PNG"), encoded(NOISE.rotate(180), "PNG")
    (tmp_path / "both").write_bytes(b"head" + first + second)
    (tmp_path / "one").write_bytes(second)

    stored = StoredPictures(
        files=[str(tmp_path / "both"), str(tmp_path / "one")],
        home=np.array([0, 0, 1]),
        offset=np.array([4, 4 + len(first), 0]),
        n_bytes=np.array([len(first), len(second), -1]),
    )

    assert len(stored) == 3
    assert stored.read(0) == first
    assert stored.read(1) == stored.read(2) == second
    turned = Chosen(pictures=stored, index=np.array([2, 0]))
    assert np.array_equal(np.asarray(turned[1]), np.asarray(NOISE))


def test_a_picture_that_has_gone_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"gone\.png"):
        whole_files([str(tmp_path / "gone.png")])[0]
