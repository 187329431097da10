"""Hub data sets: read through the optional library, rows of one picture put together."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from test_data import contents, picture_bytes

from hyperalign.embed.data import open_dataset

ROWS = {
    "train": [(1, "one a"), (2, "two a"), (1, "one b"), (3, "three")],
    "validation": [(4, "four")],
    "test": [(5, "five"), (6, "")],
}


@pytest.fixture
def hub() -> Any:
    """The optional library."""
    return pytest.importorskip("datasets")


def serve(hub: Any, monkeypatch: pytest.MonkeyPatch, splits: Mapping[str, Sequence[tuple[Any, Any]]]) -> list[Any]:
    """Let the library find a data set of (shade, captions); gives what it was asked for."""
    features = hub.Features({"image": hub.Image(), "caption": hub.Value("string")})
    tables = {
        name: hub.Dataset.from_dict(
            {
                "image": [{"bytes": picture_bytes(shade), "path": None} for shade, _ in rows],
                "caption": [text for _, text in rows],
            },
            features=features,
        )
        for name, rows in splits.items()
    }
    asked: list[Any] = []

    def load(*args: Any, **kwargs: Any) -> Any:
        asked.append((*args, *kwargs.values()))
        return hub.DatasetDict(tables)

    monkeypatch.setattr(hub, "load_dataset", load)
    return asked


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)

    with pytest.raises(ValueError, match=r"pip install 'hyperalign\[datasets\]'"):
        open_dataset("hf:someone/pairs")


def test_splits_of_the_hub_are_kept_and_rows_of_one_picture_put_together(
    hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = serve(hub, monkeypatch, ROWS)

    dataset = open_dataset("hf:someone/pairs:small@abc")

    assert asked == [("someone/pairs", "small", "abc")]
    assert dataset.name == "pairs"
    assert contents(dataset) == {
        "train": [(1, ["one a", "one b"]), (2, ["two a"]), (3, ["three"])],
        "val": [(4, ["four"])],
        "test": [(5, ["five"])],
    }
    assert "1 picture has no caption: test/0000001" in dataset.notes


def test_a_hub_set_of_one_split_is_split_by_hash_without_parting_a_picture(
    hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(hub, monkeypatch, {"test": [(shade, f"{shade} {word}") for word in "ab" for shade in range(120)]})

    dataset = open_dataset("hf:pairs")

    assert sum(len(split.image_ids) for split in dataset.splits.values()) == 120
    assert dataset.notes == ()  # no picture is in two splits


def test_a_second_open_reads_no_picture(hub: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    serve(hub, monkeypatch, ROWS)
    cold = open_dataset("hf:pairs", memory=tmp_path)
    told: list[str] = []

    warm = open_dataset("hf:pairs", memory=tmp_path, progress=lambda stage, *_: told.append(stage))

    assert told == []
    assert warm.splits["train"].image_digest == cold.splits["train"].image_digest


def test_columns_that_do_not_fit_are_one_sentence(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    table = hub.Dataset.from_dict({"image": ["a.png"], "caption": ["a"]})
    monkeypatch.setattr(hub, "load_dataset", lambda *_, **__: {"train": table})
    with pytest.raises(ValueError, match="column 'image' of hf:pairs must hold pictures, got Value"):
        open_dataset("hf:pairs")

    monkeypatch.setattr(hub, "load_dataset", lambda *_, **__: {"train": table.remove_columns("caption")})
    with pytest.raises(ValueError, match="hf:pairs has no column of captions: its columns are 'image'"):
        open_dataset("hf:pairs")


def test_a_hub_that_does_not_answer_is_one_sentence(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("no network\nat all")

    monkeypatch.setattr(hub, "load_dataset", fail)

    with pytest.raises(ValueError, match=r"^hf:pairs could not be opened: no network$"):
        open_dataset("hf:pairs")
    with pytest.raises(ValueError, match="a hub data set is written hf:<name>"):
        open_dataset("hf:")
