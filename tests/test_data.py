"""Data sets: every form opens as the same thing, and what cannot be opened says why in one sentence."""

import csv
import io
import itertools
import json
import os
import pickle
import re
import tarfile
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hyperalign.embed.data import Dataset, Split, find_files, open_dataset, open_label_set, surviving, take
from hyperalign.embed.pictures import Blocks
from hyperalign.embed.samples import captions_in, clean, expand, splits_in_names
from hyperalign.embed.splits import digest_of

BENCH = os.environ.get("HYPERALIGN_BENCH")


def picture_bytes(shade: int, *, kind: str = "PNG", size: tuple[int, int] = (8, 6)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (shade % 256, shade // 256, 7)).save(buffer, kind)
    return buffer.getvalue()


def write_pictures(folder: Path, names: Sequence[str]) -> None:
    """Write pictures of which the i-th has red value i."""
    for shade, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture_bytes(shade, kind="JPEG" if path.suffix == ".jpg" else "PNG"))


def write_tar(path: Path, members: Mapping[str, bytes | str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def shards(folder: Path) -> Path:
    """Three shards whose names tell the split, with five, two and three pictures of two captions each."""
    shade = 0
    for split, count in (("train", 5), ("val", 2), ("test", 3)):
        members: dict[str, bytes | str] = {}
        for index in range(count):
            members[f"{split}{index}.png"] = picture_bytes(shade)
            members[f"{split}{index}.json"] = json.dumps({"captions": [f"{split} {index} a", f"{split} {index} b"]})
            shade += 1
        write_tar(folder / f"{split}-000.tar", members)
    return folder


ROWS = [
    {"image": f"pictures/{index}.png", "caption": f"{word} of {index}", "split": split}
    for index, split in enumerate(["train"] * 5 + ["val"] * 2 + ["test"] * 3)
    for word in ("a view", "another view")
]


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(list(rows)), path)
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


def table(folder: Path, rows: Sequence[Mapping[str, Any]] = ROWS, *, name: str = "pairs.csv") -> str:
    write_pictures(folder, [f"pictures/{index}.png" for index in range(10)])
    return str(write_table(folder / name, rows))


def contents(dataset: Dataset) -> dict[str, list[tuple[int, list[str]]]]:
    """Per split, the red value and the captions of each picture."""
    return {
        name: [
            (
                np.asarray(split.pictures[index])[0, 0, 0].item(),
                [split.captions[i] for i in np.flatnonzero(split.owner == index).tolist()],
            )
            for index in range(len(split.image_ids))
        ]
        for name, split in dataset.splits.items()
    }


def test_shards_are_split_by_their_names(tmp_path: Path) -> None:
    dataset = open_dataset(str(shards(tmp_path / "birds")))

    assert dataset.name == "birds"
    assert contents(dataset)["val"] == [(5, ["val 0 a", "val 0 b"]), (6, ["val 1 a", "val 1 b"])]
    assert dataset.splits["test"].image_ids == ["test0", "test1", "test2"]
    assert dataset.splits["train"].owner.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert dataset.notes == ()


@pytest.mark.parametrize("pattern", ["", "*.tar", "{train,val,test}-000.tar", "*-{000..000}.tar", "t*.tar,val*.tar"])
def test_a_folder_a_wildcard_and_braces_name_the_same_shards(tmp_path: Path, pattern: str) -> None:
    folder = shards(tmp_path / "birds")
    if "," in pattern and "{" not in pattern:
        pattern = f"{{{pattern}}}"

    dataset = open_dataset(str(folder / pattern))

    whole = open_dataset(str(folder))
    assert dataset.name == "birds"
    for name, split in dataset.splits.items():
        assert split.image_digest == whole.splits[name].image_digest
        assert split.text_digest == whole.splits[name].text_digest


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_every_kind_of_table_opens_alike(tmp_path: Path, suffix: str) -> None:
    dataset = open_dataset(table(tmp_path / suffix, name=f"pairs.{suffix}"))

    found = contents(dataset)
    assert dataset.name == "pairs"
    assert [shade for shade, _ in found["train"]] == [0, 1, 2, 3, 4]
    assert found["val"] == [(5, ["a view of 5", "another view of 5"]), (6, ["a view of 6", "another view of 6"])]
    assert dataset.splits["test"].image_ids == ["pictures/7.png", "pictures/8.png", "pictures/9.png"]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_list_of_captions_in_one_row_is_as_good_as_rows_of_one(tmp_path: Path, suffix: str) -> None:
    rows = [
        {
            "image": f"pictures/{index}.png",
            "captions": json.dumps(texts) if suffix == "csv" else texts,
            "split": ROWS[2 * index]["split"],
        }
        for index in range(10)
        for texts in [[f"a view of {index}", f"another view of {index}"]]
    ]

    dataset = open_dataset(table(tmp_path / "lists", rows, name=f"pairs.{suffix}"))

    assert contents(dataset) == contents(open_dataset(table(tmp_path / "rows")))


@pytest.mark.parametrize(
    ("image", "caption"),
    [("file_name", "text"), ("FilePath", "Sentence"), ("path", "title"), (" img", " comment"), ("filename", "raw")],
)
def test_common_names_of_columns_are_found(tmp_path: Path, image: str, caption: str) -> None:
    rows = [{image: row["image"], caption: row["caption"], "split": row["split"]} for row in ROWS]

    dataset = open_dataset(table(tmp_path, rows))

    assert len(dataset.splits["train"].captions) == 10


@pytest.mark.parametrize("delimiter", [";", "|", "\t"])
def test_another_separator_of_a_csv_is_found_from_its_header(tmp_path: Path, delimiter: str) -> None:
    path = Path(table(tmp_path))
    path.write_text(path.read_text().replace(",", delimiter))

    assert len(open_dataset(str(path)).splits["train"].captions) == 10


def test_rows_of_one_picture_need_not_stand_together(tmp_path: Path) -> None:
    shuffled = [ROWS[index] for index in np.random.default_rng(0).permutation(len(ROWS))]

    dataset = open_dataset(table(tmp_path, shuffled))

    for split in dataset.splits.values():
        assert np.all(np.diff(split.owner) >= 0)
        for caption, owner in zip(split.captions, split.owner, strict=True):
            assert caption.endswith(f"of {Path(split.image_ids[owner]).stem}")


def test_two_ways_to_write_a_path_are_one_picture(tmp_path: Path) -> None:
    rows = [dict(row, image=f"./{row['image']}") if index % 2 else row for index, row in enumerate(ROWS)]

    assert len(open_dataset(table(tmp_path, rows)).splits["train"].image_ids) == 5


def test_several_tables_are_split_by_their_names(tmp_path: Path) -> None:
    table(tmp_path)
    for name in ("train", "val", "test"):
        rows = [{"image": row["image"], "caption": row["caption"]} for row in ROWS if row["split"] == name]
        write_table(tmp_path / "tables" / f"{name}.csv", [dict(row, image=f"../{row['image']}") for row in rows])

    dataset = open_dataset(str(tmp_path / "tables"))

    assert contents(dataset) == contents(open_dataset(str(tmp_path / "pairs.csv")))


def hashed_rows(count: int) -> list[dict[str, str]]:
    return [{"image": f"pictures/{index % 10}.png", "caption": f"view {index}"} for index in range(count)]


def many_shards(folder: Path, count: int, *, name: str = "00000.tar") -> Path:
    """One shard with `count` pictures, two captions each, no split told."""
    png = picture_bytes(3)
    members: dict[str, bytes | str] = {}
    for index in range(count):
        members |= {f"{index:04}.png": png, f"{index:04}.txt": f"one of {index}\ntwo of {index}\n"}
    return write_tar(folder / name, members)


def test_without_splits_the_hash_of_the_name_gives_80_10_10(tmp_path: Path) -> None:
    dataset = open_dataset(str(many_shards(tmp_path, 2000)))

    shares = {name: len(split.image_ids) / 2000 for name, split in dataset.splits.items()}
    assert shares["train"] == pytest.approx(0.8, abs=0.04)  # four and a half standard deviations
    assert shares["val"] == pytest.approx(0.1, abs=0.03)
    assert shares["test"] == pytest.approx(0.1, abs=0.03)


def test_hashed_splits_keep_all_captions_of_a_picture_on_one_side(tmp_path: Path) -> None:
    dataset = open_dataset(str(many_shards(tmp_path, 300)))

    homes: dict[str, set[str]] = {}
    for name, split in dataset.splits.items():
        for caption in split.captions:
            homes.setdefault(caption.split(" of ")[1], set()).add(name)
    assert len(homes) == 300
    assert all(len(home) == 1 for home in homes.values())


def test_more_pictures_move_none_between_hashed_splits(tmp_path: Path) -> None:
    few = open_dataset(str(many_shards(tmp_path / "few", 100)))
    many = open_dataset(str(many_shards(tmp_path / "many", 200)))

    for name in few.splits:
        assert set(few.splits[name].image_ids) <= set(many.splits[name].image_ids)


def test_the_seed_draws_other_hashed_splits_and_the_same_seed_the_same(tmp_path: Path) -> None:
    path = str(many_shards(tmp_path, 200))

    first, again, other = (open_dataset(path, seed=seed).splits["test"].image_ids for seed in (0, 0, 1))

    assert first == again
    assert first != other


def test_shards_that_are_all_called_train_are_split_by_hash(tmp_path: Path) -> None:
    path = many_shards(tmp_path, 100, name="train-000.tar")

    assert {name: len(split.image_ids) > 0 for name, split in open_dataset(str(path)).splits.items()} == {
        "train": True,
        "val": True,
        "test": True,
    }


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train-000.tar", "coco_val2014.tar", "TEST.tar"], ["train", "val", "test"]),
        (["x/valid/00.tar", "x/dev/00.tar", "x/train/00.tar"], ["val", "val", "train"]),
        (["test/train.tar", "test/val.tar"], ["train", "val"]),
        (["x/contest-00.tar", "x/latest.tar"], [None, None]),
        (["x/train-0.tar", "x/train-1.tar"], [None, None]),
        (["x/train-test.tar"], [None]),
    ],
)
def test_splits_are_read_from_whole_words_of_names(names: list[str], splits: list[str | None]) -> None:
    assert splits_in_names([Path(name) for name in names]) == splits


