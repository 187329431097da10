"""Decoding: what is a picture comes out upright and RGB, what is none says why."""

import io
import re
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

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


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ("-2", "its bytes cannot be decoded (OSError: -2)"),
        ("", "its bytes cannot be decoded (OSError)"),
        ("broken data stream", "broken data stream"),
    ],
)
def test_a_decoder_that_says_a_number_is_not_quoted_alone(
    monkeypatch: pytest.MonkeyPatch, said: str, sentence: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(said)

    monkeypatch.setattr("hyperalign.embed.pictures.upright", fail)

    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        decode(encoded(NOISE, "PNG"))


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


def gif_bomb(side: int) -> bytes:
    head = b"GIF89a" + struct.pack("<HHBBB", side, side, 0, 0, 0)
    return head + b"," + struct.pack("<HHHHB", 0, 0, side, side, 0) + b"\x02\x02\x4c\x01\x00;"


def tiff_bomb(side: int) -> bytes:
    tags = [(256, 4, side), (257, 4, side), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1)]
    tags += [(278, 4, side), (279, 4, side * side)]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\x00" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0)


def bmp_bomb(side: int) -> bytes:
    head = b"BM" + struct.pack("<IHHI", 54, 0, 0, 54)
    return head + struct.pack("<IiiHHIIiiII", 40, side, side, 1, 1, 0, 0, 0, 0, 2, 0)


def png_bomb(side: int) -> bytes:
    return png_claiming(side, side)


@pytest.mark.parametrize("bomb", [png_bomb, gif_bomb, tiff_bomb, bmp_bomb], ids=lambda bomb: bomb.__name__)
@pytest.mark.parametrize("side", [12_000, 60_000])
def test_a_bomb_of_any_format_is_refused_by_its_size_and_nothing_is_unpacked(bomb: Any, side: int) -> None:
    data = bomb(side)
    tracemalloc.start()
    with pytest.raises(ValueError, match="more than 89,478,485"):
        decode(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert len(data) < 10_000
    assert peak < 1_000_000


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_a_picture_that_is_cut_anywhere_is_refused_or_whole(kind: str) -> None:
    data = encoded(NOISE, kind)
    whole = np.asarray(decode(data))
    for at in range(0, len(data), max(1, len(data) // 40)):
        try:
            assert np.array_equal(np.asarray(decode(data[:at])), whole)  # what was cut off was no part of the pixels
        except ValueError as error:
            assert str(error)  # noqa: PT017


def test_bombs_and_cut_pictures_of_a_split_are_counted_and_named(tmp_path: Path) -> None:
    good = encoded(NOISE, "PNG")
    for name, data in (("a", good), ("bomb", png_bomb(60_000)), ("c", good), ("cut", good[:-200])):
        (tmp_path / f"{name}.png").write_bytes(data)
    files = whole_files([str(tmp_path / f"{name}.png") for name in ("a", "bomb", "c", "cut")])

    bad = {}
    for index in range(len(files)):
        try:
            files[index]
        except ValueError as error:
            bad[index] = str(error)

    assert sorted(bad) == [1, 3]
    assert "60000 × 60000" in bad[1] or "89,478,485" in bad[1]
