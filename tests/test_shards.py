"""Shards at their limits: the last row that exists, the smallest number that float16 holds, the first broken byte."""

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hyperalign.embed.locks import Claim
from hyperalign.embed.shards import FORMAT, Part, Rows, read_manifest, store_dtype, write_part, write_record

MATRIX = (np.arange(9)[:, None] + np.arange(4) / 8).astype(np.float16)
PART = Part(file="part-00000.npy", start=0, stop=9, dim=4, dtype="float16", n_bytes=1, crc32=1)


def written(folder: Path) -> list[Part]:
    """Nine rows in two shards."""
    return [write_part(folder, 0, 0, MATRIX[:5], []), write_part(folder, 1, 5, MATRIX[5:], [])]


@pytest.mark.parametrize("asked", [[9], [0, 9], [-10], [8, -10, 3]], ids=str)
def test_the_first_row_that_does_not_exist_is_named(tmp_path: Path, asked: list[int]) -> None:
    rows = Rows(tmp_path, written(tmp_path))
    missing = next(row for row in asked if not -9 <= row < 9)

    with pytest.raises(IndexError, match=rf"^row {missing} of 9 does not exist$"):
        rows[asked]
    assert np.array_equal(rows[[8, -9]], MATRIX[[8, 0]])


def test_a_flipped_byte_is_found_when_its_shard_is_first_read_and_not_where_it_was_looked_at(tmp_path: Path) -> None:
    parts = written(tmp_path)
    data = bytearray((tmp_path / parts[1].file).read_bytes())
    data[-1] ^= 1
    (tmp_path / parts[1].file).write_bytes(data)

    rows = Rows(tmp_path, parts)

    assert np.array_equal(rows[:5], MATRIX[:5])
    for _ in range(2):
        with pytest.raises(ValueError, match=r"part-00001\.npy is damaged: its bytes are not those that were written"):
            rows[[7]]
    assert Rows(tmp_path, parts, checked=True)[:].shape == (9, 4)
    assert repr(rows).endswith("9 × 4, float16)")


def test_rows_are_kept_as_float16_where_that_holds_them() -> None:
    largest, smallest = 65504.0, 2.0**-14

    def kept(*values: float) -> str:
        return store_dtype(np.array([values], np.float32), "float16")

    assert [kept(largest, 0), kept(smallest, 0), kept(0, 0), kept(math.nan, 1), kept(math.inf, 1)] == ["float16"] * 5
    assert [kept(65520.0, 1), kept(smallest / 2, 0), kept(-65520.0, 1)] == ["float32"] * 3
    assert store_dtype(np.array([[1e9]], np.float32), "float32") == "float32"


@pytest.mark.parametrize(
    ("fields", "fits"),
    [
        ({}, True),
        ({"stop": 0}, True),
        ({"stop": 2**62 - 1}, True),
        ({"stop": 2**62}, False),
        ({"start": 10}, False),
        ({"start": -1}, False),
        ({"dim": 1}, True),
        ({"dim": 0}, False),
        ({"dim": 2**31 - 1}, True),
        ({"dim": 2**31}, False),
    ],
)
def test_a_record_must_be_of_rows_that_there_can_be(fields: dict[str, Any], fits: bool) -> None:
    record = asdict(replace(PART, **fields)) | {"bad": []}

    if fits:
        assert Part.from_record(record) == replace(PART, **fields)
        return
    with pytest.raises(ValueError, match="the record of a shard is damaged: it must hold rows"):
        Part.from_record(record)


def test_objects_are_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        write_part(tmp_path, 0, 0, np.array([[{}]], dtype=object), [])
    assert not [*tmp_path.iterdir()]


def test_a_manifest_of_no_shards_or_of_other_types_is_none(tmp_path: Path) -> None:
    (part, other) = (asdict(part) | {"bad": []} for part in written(tmp_path))
    sound = {"format": FORMAT, "key": {"encoder": "e"}, "shape": [9, 4], "parts": [part, other]}
    write_record(tmp_path / "manifest.json", sound)
    assert read_manifest(tmp_path) == sound

    spoiled: list[dict[str, Any]] = [{"parts": []}, {"parts": "none"}, {"shape": "wide"}, {"shape": [8, 4]}]
    for change in [*spoiled, {"parts": [other, part]}, {"parts": [part, other | {"dim": 5}]}, {"format": 0}]:
        write_record(tmp_path / "manifest.json", sound | change)
        assert read_manifest(tmp_path) is None, change


def test_a_claim_that_was_let_go_is_gone_while_it_lives_on(tmp_path: Path) -> None:
    claim = Claim(tmp_path, ["entry"])
    assert len([*(tmp_path / ".locks").glob("claim-*")]) == 2

    with claim:
        pass

    assert not [*(tmp_path / ".locks").glob("claim-*")]