def test_limit_keeps_the_first_pictures_of_each_split(tmp_path: Path) -> None:
    whole, cut = (open_dataset(str(shards(tmp_path)), limit=limit) for limit in (None, 2))

    assert {name: split.image_ids for name, split in cut.splits.items()} == {
        name: list(split.image_ids)[:2] for name, split in whole.splits.items()
    }
    assert cut.splits["train"].captions == whole.splits["train"].captions[:4]
    assert cut.splits["train"].image_digest != whole.splits["train"].image_digest
    with pytest.raises(ValueError, match="at least 1"):
        open_dataset(str(tmp_path), limit=0)


def test_the_same_name_in_two_shards_is_two_pictures(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        write_tar(tmp_path / f"{split}.tar", {"0.png": picture_bytes(0), "0.txt": f"in {split}"})

    dataset = open_dataset(str(tmp_path))

    assert [split.image_ids for split in dataset.splits.values()] == [["train/0"], ["val/0"], ["test/0"]]


@pytest.mark.parametrize(
    ("members", "captions"),
    [
        ({"a.txt": "one\n\ntwo\n"}, ["one", "two"]),
        ({"a.json": '{"captions": ["one", null, " two "]}'}, ["one", "two"]),
        ({"a.json": '{"caption": "one"}'}, ["one"]),
        ({"a.json": '{"caption": "one", "width": 3}', "a.txt": "other"}, ["one"]),
        ({"a.json": '{"width": 3}', "a.txt": "one"}, ["one"]),
        ({"a.json": "\ufeff" + '{"caption": "é"}'}, ["é"]),
        ({"a.seg.png": "mask", "a.txt": "one"}, ["one"]),
        ({"a.TXT": "one", "._a.jpg": "resource fork", "README.md": "hello"}, ["one"]),
    ],
    ids=str,
)
def test_captions_of_a_sample_come_from_json_or_text(
    tmp_path: Path, members: dict[str, str], captions: list[str]
) -> None:
    shards(tmp_path)
    write_tar(tmp_path / "train-001.tar", {"a.png": picture_bytes(99), **members})

    assert contents(open_dataset(str(tmp_path)))["train"][-1] == (99, captions)


def test_pictures_in_shards_are_read_from_another_process(tmp_path: Path) -> None:
    split = open_dataset(str(shards(tmp_path))).splits["test"]
    split.pictures[0]  # a shared open file would now stand at another place

    with get_context("fork").Pool(2) as pool:
        sizes = pool.map(_red, [(split, index) for index in (2, 0, 1) * 5])

    assert sizes == [9, 7, 8] * 5
    assert len(pickle.dumps(split.pictures)) < 3_000


def _red(asked: tuple[Split, int]) -> int:
    split, index = asked
    return int(np.asarray(split.pictures[index])[0, 0, 0])


def test_empty_captions_are_dropped_and_counted(tmp_path: Path) -> None:
    rows = [dict(row, caption="  ") if index in (0, 13) else row for index, row in enumerate(ROWS)]

    dataset = open_dataset(table(tmp_path, rows))

    assert len(dataset.splits["train"].captions) == 9
    assert "2 empty captions left out" in dataset.notes


def test_a_picture_without_captions_is_left_out_and_named(tmp_path: Path) -> None:
    rows = [dict(row, caption="") if row["image"] == "pictures/3.png" else row for row in ROWS]
    path = table(tmp_path, rows)

    dataset = open_dataset(path)

    assert "pictures/3.png" not in dataset.splits["train"].image_ids
    assert "1 picture has no caption: pictures/3.png" in dataset.notes
    with pytest.raises(ValueError, match=r"--strict.*pictures/3\.png"):
        open_dataset(path, strict=True)


def test_a_missing_picture_is_left_out_and_named(tmp_path: Path) -> None:
    path = table(tmp_path)
    (tmp_path / "pictures/8.png").unlink()

    dataset = open_dataset(path)

    assert dataset.splits["test"].image_ids == ["pictures/7.png", "pictures/9.png"]
    assert any("is not there" in note and "pictures/8.png" in note for note in dataset.notes)
    with pytest.raises(ValueError, match=r"--strict.*pictures/8\.png"):
        open_dataset(path, strict=True)


def test_captions_without_a_picture_are_named(tmp_path: Path) -> None:
    shards(tmp_path)
    write_tar(tmp_path / "val-001.tar", {"v.png": picture_bytes(50), "v.txt": "v", "w.json": '{"caption": "w"}'})

    dataset = open_dataset(str(tmp_path))

    assert dataset.splits["val"].image_ids == ["val0", "val1", "v"]
    assert dataset.notes == ("1 picture is not there: val-001.tar: w",)


def test_captions_at_several_pictures_are_counted_as_ties(tmp_path: Path) -> None:
    rows = [dict(row, caption="a dog") if row["image"] in ("pictures/8.png", "pictures/9.png") else row for row in ROWS]

    notes = open_dataset(table(tmp_path, rows)).notes

    assert notes == ("test: 1 caption stands at several pictures",)


def test_the_same_bytes_in_two_splits_are_named(tmp_path: Path) -> None:
    path = table(tmp_path)
    (tmp_path / "pictures/7.png").write_bytes((tmp_path / "pictures/0.png").read_bytes())

    assert open_dataset(path).notes == ("1 picture is in test and in train, byte for byte: pictures/7.png",)


def test_digests_follow_content_and_order_and_not_the_place(tmp_path: Path) -> None:
    first = open_dataset(table(tmp_path / "one")).splits["test"]
    moved = open_dataset(table(tmp_path / "two")).splits["test"]
    turned = open_dataset(table(tmp_path / "three", ROWS[::-1])).splits["test"]
    path = table(tmp_path / "four")
    write_pictures(tmp_path / "four", ["other.png", "pictures/7.png"])
    changed = open_dataset(path).splits["test"]

    assert (first.image_digest, first.text_digest) == (moved.image_digest, moved.text_digest)
    assert first.image_digest != turned.image_digest
    assert first.text_digest != turned.text_digest
    assert first.image_digest != changed.image_digest
    assert first.text_digest == changed.text_digest


@pytest.mark.parametrize("form", ["table", "shards"])
def test_a_warm_open_reads_no_picture_and_a_changed_file_is_read_again(tmp_path: Path, form: str) -> None:
    source = table(tmp_path / "data") if form == "table" else str(shards(tmp_path / "data"))
    memory = tmp_path / "memory"
    cold = open_dataset(source, memory=memory).splits["test"].image_digest
    told: list[str] = []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hashlib.file_digest", lambda *_: pytest.fail("a picture was read"))
        patch.setattr("tarfile.open", lambda *_, **__: pytest.fail("a shard was read"))
        warm = open_dataset(source, memory=memory, progress=lambda stage, *_: told.append(stage))
    if form == "table":
        (tmp_path / "data/pictures/7.png").write_bytes(picture_bytes(200))
    else:
        write_tar(tmp_path / "data/test-000.tar", {"x.png": picture_bytes(200), "x.txt": "new"})

    assert warm.splits["test"].image_digest == cold
    assert told
    assert open_dataset(source, memory=memory).splits["test"].image_digest != cold


def test_a_damaged_memory_is_forgotten(tmp_path: Path) -> None:
    source, memory = table(tmp_path / "data"), tmp_path / "memory"
    cold = open_dataset(source, memory=memory).splits["test"].image_digest
    for path in memory.rglob("*.json"):
        path.write_text(path.read_text().replace("a", "b"))

    assert open_dataset(source, memory=memory).splits["test"].image_digest == cold


def test_a_memory_that_cannot_be_written_only_costs_time(tmp_path: Path) -> None:
    (tmp_path / "memory").write_text("a file, not a folder")

    open_dataset(table(tmp_path / "data"), memory=tmp_path / "memory")


def test_scenes_open_with_their_label_sets(tmp_path: Path) -> None:
    dataset = open_dataset("scenes", limit=4)

    assert {name: len(split.image_ids) for name, split in dataset.splits.items()} == {"train": 4, "val": 4, "test": 4}
    assert set(dataset.label_sets) == {"colour-shape", "texture-shape"}
    assert dataset.splits["val"].pictures[3].mode == "RGB"


def test_a_few_scenes_are_the_first_of_all_and_come_as_arrays() -> None:
    val = open_dataset("scenes", limit=6).splits["val"]

    chosen = take(val, np.array([4, 1])).pictures

    assert isinstance(chosen, Blocks)
    assert chosen[0].tobytes() == val.pictures[4].tobytes()
    assert chosen.block(1, 2).tobytes() == val.pictures[1].tobytes()
    assert val.captions == open_dataset("scenes", limit=8).splits["val"].captions[:30]


def toy_split(n_images: int, per_image: Sequence[int]) -> Split:
    owner = np.repeat(np.arange(n_images), per_image)
    pictures = [Image.new("RGB", (1, 1), (index, 0, 0)) for index in range(n_images)]
    return Split(
        name="test",
        image_ids=[f"i{index}" for index in range(n_images)],
        pictures=pictures,
        captions=[f"c{index}" for index in range(len(owner))],
        owner=owner,
        image_digest="d",
        text_digest="t",
    )


def test_survivors_renumber_the_owners_of_the_captions_that_stay() -> None:
    left = surviving(toy_split(4, [2, 1, 3, 1]), {1})

    assert left.images.tolist() == [0, 2, 3]
    assert left.captions.tolist() == [0, 1, 3, 4, 5, 6]
    assert left.owner.tolist() == [0, 0, 1, 1, 1, 2]


@settings(deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=12), st.data())
def test_survivors_keep_who_belongs_to_whom(per_image: list[int], data: st.DataObject) -> None:
    split = toy_split(len(per_image), per_image)
    bad = data.draw(st.sets(st.integers(0, len(per_image) - 1)))

    left = surviving(split, bad)

    assert set(left.images) == set(range(len(per_image))) - bad
    assert np.array_equal(left.images[left.owner], split.owner[left.captions])


