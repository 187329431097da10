"""Label sets: a folder and a tar of `class/picture` are the same set, and words come from the file beside."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from test_data import picture_bytes, refuses_label_set, write_pictures, write_tar

from hyperalign.embed.data import open_dataset, open_label_set

BENCH = os.environ.get("HYPERALIGN_BENCH")

NAMES = ("cat/b.png", "cat/a.png", "dog/a.png", "fire_truck/x.png")


def folder_set(root: Path, names: Sequence[str] = NAMES, words: Any = None) -> Path:
    write_pictures(root / "pets", names)
    if words is not None:
        (root / "pets.json").write_text(words if isinstance(words, str) else json.dumps(words))
    return root / "pets"


def test_a_folder_of_classes_is_a_label_set(tmp_path: Path) -> None:
    found = open_label_set(str(folder_set(tmp_path)))

    assert found.name == "pets"
    assert found.class_names == ("cat", "dog", "fire truck")
    assert found.image_ids == ["cat/a.png", "cat/b.png", "dog/a.png", "fire_truck/x.png"]
    assert found.labels.tolist() == [0, 0, 1, 2]
    assert [np.asarray(found.pictures[index])[0, 0, 0].item() for index in range(4)] == [1, 0, 2, 3]
    assert found.groups is None


def test_prompts_come_class_by_class(tmp_path: Path) -> None:
    words = {"templates": ["a photo of a {}.", "one {}, drawn"]}

    found = open_label_set(str(folder_set(tmp_path, words=words)))

    assert found.prompts()[:3] == ["a photo of a cat.", "one cat, drawn", "a photo of a dog."]
    assert len(found.prompts()) == 6


@pytest.mark.parametrize("top", ["", "./", "pets/", "./pets/"])
def test_a_tar_and_a_folder_are_the_same_set(tmp_path: Path, top: str) -> None:
    names = list(NAMES)
    members: dict[str, bytes | str] = {top + name: picture_bytes(shade) for shade, name in enumerate(names)}
    tar = write_tar(tmp_path / "tars/pets.tar", {**members, top + "cat/notes.txt": "not a picture"})

    packed, loose = open_label_set(str(tar)), open_label_set(str(folder_set(tmp_path)))

    assert packed.image_ids == loose.image_ids
    assert (packed.image_digest, packed.text_digest) == (loose.image_digest, loose.text_digest)
    assert [packed.pictures[i].tobytes() for i in range(4)] == [loose.pictures[i].tobytes() for i in range(4)]


def test_numbered_folders_count_in_the_list_of_classes(tmp_path: Path) -> None:
    words = {"classes": ["tench", "goldfish", "shark", "ray"]}

    found = open_label_set(str(folder_set(tmp_path, ["0003/a.png", "0001/a.png"], words)))

    assert found.class_names == ("tench", "goldfish", "shark", "ray")
    assert dict(zip(found.image_ids, found.labels.tolist(), strict=True)) == {"0001/a.png": 1, "0003/a.png": 3}


@pytest.mark.parametrize(
    ("classes", "labels"),
    [
        (["dog", "cat", "fire_truck"], [1, 1, 0, 2]),  # folders bear the names
        (["Katze", "Hund", "Feuerwehr"], [0, 0, 1, 2]),  # as many names as folders: in their order
        ({"dog": "Hund", "fire_truck": "Feuerwehr", "cat": "Katze", "eel": "Aal"}, [2, 2, 0, 1]),
    ],
    ids=["names", "order", "folder to name"],
)
def test_classes_are_matched_by_name_by_order_or_by_folder(tmp_path: Path, classes: Any, labels: list[int]) -> None:
    found = open_label_set(str(folder_set(tmp_path, words={"classes": classes})))

    of = dict(zip(found.image_ids, found.labels.tolist(), strict=True))
    assert [of[name] for name in ("cat/a.png", "cat/b.png", "dog/a.png", "fire_truck/x.png")] == labels


@pytest.mark.parametrize("kind", [".csv", ".jsonl", ".parquet"])
def test_groups_are_read_from_a_column_of_a_table(tmp_path: Path, kind: str) -> None:
    rows = [{"filename": name, "place": "water" if name.startswith("dog") else "land", "y": 1} for name in NAMES]
    getattr(pd.DataFrame(rows), f"to_{kind[1:].replace('jsonl', 'json')}")(
        tmp_path / f"metadata{kind}", **({"orient": "records", "lines": True} if kind == ".jsonl" else {"index": False})
    )

    found = open_label_set(str(folder_set(tmp_path, words={"groups": f"metadata{kind}:place"})))

    assert found.group_names == ("land", "water")
    assert found.groups is not None
    assert found.groups.tolist() == [0, 0, 1, 0]


@pytest.mark.parametrize(
    ("groups", "sentence"),
    [
        ("nowhere.csv:place", "'TABLE:COLUMN' of a table beside it"),
        ("place", "'TABLE:COLUMN' of a table beside it"),
        ("metadata.csv:colour", "has no column 'colour'"),
        ("pictureless.csv:place", "has no column of pictures"),
    ],
)
def test_a_table_that_gives_no_groups_is_refused(tmp_path: Path, groups: str, sentence: str) -> None:
    (tmp_path / "metadata.csv").write_text("filename,place\ncat/a.png,land\n")
    (tmp_path / "pictureless.csv").write_text("name,place\ncat/a.png,land\n")

    with pytest.raises(ValueError, match=sentence):
        open_label_set(str(folder_set(tmp_path, words={"groups": groups})))


def test_groups_are_read_from_the_words(tmp_path: Path) -> None:
    groups = {name: "indoors" if name.startswith("cat") else "outdoors" for name in NAMES}

    found = open_label_set(str(folder_set(tmp_path, words={"groups": groups})))

    assert found.group_names == ("indoors", "outdoors")
    assert found.groups is not None
    assert found.groups.tolist() == [0, 0, 1, 1]


CASES: dict[str, tuple[Sequence[str], Any, str]] = {
    "no pictures": (["cat/readme.md"], None, "has no pictures; it must hold class/picture"),
    "too shallow": (["cat/a.png", "b.png"], None, r"must lie in class/picture, got 'b\.png'"),
    "too deep": (["cat/a/b.png"], None, r"must lie in class/picture, got 'cat/a/b\.png'"),
    "not JSON": (NAMES, "{", r"pets\.json is not JSON"),
    "a list": (NAMES, [1], r"pets\.json must be an object .*, got list"),
    "classes are numbers": (NAMES, {"classes": [1, 2, 3]}, "must be a list of names or folder -> name"),
    "classes are a text": (NAMES, {"classes": "cat"}, "must be a list of names or folder -> name"),
    "too few classes": (NAMES, {"classes": ["a", "b"]}, "names 2 classes but has 3 class folders"),
    "a number beyond": (["7/a.png"], {"classes": ["a"]}, "names 1 classes, but has a folder '7'"),
    "an unnamed folder": (NAMES, {"classes": {"cat": "c"}}, "has no name for the folder 'dog'"),
    "no gap": (NAMES, {"templates": ["a photo"]}, r"must have one gap, \{\}, got 'a photo'"),
    "two gaps": (NAMES, {"templates": ["{} and {}"]}, "must have one gap"),
    "templates are a text": (NAMES, {"templates": "a {}"}, "must be a list of texts"),
    "a picture without group": (NAMES, {"groups": {"cat/a.png": "x"}}, r"has no group for 'cat/b\.png'"),
    "groups are a list": (NAMES, {"groups": [1]}, "must be class/picture -> name"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_label_set_that_cannot_be_read_is_one_sentence(tmp_path: Path, case: str) -> None:
    names, words, pattern = CASES[case]

    refuses_label_set(str(folder_set(tmp_path, names, words)), pattern)


def test_a_source_that_is_neither_folder_nor_tar_is_refused(tmp_path: Path) -> None:
    refuses_label_set(str(tmp_path / "none"), "a label set is a folder or a .tar of class/picture")


def test_the_embedded_label_sets_open_by_name() -> None:
    found = open_label_set("scenes:colour-shape")

    assert found.name == "colour-shape"
    assert len(found.labels) == len(found.image_ids) == len(found.pictures)
    assert int(found.labels.max()) == len(found.class_names) - 1
    assert found.text_digest == open_label_set("scenes:colour-shape", seed=3).text_digest
    with pytest.raises(KeyError, match="colour-shape"):
        open_label_set("scenes:none")


def test_a_data_set_brings_the_label_sets_that_were_named(tmp_path: Path) -> None:
    pets = str(folder_set(tmp_path))

    dataset = open_dataset("scenes", limit=2, labels=[pets])

    assert list(dataset.label_sets) == ["colour-shape", "texture-shape", "pets"]
    with pytest.raises(ValueError, match="two label sets are called 'pets'"):
        open_dataset("scenes", limit=2, labels=[pets, pets])


@pytest.mark.bench
@pytest.mark.skipif(BENCH is None, reason="HYPERALIGN_BENCH is not set")
@pytest.mark.parametrize(
    ("name", "n_images", "n_classes"), [("cifar10_test", 2000, 10), ("imagenet_samples", 1000, 1000)]
)
def test_the_benchmark_label_sets_open(name: str, n_images: int, n_classes: int) -> None:
    found = open_label_set(str(Path(str(BENCH)) / "zeroshot" / f"{name}.tar"))

    assert (len(found.image_ids), len(found.class_names)) == (n_images, n_classes)
    assert found.pictures[n_images - 1].mode == "RGB"
