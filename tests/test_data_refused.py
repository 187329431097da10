"""What readers of data refuse, or pass over, one sentence each; and what a stream does at its end."""

import io
import json
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_data import picture_bytes, write_pictures, write_tar

from hyperalign.embed import pictures, streams
from hyperalign.embed.data import is_label_set, open_dataset, open_split
from hyperalign.embed.hub_data import HubPictures
from hyperalign.embed.label_sets import open_label_set, read_words
from hyperalign.embed.pictures import decode
from hyperalign.embed.plain import misfit
from hyperalign.embed.tables import plain_rows, separator
from hyperalign.embed.tar_streams import index_stream


def members_of(data: bytes, tmp_path: Path) -> tuple[list[str], str | None]:
    """Names in a shard that comes from a command, and how it broke off."""
    (tmp_path / "shard.tar").write_bytes(data)
    members, broken = index_stream(f"pipe:cat {tmp_path / 'shard.tar'}", memory=None)
    return [member.name for member in members], broken


def shard() -> bytes:
    """A folder, a sample of two members, and a file that is neither."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        inside = tarfile.TarInfo("a")
        inside.type = tarfile.DIRTYPE
        tar.addfile(inside)
        for name, data in (("a/0.png", picture_bytes(0)), ("a/0.txt", b"words"), ("a/notes.md", b"x" * 600)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_PAUSE", 0.0)


def test_folders_and_files_of_no_use_in_a_streamed_shard_are_passed_over(tmp_path: Path) -> None:
    assert members_of(shard(), tmp_path) == (["a/0.png", "a/0.txt"], None)


def test_a_streamed_shard_without_its_end_mark_keeps_what_came_and_says_so(tmp_path: Path) -> None:
    whole = shard()
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512  # the last block that holds anything

    assert members_of(whole[:end], tmp_path) == (["a/0.png", "a/0.txt"], "breaks off without an end mark")


def test_a_streamed_shard_that_ends_inside_a_text_keeps_what_came_before(tmp_path: Path) -> None:
    whole = shard()

    names, broken = members_of(whole[: whole.index(b"words") + 2], tmp_path)

    assert names == ["a/0.png"]
    assert broken is not None
    assert broken.startswith("breaks off (")


def test_a_stream_that_is_no_tar_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read as a plain, uncompressed tar"):
        members_of(b"no tar at all" * 100, tmp_path)


def test_a_command_is_ended_with_those_that_it_started(tmp_path: Path) -> None:
    pipe = streams._Pipe("printf begun; sleep 600")
    assert pipe.read(5) == b"begun"

    pipe.close()

    assert pipe._process.returncode is not None
    assert pipe._process.returncode != 0


def test_an_object_that_is_shorter_than_where_it_was_left_is_an_error() -> None:
    class Trickle(io.BytesIO):
        def seekable(self) -> bool:
            return False

    whole = Trickle(b"0123456789")
    streams._pass_over(whole, 4)
    assert whole.read() == b"456789"

    with pytest.raises(OSError, match="it is shorter than before"):
        streams._pass_over(Trickle(b"0123"), 5)


@pytest.mark.parametrize("word", ["no answer", ""])
def test_a_store_that_never_answers_is_given_up_after_some_tries(word: str) -> None:
    asked = []

    def ask() -> None:
        asked.append(1)
        raise ConnectionError(word)

    with pytest.raises(OSError, match=f"in {streams.TRIES} tries: {word or 'ConnectionError'}"):
        streams._of_store("s3://bucket/a.tar", ask)
    assert len(asked) == streams.TRIES


def test_an_address_needs_the_extra_and_its_store_s_own_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(ImportError, match=r"needs fsspec; install it with `pip install 'hyperalign\[streams\]'`"):
        streams._file_system("s3://bucket/a.tar")

    def url_to_fs(name: str) -> Any:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setitem(sys.modules, "fsspec", SimpleNamespace(core=SimpleNamespace(url_to_fs=url_to_fs)))
    with pytest.raises(ImportError, match="needs another library: Install s3fs to access S3"):
        streams._file_system("s3://bucket/a.tar")


def test_scenes_are_evaluated_split_by_split() -> None:
    with pytest.raises(ValueError, match="a split is train, val, test or all, got 'middle'"):
        open_split("scenes", split="middle")
    with pytest.raises(ValueError, match="scenes is evaluated split by split, got 'all'"):
        open_split("scenes", split="all")

    name, split, notes = open_split("scenes", split=None, limit=3)

    assert (name, len(split.pictures), notes) == ("scenes", 3, [])
    assert open_split("scenes", split="test", limit=3)[1].image_digest == split.image_digest
    assert open_split("scenes", split="val", limit=3)[1].image_digest != split.image_digest


@pytest.mark.parametrize("source", ["", " "])
def test_a_source_without_a_name_is_refused(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tar(tmp_path / "a.tar", {"cat/0.png": picture_bytes(0)})
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ValueError, match="data has no name"):
        open_dataset(source)
    with pytest.raises(FileNotFoundError, match="a label set is a folder"):
        open_label_set(source)


def test_what_a_source_is_is_seen_from_what_lies_there(tmp_path: Path) -> None:
    write_pictures(tmp_path / "classes", ["cat/0.png", "dog/0.png"])
    table = tmp_path / "pairs" / "pairs.csv"
    table.parent.mkdir()
    table.write_text("image,caption\na.png,words\n")
    labelled = write_tar(tmp_path / "labelled.tar", {"cat/0.png": picture_bytes(0), "dog/0.png": picture_bytes(1)})
    captioned = write_tar(tmp_path / "captioned.tar", {"0.png": picture_bytes(0), "0.txt": "words"})

    answers = {
        source: is_label_set(str(source))
        for source in ("scenes:colour", tmp_path / "classes", labelled, table.parent, table, captioned, "hf:any")
    }

    assert [*answers.values()] == [True, True, True, False, False, False, False]


def test_a_limit_of_no_picture_is_refused(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["a.png"])
    (tmp_path / "pairs.csv").write_text("image,caption\na.png,words\n")

    with pytest.raises(ValueError, match="limit must be at least 1 picture per split, got 0"):
        open_dataset(str(tmp_path / "pairs.csv"), limit=0)


def test_a_picture_of_more_pixels_than_are_decoded_is_refused_with_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    data = picture_bytes(0, size=(8, 6))
    monkeypatch.setattr(pictures, "MAX_PIXELS", 48)
    assert decode(data).size == (8, 6)

    monkeypatch.setattr(pictures, "MAX_PIXELS", 47)
    with pytest.raises(ValueError, match="it has 8 × 6 pixels, more than 47"):
        decode(data)


def test_a_row_of_the_hub_without_a_picture_says_so(tmp_path: Path) -> None:
    (tmp_path / "b.png").write_bytes(picture_bytes(2))
    rows = [{"image": {"bytes": picture_bytes(1)}}, {"image": None}, {"image": {"path": str(tmp_path / "b.png")}}]
    found = HubPictures(tables=[rows], column="image", home=[(0, 0), (0, 1), (0, 2)])

    assert [found[index].getpixel((0, 0)) for index in (0, 2)] == [(1, 0, 7), (2, 0, 7)]
    with pytest.raises(ValueError, match="there is no picture in its row"):
        found[1]


def test_a_picture_that_stands_twice_in_a_label_set_is_named(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        for name in ("cat/0.png", "dog/0.png", "cat/0.png"):
            info = tarfile.TarInfo(name)
            info.size = len(picture_bytes(0))
            tar.addfile(info, io.BytesIO(picture_bytes(0)))

    with pytest.raises(ValueError, match=r"'cat/0.png'.* twice"):
        open_label_set(str(tmp_path / "set.tar"))


@pytest.mark.parametrize("classes", [None, [], {}, "cat", ["cat", 3], {"a": 1}], ids=str)
def test_words_without_names_of_classes_are_refused(tmp_path: Path, classes: Any) -> None:
    file = tmp_path / "words.json"
    file.write_text(json.dumps({"classes": classes}))

    with pytest.raises(ValueError, match="must give `classes`, a list of names or folder -> name; add it"):
        read_words(file)


def test_words_are_read_from_a_list_or_by_folder(tmp_path: Path) -> None:
    file, told = tmp_path / "words.json", []
    for classes in ([" a cat ", "a dog"], {"n01": "a cat", "n02": "a dog"}):
        file.write_text(json.dumps({"classes": classes, "templates": ["a photo of {}."]}))
        told.append(read_words(file))

    assert told == [(("a cat", "a dog"), ("a photo of {}.",))] * 2


def test_any_table_is_rows_and_anything_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("one\ttwo, three\n1\t2, 3\n")
    (tmp_path / "a.jsonl").write_text('{"one": 1}\n\n{"one": 2}\n')

    assert separator(tmp_path / "a.tsv") == "\t"
    assert [*plain_rows(tmp_path / "a.tsv")] == [(2, {"one": "1", "two, three": "2, 3"})]
    assert [*plain_rows(tmp_path / "a.jsonl")] == [(1, {"one": 1}), (3, {"one": 2})]
    with pytest.raises(ValueError, match=r"a\.xlsx must be a table"):
        plain_rows(tmp_path / "a.xlsx")


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("image,caption,caption\na.png,one,two\n")

    with pytest.raises(ValueError, match="has two columns of one name among 'image', 'caption', 'caption'"):
        open_dataset(str(tmp_path / "a.csv"))


def test_two_shards_of_one_name_that_hold_the_same_picture_are_refused(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write_tar(tmp_path / folder / "000.tar", {"0.png": picture_bytes(0), "0.txt": "words"})

    with pytest.raises(ValueError, match=r"two shards with the same name and the same picture '.*0'; rename one"):
        open_dataset(str(tmp_path / "{a,b}" / "000.tar"))


def test_anything_fits_where_anything_may_stand() -> None:
    assert misfit({"a": object()}, dict[str, Any], "words") is None
    assert misfit({"a": 5}, dict[str, str], "words") == "words.a must be text, got 5"