@settings(deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=12), st.data())
def test_taken_pictures_bring_their_own_captions(per_image: list[int], data: st.DataObject) -> None:
    split = toy_split(len(per_image), per_image)
    images = data.draw(st.lists(st.integers(0, len(per_image) - 1), min_size=1, unique=True))

    taken = take(split, np.array(images))

    assert list(taken.image_ids) == [f"i{index}" for index in images]
    assert [taken.pictures[place].getpixel((0, 0)) for place in range(len(images))] == [(i, 0, 0) for i in images]
    expected = [f"c{i}" for image in images for i in np.flatnonzero(split.owner == image)]
    assert list(taken.captions) == expected
    assert np.bincount(taken.owner).tolist() == [per_image[image] for image in images]
    assert taken.image_digest == take(split, np.array(images)).image_digest
    assert taken.image_digest != "d"


SENTENCES: dict[str, tuple[str, str]] = {
    "no such file": ("nothing.csv", r"there is no .*nothing\.csv; data is scenes, a \.csv"),
    "no such shard": ("train-{000..002}.tar", r"there is no .*train-001\.tar"),
    "an empty folder": ("empty", r"holds no \.tar shard and no \.csv"),
    "a compressed tar": ("train.tar.gz", r"names train\.tar\.gz, .*\(a compressed tar must be unpacked\)"),
    "a picture": ("picture.png", r"names picture\.png, which is no data set; data is scenes"),
    "an address": ("https://example.org/a.csv", "is an address; download it first"),
}


