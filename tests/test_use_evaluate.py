"""A model scored on sets: by hand, by groups, on any data."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from colours import colour_model, write_colour

from hyperalign.use.evaluate import evaluate, label_scores, retrieval_scores
from hyperalign.use.opened import Trained

CLASSES = torch.eye(3)


def label_set(folder: Path) -> Path:
    """Three classes of four pictures; of red every second one is blue, and one is broken."""
    for name, colour in (("red", (250, 0, 0)), ("green", (0, 250, 0)), ("blue", (0, 0, 250))):
        for k in range(4):
            seen = (0, 0, 250) if name == "red" and k % 2 else colour
            write_colour(folder / "set" / name / f"{name}-{k}.png", seen)
    return folder / "set"


def captioned(folder: Path, *, splits: bool) -> Path:
    """Pictures of six colours with two captions each, one of yellow's wrong."""
    colours = {"red": (250, 0, 0), "green": (0, 250, 0), "blue": (0, 0, 250), "white": (250, 250, 250)}
    colours |= {"black": (0, 0, 0), "yellow": (250, 250, 0)}
    head = ["image", "caption"] + ["split"] * splits
    rows = [head]
    for k, (name, colour) in enumerate(colours.items()):
        write_colour(folder / f"{name}.png", colour)
        for caption in (name, "green" if name == "yellow" else f"all {name}"):
            rows.append([f"{name}.png", caption] + [("train", "test")[k % 2]] * splits)
    with (folder / "pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder / "pairs.csv"


def test_accuracies_by_hand() -> None:
    images = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 1]])
    labels = np.array([0, 0, 1, 2])

    scores = label_scores(images, CLASSES, labels, class_names=("a", "b", "c"))

    assert scores["zero_shot_top_1"] == pytest.approx(75)
    assert scores["mean_per_class"] == pytest.approx((50 + 100 + 100) / 3)
    assert math.isnan(scores["zero_shot_top_5"])
    assert scores["worst_class"] == {"name": "a", "n": 2, "top_1": 50.0}
    assert scores["zero_shot_top_1_low"] < 75 < scores["zero_shot_top_1_high"]


def test_the_worst_group_is_found() -> None:
    images = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 1]])
    groups = np.array([0, 1, 0, 0]), ("land", "water")

    scores = label_scores(images, CLASSES, np.array([0, 0, 1, 2]), class_names=("a", "b", "c"), groups=groups)

    assert scores["worst_group"] == {"name": "water", "n": 1, "top_1": 0.0}
    assert scores["groups"][0] == {"name": "land", "n": 3, "top_1": 100.0}


def test_pictures_without_a_direction_are_misses() -> None:
    images = torch.tensor([[1.0, 0, 0], [0, 0, 0], [math.nan, 0, 0], [0, 0, 1]])

    scores = label_scores(images, CLASSES, np.array([0, 0, 0, 2]), class_names=("a", "b", "c"))

    assert scores["zero_shot_top_1"] == pytest.approx(50)


def test_any_caption_of_a_picture_is_right_for_it() -> None:
    images = torch.eye(2)
    captions = torch.tensor([[0.0, 1], [1, 0], [0, 1], [0, 1]])  # the first is of picture 0, and wrong

    scores = retrieval_scores(images, captions, np.array([0, 0, 1, 1]))

    assert scores["t2i_recall_at_1"] == pytest.approx(75)
    assert scores["i2t_recall_at_1"] == pytest.approx(100 * (1 + 2 / 3) / 2)  # of three equal captions two are right


def test_a_label_set_is_scored_and_its_broken_picture_named(tmp_path: Path) -> None:
    folder = label_set(tmp_path)
    (folder / "green" / "green-0.png").write_bytes(b"no picture")

    record = evaluate(colour_model()[0], str(folder))

    assert (record["task"], record["n_pictures"], record["n_classes"]) == ("zero-shot", 11, 3)
    assert record["zero_shot_top_1"] == pytest.approx(100 * 9 / 11)
    assert record["mean_per_class"] == pytest.approx((50 + 100 + 100) / 3)
    assert [name for name, _ in record["bad"]] == ["green/green-0.png"]


def test_strict_stops_at_a_picture_that_cannot_be_read(tmp_path: Path) -> None:
    folder = label_set(tmp_path)
    (folder / "green" / "green-0.png").write_bytes(b"no picture")

    with pytest.raises(ValueError, match=r"with --strict .* green/green-0\.png is not"):
        evaluate(colour_model()[0], str(folder), strict=True)


