"""Pictures sorted by the names of classes."""

import json
import math
from pathlib import Path

import pytest
import torch
from colours import colour_model, write_colour, write_colours

from hyperalign.use.classes import Classes, class_rows, read_classes
from hyperalign.use.classify import classify, write_classified
from hyperalign.use.sources import find_pictures

COLOURS = Classes(("red", "green", "blue"), ("a photo of a {}.",))


def test_names_with_commas_are_classes() -> None:
    assert read_classes("red, green,blue") == Classes(("red", "green", "blue"), ("a photo of a {}.",))


def test_a_text_file_has_one_class_a_line(tmp_path: Path) -> None:
    (tmp_path / "colours.txt").write_text("red\n\n traffic light, green\n", encoding="utf-8")

    assert read_classes(str(tmp_path / "colours.txt")).names == ("red", "traffic light, green")


def test_the_json_of_a_label_set_gives_classes_and_templates_with_or_without_its_pictures(tmp_path: Path) -> None:
    words = {"classes": {"0": "red", "1": "blue"}, "templates": ["{}", "all {}"]}
    (tmp_path / "set.json").write_text(json.dumps(words), encoding="utf-8")
    (tmp_path / "set").mkdir()

    found = [read_classes(str(tmp_path / name)) for name in ("set.json", "set", "set.tar")]

    assert found == [Classes(("red", "blue"), ("{}", "all {}"))] * 3


def test_templates_can_be_given_instead() -> None:
    assert read_classes("red,blue", ["{} thing"]).templates == ("{} thing",)


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("red", "at least two classes, got red"),
        ("", "at least two classes, got none in --labels; --labels is a file with one class a line, or names with"),
        (",", "at least two classes, got none in --labels; --labels is a file with one class a line, or names with"),
        ("trust", "trust has no trust.json beside it that names its classes; --labels is a file with one class a line"),
        ("red,blue,red", "must differ, and 'red' stands twice"),
        ("missing.txt", "there is no missing.txt; --labels is a file with one class a line"),
        ("missing.json", "No such file"),
    ],
)
def test_labels_that_are_none_are_one_sentence(
    source: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "trust").mkdir()
    monkeypatch.chdir(tmp_path)

    with pytest.raises((ValueError, OSError), match=sentence):
        read_classes(source)


def test_a_class_is_the_mean_of_its_prompts_that_mean_something() -> None:
    model = colour_model()[0]

    rows = class_rows(model, Classes(("red", "zygote"), ("{}", "blue {}")))

    third = 1 / math.sqrt(3)
    mean = torch.tensor([third, -third - 1, -third])  # of (1, -1, -1) and of (0, -2, 0), both of length 1
    torch.testing.assert_close(rows[0], mean / mean.norm())
    torch.testing.assert_close(rows[1], torch.tensor([-third, -third, third]))  # of "blue zygote" alone


def test_probabilities_are_the_softmax_at_the_models_scale(tmp_path: Path) -> None:
    write_colour(tmp_path / "x.png", (255, 0, 0))
    model = colour_model()[0]  # its scale is 10

    record = next(classify(model, find_pictures([tmp_path]), COLOURS, top=3))

    wrong = math.exp(10 * (-1 / 3))  # the cosine of red with green and with blue; with itself it is 1
    right = math.exp(10) / (math.exp(10) + 2 * wrong)
    assert [label["label"] for label in record["labels"]] == ["red", "green", "blue"]
    assert record["labels"][0]["probability"] == pytest.approx(right, abs=1e-5)
    assert sum(label["probability"] for label in record["labels"]) == pytest.approx(1, abs=1e-5)


def test_another_scale_makes_it_more_or_less_sure(tmp_path: Path) -> None:
    write_colour(tmp_path / "x.png", (200, 100, 90))
    sources, model = find_pictures([tmp_path]), colour_model()[0]

    sure = [next(classify(model, sources, COLOURS, logit_scale=s))["labels"][0]["probability"] for s in (1.0, 50.0)]

    assert sure[0] < sure[1]


def test_a_broken_picture_has_an_error_in_place_of_labels(tmp_path: Path) -> None:
    write_colours(tmp_path, 2)
    (tmp_path / "broken.png").write_bytes(b"no picture")

    records = list(classify(colour_model()[0], find_pictures([tmp_path]), COLOURS))

    assert ["error" in record for record in records] == [True, False, False]
    assert records[0]["path"] == str(tmp_path / "broken.png")


def test_a_class_that_the_model_has_no_word_for_is_named(tmp_path: Path) -> None:
    write_colours(tmp_path, 1)

    with pytest.raises(ValueError, match="words knows no word of the class 'zygote'"):
        list(classify(colour_model()[0], find_pictures([tmp_path]), Classes(("red", "zygote"), ("{}",))))


def test_lines_are_written_and_an_interrupted_file_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hyperalign.use.classify.BLOCK", 4)
    write_colours(tmp_path / "photos", 10)
    sources, out = find_pictures([tmp_path / "photos"]), tmp_path / "sorted.jsonl"
    with pytest.raises(KeyboardInterrupt):
        write_classified(colour_model(stop_after=9)[0], sources, COLOURS, out)
    assert not out.exists()
    part = tmp_path / "sorted.jsonl.part"
    part.write_bytes(part.read_bytes() + b'{"path": "cut of')
    model, fake = colour_model()

    tally = write_classified(model, sources, COLOURS, out)

    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert (tally.n_pictures, tally.n_before, fake.seen) == (2, 8, 2)
    assert records == list(classify(colour_model()[0], sources, COLOURS))
    assert not part.exists()


def test_an_interrupted_file_of_other_labels_is_not_gone_on_with(tmp_path: Path) -> None:
    write_colours(tmp_path / "photos", 10)
    sources, out = find_pictures([tmp_path / "photos"]), tmp_path / "sorted.jsonl"
    with pytest.raises(KeyboardInterrupt):
        write_classified(colour_model(stop_after=5)[0], sources, COLOURS, out)

    with pytest.raises(ValueError, match="of another model, other labels or settings; remove it"):
        write_classified(colour_model()[0], sources, COLOURS._replace(names=("red", "blue")), out)


def test_a_file_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    write_colours(tmp_path / "photos", 1)
    (tmp_path / "sorted.jsonl").write_text("mine")

    with pytest.raises(FileExistsError, match="is there and is not written over; choose another --out"):
        write_classified(colour_model()[0], find_pictures([tmp_path / "photos"]), COLOURS, tmp_path / "sorted.jsonl")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("nowhere", "there is no .*nowhere; name a folder"),
        ("notes.md", "is no folder, no picture"),
        ("empty", "holds no"),
    ],
)
def test_pictures_that_are_none_are_one_sentence(tmp_path: Path, name: str, sentence: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.md").write_text("x")

    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        find_pictures([tmp_path / name])


def test_a_picture_that_is_named_twice_is_sorted_once(tmp_path: Path) -> None:
    path = write_colours(tmp_path, 3)[0]

    assert len(find_pictures([tmp_path, path, tmp_path])) == 3