@pytest.mark.parametrize("case", SENTENCES)
def test_a_source_that_cannot_be_read_is_one_sentence(tmp_path: Path, case: str) -> None:
    source, pattern = SENTENCES[case]
    (tmp_path / "empty").mkdir()
    for name in ("train-000.tar", "train-002.tar", "train.tar.gz", "picture.png"):
        (tmp_path / name).write_bytes(b"")

    refuses(source if "://" in source else str(tmp_path / source), pattern)


def refuses(source: str, pattern: str) -> None:
    """The source is refused in one line that matches."""
    _refuses(open_dataset, source, pattern)


def refuses_label_set(source: str, pattern: str) -> None:
    """The label set is refused in one line that matches."""
    _refuses(open_label_set, source, pattern)


def _refuses(opens: Callable[[str], object], source: str, pattern: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        opens(source)
    assert re.search(pattern, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)


BAD_ROWS: dict[str, tuple[Sequence[Mapping[str, Any]], str]] = {
    "no rows": ([], "has no rows"),
    "no captions column": (
        [{"image": "pictures/0.png", "words": "a"}],
        r"line 1, has no column of captions: its columns are 'image', 'words'; call it one of captions, caption",
    ),
    "no picture column": ([{"photo_of": "x", "caption": "a"}], "no column of pictures"),
    "all captions empty": ([dict(row, caption="") for row in ROWS], "has no captions: of its 10 pictures none"),
    "captions are numbers": ([dict(ROWS[0], caption=3)], r"line 1 must be a text or a list of texts, got int 3"),
    "captions are an object": ([ROWS[0], dict(ROWS[1], caption={"en": "a"})], "line 2 must be .* got dict"),
    "a list with a number": ([dict(ROWS[0], caption=["a", 1.5])], "got a list with float 1.5"),
    "a list in a list": ([dict(ROWS[0], caption=[["a"]])], "got a list with list"),
    "an unknown split": ([dict(ROWS[0], split="holdout")], "line 1 must be train, val or test, got 'holdout'"),
    "an empty split": (ROWS[:10] + ROWS[14:], r"empty split, 'val' \(pictures: train 5, val 0, test 3\)"),
    "a picture in two splits": ([*ROWS, dict(ROWS[0], split="test")], "line 21: 'pictures/0.png' is test here and"),
    "a split for some": ([*ROWS, {"image": "pictures/extra.png", "caption": "x"}], "for all pictures or for none: 10"),
    "no picture is there": (
        [dict(row, image=f"gone/{row['image']}") for row in ROWS],
        "none of the 10 pictures of pairs is there, the first would be .*gone/pictures/0.png",
    ),
    "a picture by address": ([dict(ROWS[0], image="http://x/y.jpg")], "is an address; download"),
    "no path": ([dict(ROWS[0], image=None)], "must hold the path of a picture, got NoneType"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_table_that_cannot_be_read_is_one_sentence(tmp_path: Path, case: str) -> None:
    rows, pattern = BAD_ROWS[case]
    write_pictures(tmp_path, ["pictures/extra.png"])

    refuses(table(tmp_path, rows, name="pairs.jsonl"), pattern)


BAD_TEXTS: dict[str, tuple[str, bytes, str]] = {
    "an empty csv": ("t.csv", b"", "has no rows"),
    "a header alone": ("t.csv", b"image,caption\n", "has no rows"),
    "too many cells": ("t.csv", b"image,caption\na.png,a dog, running\n", "line 2: 3 cells where the header has 2"),
    "too few cells": ("t.csv", b"image,caption\na.png\n", "line 2: 1 cells where the header has 2"),
    "an open quote": ("t.csv", b'image,caption\na.png,"a dog\n', "check the quotes"),
    "a twin column": ("t.csv", b"image,caption,caption\na,b,c\n", "two columns of one name among"),
    "not UTF-8": ("t.csv", "image,caption\na,\xe9\n".encode("latin-1"), "must be UTF-8"),
    "bytes for a csv": ("t.csv", b"\x00\x01\x02\n\x00", r"t\.csv"),
    "half a line of JSON": ("t.jsonl", b'{"image": "a", "caption": "b"}\n{"image": ', "line 2: not JSON"),
    "a list for a row": ("t.jsonl", b"[1]\n", "line 1: each line must be an object, got list"),
    "deep JSON": ("t.jsonl", b"[" * 100_000, "line 1: not JSON"),
    "not UTF-8 JSON": ("t.jsonl", b'{"image": "\xff"}', "must be UTF-8"),
    "not a parquet": ("t.parquet", b"PAR1 this is none", "is not a parquet file that can be read"),
    "an empty parquet": ("t.parquet", b"", "is not a parquet file that can be read"),
}


@pytest.mark.parametrize("case", BAD_TEXTS)
def test_a_malformed_table_is_one_sentence(tmp_path: Path, case: str) -> None:
    name, data, pattern = BAD_TEXTS[case]
    (tmp_path / name).write_bytes(data)

    refuses(str(tmp_path / name), pattern)


def member(name: str, **fields: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def test_a_tar_with_a_link_a_device_or_a_name_that_leads_out_is_refused(tmp_path: Path) -> None:
    for info, pattern in [
        (member("a.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "'a.jpg', a link or device"),
        (member("a.jpg", type=tarfile.LNKTYPE, linkname="b.jpg"), "a link or device"),
        (member("a.jpg", type=tarfile.CHRTYPE), "a link or device"),
        (member("a.jpg", type=tarfile.FIFOTYPE), "a link or device"),
        (member("/etc/a.jpg"), "leads out of the tar"),
        (member("../a.jpg"), "leads out of the tar"),
        (member("x/../../a.jpg"), "leads out of the tar"),
        (member("a.json", size=2 << 20), "a caption file has at most"),
    ]:
        with tarfile.open(tmp_path / "x.tar", "w") as tar:
            tar.addfile(info, io.BytesIO(bytes(info.size)))
        refuses(str(tmp_path / "x.tar"), pattern)


BAD_MEMBERS: dict[str, tuple[dict[str, bytes | str], str]] = {
    "not JSON": ({"a.json": '{"captions": ['}, r"a\.json is not JSON"),
    "a list": ({"a.json": '["a"]'}, r"a\.json must be an object with `captions`, got list"),
    "numbers": ({"a.json": '{"captions": [1, 2]}'}, r"captions of a\.json must be .* got a list with int 1"),
    "an object": ({"a.json": '{"captions": {"0": "a"}}'}, "got dict"),
    "a number": ({"a.json": '{"caption": 7}'}, "got int 7"),
    "not UTF-8": ({"a.txt": b"\xff\xfe"}, r"'a\.txt' must be UTF-8"),
    "two pictures": ({"a.jpg": b"x", "a.txt": "one"}, "two pictures named 'a'"),
    "no captions": ({"a.cls": "3"}, "has no captions: of its 1 pictures none"),
    "too few pictures": ({"a.txt": "one"}, r"empty split, .* give more pictures"),
}


@pytest.mark.parametrize("case", BAD_MEMBERS)
def test_a_shard_with_a_malformed_sample_is_one_sentence(tmp_path: Path, case: str) -> None:
    members, pattern = BAD_MEMBERS[case]
    path = write_tar(tmp_path / "x.tar", {"a.png": picture_bytes(1), **members})

    refuses(str(path), pattern)


@pytest.mark.parametrize("data", [b"", b"no tar at all", b"\x1f\x8b" + bytes(600), b"x" * 2000], ids=len)
def test_a_file_that_is_no_tar_is_one_sentence(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.tar").write_bytes(data)

    refuses(str(tmp_path / "x.tar"), r"x\.tar must be a plain, uncompressed tar|has no captions")


@pytest.mark.parametrize("length", range(100, 40 * 2048, 3301))
def test_a_tar_that_was_not_copied_to_its_end_is_refused(tmp_path: Path, length: int) -> None:
    whole = many_shards(tmp_path, 40).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:length])

    refuses(str(tmp_path / "cut.tar"), r"cut\.tar (ends inside|has no end mark|must be a plain)")


def test_rubbish_between_members_is_not_taken_for_the_end(tmp_path: Path) -> None:
    path = many_shards(tmp_path, 40)
    data = bytearray(path.read_bytes())
    data[20 * 2048 : 20 * 2048 + 100] = b"x" * 100
    path.write_bytes(data)

    refuses(str(path), "has no end mark")


def test_shards_of_which_only_some_tell_a_split_are_refused(tmp_path: Path) -> None:
    shards(tmp_path)
    write_tar(tmp_path / "extra-000.tar", {"x.png": picture_bytes(9), "x.txt": "x"})

    refuses(str(tmp_path), r"extra-000\.tar must say its split in its name as the other files do")


def test_a_folder_with_shards_and_tables_is_refused(tmp_path: Path) -> None:
    shards(tmp_path)
    table(tmp_path)

    refuses(str(tmp_path), r"holds shards \(test-000\.tar\) and tables \(pairs\.csv\)")


def test_braces_are_written_out_as_a_shell_does() -> None:
    assert expand("a-{000..002}.tar") == ["a-000.tar", "a-001.tar", "a-002.tar"]
    assert expand("{2..0}") == ["2", "1", "0"]
    assert expand("{8..11}") == ["8", "9", "10", "11"]
    assert expand("{08..11}") == ["08", "09", "10", "11"]
    assert expand("{a,b}{1..2}") == ["a1", "a2", "b1", "b2"]
    assert expand("{a,b{1..2}}") == ["a", "b1", "b2"]
    assert expand("a{}b{c}") == ["a{}b{c}"]
    with pytest.raises(ValueError, match="9,000,000,001 files"):
        expand("{0..9000000000}")


WORDS = st.text(alphabet="ab.-0", max_size=3)
NUMBERS = st.tuples(st.integers(0, 30), st.integers(0, 30)).map(
    lambda ends: (
        f"{{{ends[0]}..{ends[1]}}}",
        [str(n) for n in (range(ends[0], ends[1] + 1) if ends[0] <= ends[1] else range(ends[0], ends[1] - 1, -1))],
    )
)
CHOICES = st.lists(WORDS, min_size=2, max_size=3).map(lambda words: (f"{{{','.join(words)}}}", words))


@settings(deadline=None)
@given(st.lists(WORDS.map(lambda word: (word, [word])) | NUMBERS | CHOICES, max_size=3))
def test_a_row_of_braces_stands_for_their_product(parts: list[tuple[str, list[str]]]) -> None:
    expected = ["".join(choice) for choice in itertools.product(*(choices for _, choices in parts))]

    assert expand("".join(text for text, _ in parts)) == expected


@settings(deadline=None)
@given(st.text(alphabet="ab{},.01", max_size=12))
def test_expanding_any_pattern_ends(pattern: str) -> None:
    assert expand(pattern)


@settings(deadline=None)
@given(st.text())
def test_a_cleaned_caption_can_be_written_and_is_clean(text: str) -> None:
    cleaned = clean(text)

    assert cleaned.encode("utf-8").decode("utf-8") == cleaned
    assert clean(cleaned) == cleaned


def test_half_a_surrogate_pair_becomes_a_question_mark() -> None:
    assert clean("a \ud800 dog") == "a ? dog"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(JSON)
def test_any_json_is_captions_or_one_sentence(value: Any) -> None:
    texts = value if isinstance(value, list) else [value]
    if all(text is None or isinstance(text, str) for text in texts):
        assert captions_in(value, "f", "x") == [text for text in texts if text is not None]
    else:
        with pytest.raises(ValueError, match="captions of x must be a text or a list of texts"):
            captions_in(value, "f", "x")


@settings(deadline=None)
@given(st.lists(st.text()), st.lists(st.text()))
def test_two_lists_share_a_digest_only_if_they_are_equal(first: list[str], second: list[str]) -> None:
    assert (digest_of(first) == digest_of(second)) == (first == second)


@settings(deadline=None, max_examples=30)
@given(captions=st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"])), min_size=3, max_size=8))
def test_any_captions_survive_a_csv(tmp_path_factory: pytest.TempPathFactory, captions: list[str]) -> None:
    folder = tmp_path_factory.mktemp("any")
    write_pictures(folder, [f"{index}.png" for index in range(len(captions))])
    homes = ["val", "test"] + ["train"] * len(captions)
    rows = [
        {"image": f"{index}.png", "caption": f"x{text}x", "split": homes[index]} for index, text in enumerate(captions)
    ]

    splits = open_dataset(str(write_table(folder / "t.csv", rows))).splits

    assert [*splits["val"].captions, *splits["test"].captions, *splits["train"].captions] == [
        f"x{text}x" for text in captions
    ]


@pytest.mark.bench
@pytest.mark.skipif(BENCH is None, reason="HYPERALIGN_BENCH is not set")
def test_the_benchmark_opens_whole() -> None:
    dataset = open_dataset(str(Path(str(BENCH)) / "flickr8k"))

    assert {name: (len(split.image_ids), len(split.captions)) for name, split in dataset.splits.items()} == {
        "train": (5500, 27500),
        "val": (750, 3750),
        "test": (750, 3750),
    }
    assert dataset.splits["test"].pictures[749].size == (224, 224)


def test_a_pattern_that_cannot_be_matched_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot be matched: .*; write \*\* as a folder of its own"):
        find_files(f"{tmp_path}/**.tar")