@pytest.mark.parametrize("name", ["{k}/{n}", "pictures/{k}/{n}", "{n}"])
def test_groups_come_from_a_table_of_pictures(tmp_path: Path, name: str) -> None:
    folder = label_set(tmp_path)
    with (tmp_path / "metadata.csv").open("w", newline="") as file:
        rows = [(path.parent.name, path.name, int(path.stem[-1]) % 2) for path in sorted(folder.rglob("*.png"))]
        csv.writer(file).writerows([("filename", "odd"), *((name.format(k=k, n=n), odd) for k, n, odd in rows)])

    record = evaluate(colour_model()[0], str(folder), metadata=tmp_path / "metadata.csv", group_by=("class", "odd"))

    assert len(record["groups"]) == 6
    assert record["worst_group"] == {"name": "red, odd=1", "n": 2, "top_1": 0.0}


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"group_by": ("place",)}, "give both --metadata FILE and --group-by COLUMN"),
        ({"metadata": "metadata.csv", "group_by": ("place",)}, "has no column 'place'; its columns are 'path', 'odd'"),
        ({"metadata": "metadata.csv", "group_by": ("odd",)}, "has no row for the picture 'blue/blue-0.png'"),
        ({"split": "test"}, "a label set has no splits, got --split test"),
        ({"templates": ("a {} {}",)}, "one gap"),
    ],
)
def test_what_cannot_be_grouped_is_one_sentence(tmp_path: Path, given: dict[str, Any], sentence: str) -> None:
    folder = label_set(tmp_path)
    (tmp_path / "metadata.csv").write_text("path,odd\nred/red-0.png,0\n")
    given = {key: tmp_path / value if key == "metadata" else value for key, value in given.items()}

    with pytest.raises(ValueError, match=sentence):
        evaluate(colour_model()[0], str(folder), **given)


def test_retrieval_on_a_table_that_names_no_split_takes_all_of_it(tmp_path: Path) -> None:
    record = evaluate(colour_model()[0], str(captioned(tmp_path, splits=False)))

    assert (record["task"], record["split"], record["n_pictures"], record["n_captions"]) == ("retrieval", "all", 6, 12)
    assert record["t2i_recall_at_1"] == pytest.approx(100 * 11 / 12)
    assert record["i2t_recall_at_1"] > 90


def test_retrieval_takes_the_test_split_where_there_is_one_and_needs_no_other(tmp_path: Path) -> None:
    record = evaluate(colour_model()[0], str(captioned(tmp_path, splits=True)))

    assert (record["split"], record["n_pictures"], record["n_captions"]) == ("test", 3, 6)


def test_of_the_data_that_the_model_was_trained_on_only_its_own_test_split_is_taken(tmp_path: Path) -> None:
    table, known = str(captioned(tmp_path, splits=False)), Trained("pairs", 5)

    own, every = (evaluate(colour_model()[0], table, known=known, split=split) for split in (None, "all"))

    assert (own["split"], every["split"], every["n_pictures"]) == ("test", "all", 6)
    assert own["n_pictures"] < 6
    assert "the model was trained on it" in own["notes"][0]


def test_a_split_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no val pictures \(there are: train 3, test 3\)"):
        evaluate(colour_model()[0], str(captioned(tmp_path, splits=True)), split="val")


def test_templates_of_the_user_go_before_those_of_the_label_set(tmp_path: Path) -> None:
    folder = label_set(tmp_path)
    (tmp_path / "set.json").write_text(json.dumps({"classes": ["blue", "green", "red"], "templates": ["white {}"]}))

    own, given = (evaluate(colour_model()[0], str(folder), templates=one) for one in ((), ("{}", "all {}")))

    assert (own["n_templates"], given["n_templates"]) == (1, 2)


def test_a_limit_takes_pictures_of_every_class(tmp_path: Path) -> None:
    record = evaluate(colour_model()[0], str(label_set(tmp_path)), limit=6)

    assert record["n_pictures"] == 6
    assert record["zero_shot_top_1"] == pytest.approx(100)  # the first and third of each class


def test_what_means_nothing_to_the_model_is_a_miss_and_counted(tmp_path: Path) -> None:
    folder = label_set(tmp_path)
    (folder / "green").rename(folder / "zygote")
    table = captioned(tmp_path, splits=False)
    table.write_text(table.read_text().replace("all black", "quux"))

    labels, pairs = (evaluate(colour_model()[0], str(source)) for source in (folder, table))

    assert labels["notes"] == ["1 class has no word that the model knows; their pictures are misses"]
    assert labels["worst_class"]["name"] == "zygote"
    assert pairs["notes"][-1] == "1 caption has no word that the model knows; they are misses"
    assert pairs["n_captions"] == 12
