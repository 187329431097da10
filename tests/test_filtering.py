"""Filtering: which captions name a class, which are English, which pairs score well, and that files stay whole."""

import csv
import io
import json
import re
import string
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from hyperalign.cli import app
from hyperalign.embed.data import open_dataset, open_label_set
from hyperalign.hyperclip import filtering, table_copies, vocabulary
from hyperalign.hyperclip.filtering import LOG, Filtered, filter_data
from hyperalign.hyperclip.language import open_language
from hyperalign.hyperclip.rules import FilterConfig, threshold
from hyperalign.hyperclip.vocabulary import compile_vocabulary, named, read_vocabulary, words_of

ENGLISH = ("a brown dog runs on the beach", "two cats sleep on a sofa", "the sky over the sea at night")
GERMAN = ("ein brauner Hund läuft am Strand", "zwei Katzen schlafen auf dem Sofa")
FRENCH = ("un chien brun court sur la plage", "deux chats dorment sur le canapé")


def silent(stage: str, done: int, total: int) -> None:
    """Report to nobody."""


def write_csv(path: Path, rows: Iterable[Iterable[Any]], delimiter: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return path


def read_csv(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def read_tar(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {info.name: tar.extractfile(info).read() for info in tar}  # type: ignore[union-attr]


def run_filter(source: Path, out: Path, captions: str | None = None, **rules: Any) -> Filtered:
    return filter_data(str(source), out, FilterConfig(**rules), captions=captions, progress=silent)


# --- which classes a caption names ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "caption", "is_named"),
    [
        ("cat", "a CAT on a mat", True),
        ("cat", "one category of many", False),
        ("cat", "two cats.", True),
        ("mouse", "three mice", True),
        ("knives", "a knife", True),
        ("golden retriever", "Golden Retrievers at play", True),
        ("golden retriever", "a golden dog and a retriever", False),
        ("T-shirt", "a red t shirt", True),
        ("fire_engine", "the fire-engine", True),
        ("crane (bird)", "a crane by the lake", True),
        ("great white shark, white shark", "a white shark", True),
        ("bus", "nothing about bu", False),
        ("lens", "Len is a man", False),
        ("café", "a cafe\u0301 in Paris", True),  # a letter and an accent of its own
    ],
)
def test_a_class_is_named_by_its_words_in_either_number(name: str, caption: str, is_named: bool) -> None:
    assert (named(compile_vocabulary([name]), caption) == {0}) is is_named


def test_a_caption_may_name_several_classes_one_inside_the_other() -> None:
    vocabulary = compile_vocabulary(["dog", "hot dog", "cat"])

    assert named(vocabulary, "a hot dog for the cat") == {0, 1, 2}


WORDS = st.lists(st.sampled_from(["a", "b", "ab", "ba", "aa"]), min_size=1, max_size=4).map(" ".join)
TEXTS = st.lists(st.sampled_from(["a", "b", "ab", "ba", "aa", "as", "bs", "-", ".", "A"]), max_size=12).map(" ".join)


@settings(max_examples=300, deadline=None)
@given(names=st.lists(WORDS, min_size=1, max_size=8, unique=True), caption=TEXTS)
def test_the_compiled_matcher_finds_what_a_search_for_every_form_finds(names: list[str], caption: str) -> None:
    compiled = compile_vocabulary(names)
    text = f" {' '.join(words_of(caption))} "

    naive = {
        i for i, name in enumerate(compiled.names) for form in vocabulary._forms(name) if f" {' '.join(form)} " in text
    }

    assert named(compiled, caption) == naive


@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet=string.ascii_letters + " .,-'ßéĳ０", max_size=30))
def test_words_are_the_same_whatever_stands_between_them_and_however_large_they_are_written(text: str) -> None:
    assert words_of(text.replace(" ", " - ")) == words_of(text)
    assert all(re.fullmatch(r"[^\W_]+", word) for word in words_of(text))
    assert words_of(" ".join(words_of(text))) == words_of(text)


def test_a_vocabulary_is_read_from_text_json_and_label_sets(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("dog\n\ncat\n")
    (tmp_path / "b.json").write_text('["dog", "cat"]')
    (tmp_path / "c.json").write_text('{"classes": {"0": "dog", "1": "cat"}, "templates": ["a {}"]}')

    texts = [[name for name in read_vocabulary(str(tmp_path / file)) if name] for file in ("a.txt", "b.json", "c.json")]

    assert texts == [["dog", "cat"]] * 3
    assert read_vocabulary("scenes:colour-shape") == list(open_label_set("scenes:colour-shape").class_names)


@pytest.mark.parametrize(
    ("file", "text", "sentence"),
    [
        ("empty.txt", "\n \n", "names no class"),
        ("list.json", '{"names": []}', "must be a list of classes"),
        ("torn.json", "[", "is not JSON"),
    ],
)
def test_a_vocabulary_that_is_none_is_refused_in_a_sentence(
    tmp_path: Path, file: str, text: str, sentence: str
) -> None:
    (tmp_path / file).write_text(text)

    with pytest.raises(ValueError, match=sentence):
        read_vocabulary(str(tmp_path / file))


# --- which language ------------------------------------------------------------------------------------------------


def test_english_is_told_from_german_and_french() -> None:
    english = open_language("en")

    assert min(map(english, ENGLISH)) > 0.1 > max(map(english, (*GERMAN, *FRENCH)))
    assert english("12 / 34") < 0.1


def test_a_language_that_nobody_knows_is_refused() -> None:
    with pytest.raises(ValueError, match="'xx' is no language"):
        open_language("xx")


# --- scores --------------------------------------------------------------------------------------------------------


def test_the_threshold_is_the_score_of_the_last_pair_that_is_kept() -> None:
    assert threshold([0.1, 0.5, 0.3, 0.4, 0.2], 0.4) == 0.4
    assert threshold([1.0, 2.0], 1.0) == 1.0
    assert threshold([3.0, None, float("nan"), 1.0], 0.5) == 3.0
    assert threshold(map(float, range(30)), 0.1) == 27.0


@given(scores=st.lists(st.floats(-10, 10), min_size=1, max_size=60), share=st.floats(0.01, 1))
def test_at_least_the_share_is_kept_and_only_ties_with_the_last_exceed_it(scores: list[float], share: float) -> None:
    least = threshold(scores, share)

    assert sum(score > least for score in scores) < share * len(scores) + 1e-6
    assert sum(score >= least for score in scores) >= share * len(scores) - 1e-6


@pytest.mark.parametrize(
    ("rules", "sentence"),
    [
        ({"language": None}, "needs a rule"),
        ({"min_score": 0.3}, "need `score`"),
        ({"score": "clip"}, "needs min_score or top_share"),
        ({"score": "clip", "min_score": 0.3, "top_share": 0.2}, "not both"),
        ({"score": "clip", "top_share": 0.0}, r"in \(0, 1\]"),
        ({"min_probability": 0.0}, r"in \(0, 1\]"),
    ],
)
def test_rules_that_cannot_be_followed_are_refused(rules: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        FilterConfig(**rules)


# --- tables --------------------------------------------------------------------------------------------------------


def planted_rows() -> list[tuple[str, str, Any]]:
    captions = [*ENGLISH, *GERMAN, *FRENCH, ""]
    return [(f"p/{i}.jpg", caption, round(0.1 * i, 1)) for i, caption in enumerate(captions)]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_table_keeps_english_captions_that_name_a_class(tmp_path: Path, delimiter: str) -> None:
    source = write_csv(tmp_path / "pairs.csv", [("image", "caption", "clip"), *planted_rows()], delimiter)
    (tmp_path / "classes.txt").write_text("dog\ncat\nhund\nkatzen\nchien\nunicorn\n")

    found = run_filter(source, tmp_path / "out", vocabulary=(str(tmp_path / "classes.txt"),))

    lines = (tmp_path / "out" / "pairs.csv").read_text().splitlines()
    assert [line.split(delimiter)[1] for line in lines] == ["caption", *ENGLISH[:2]]
    assert lines[1].split(delimiter)[0] == "../p/0.jpg"
    assert found.tally.dropped == {"class": 2, "language": 3, "no caption": 1}
    assert (found.tally.n_read, found.tally.n_kept) == (8, 2)
    assert found.tally.classes == {"dog": 1, "cat": 1}
    assert found.tally.examples["class"] == [ENGLISH[2], FRENCH[1]]


def test_scores_are_a_rule_of_their_own_and_count_first(tmp_path: Path) -> None:
    rows = [*planted_rows()[:5], ("p/x.jpg", "a dog", ""), ("p/y.jpg", "a dog", "nan")]
    source = write_csv(tmp_path / "pairs.csv", [("image", "caption", "clip"), *rows])

    found = run_filter(source, tmp_path / "out", score="clip", top_share=0.8)

    assert found.least == 0.1
    assert found.tally.dropped == {"score": 1, "no score": 2, "language": 2}
    assert [row[2] for row in read_csv(tmp_path / "out" / "pairs.csv")[1:]] == ["0.1", "0.2"]


def test_the_order_of_the_rules_changes_no_pair(tmp_path: Path) -> None:
    source = write_csv(tmp_path / "pairs.csv", [("image", "caption", "clip"), *planted_rows()])
    (tmp_path / "classes.txt").write_text("dog\nsky\nhund\n")
    alone: list[set[str]] = []
    rules: list[dict[str, Any]] = [
        {"language": "en"},
        {"language": None, "vocabulary": (str(tmp_path / "classes.txt"),)},
        {"language": None, "score": "clip", "min_score": 0.1},
    ]
    for number, one in enumerate(rules):
        run_filter(source, tmp_path / str(number), **one)
        alone.append({row[1] for row in read_csv(tmp_path / str(number) / "pairs.csv")[1:]})

    run_filter(source, tmp_path / "all", **{**rules[2], **rules[1], "language": "en"})

    assert {row[1] for row in read_csv(tmp_path / "all" / "pairs.csv")[1:]} == set.intersection(*alone) == {ENGLISH[2]}


def test_lists_of_captions_lose_those_that_are_dropped(tmp_path: Path) -> None:
    rows = [
        {"image": "a.jpg", "captions": [ENGLISH[0], GERMAN[0]], "width": 3},
        {"image": "b.jpg", "captions": [FRENCH[0]]},
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = pyarrow.table(
        {
            "image": ["a.jpg", "b.jpg"],
            "captions": [[ENGLISH[0], GERMAN[0]], [FRENCH[0]]],
            "when": pyarrow.array([1, 2], pyarrow.timestamp("ns")),
            "width": pyarrow.array([3, 4], pyarrow.int16()),
        }
    )
    parquet.write_table(table, tmp_path / "pairs.parquet")

    counts = [run_filter(tmp_path / f"pairs{kind}", tmp_path / "out" / kind) for kind in (".jsonl", ".parquet")]

    kept = json.loads((tmp_path / "out" / ".jsonl" / "pairs.jsonl").read_text())
    assert kept == {"image": "../../a.jpg", "captions": [ENGLISH[0]], "width": 3}
    copy = parquet.read_table(tmp_path / "out" / ".parquet" / "pairs.parquet")
    assert copy.schema == table.schema
    assert copy.to_pydict()["captions"] == [[ENGLISH[0]]]
    assert [(found.tally.n_read, found.tally.n_kept, found.tally.n_items_kept) for found in counts] == [(3, 1, 1)] * 2


def test_a_table_without_pictures_is_filtered_by_a_column_that_is_named(tmp_path: Path) -> None:
    table = pyarrow.table({"uid": [1, 2], "words": [ENGLISH[0], GERMAN[0]], "clip": [0.3, 0.9]})
    parquet.write_table(table, tmp_path / "metadata.parquet")

    with pytest.raises(ValueError, match="name it with --captions"):
        run_filter(tmp_path / "metadata.parquet", tmp_path / "out")
    run_filter(tmp_path / "metadata.parquet", tmp_path / "other", captions="words")

    assert parquet.read_table(tmp_path / "other" / "metadata.parquet").to_pydict()["uid"] == [1]


def test_a_column_of_scores_that_is_not_there_is_named(tmp_path: Path) -> None:
    source = write_csv(tmp_path / "pairs.csv", [("image", "caption"), ("a.jpg", "a dog")])

    with pytest.raises(ValueError, match=r"no column 'clip'; its columns are 'image', 'caption'"):
        run_filter(source, tmp_path / "out", score="clip", min_score=0.1)


# --- shards --------------------------------------------------------------------------------------------------------


def planted_tar(path: Path) -> Path:
    record = {"captions": [ENGLISH[0], GERMAN[0]], "clip": 0.4, "url": "u"}
    return write_tar(
        path,
        [
            ("0.jpg", b"picture 0"),
            ("0.json", json.dumps(record).encode()),
            ("0.cls", b"7"),
            ("1.jpg", b"picture 1"),
            ("1.txt", f"{FRENCH[0]}\n{FRENCH[1]}\n".encode()),
            ("2.jpg", b"picture 2"),
            ("2.txt", f"{ENGLISH[1]}\n{FRENCH[1]}\n".encode()),
            ("3.json", json.dumps(record).encode()),
            ("4.jpg", b"picture 4"),
        ],
    )


def test_a_shard_keeps_every_file_of_a_sample_that_is_kept(tmp_path: Path) -> None:
    source = planted_tar(tmp_path / "00.tar")

    found = run_filter(source, tmp_path / "out")

    copy = read_tar(tmp_path / "out" / "00.tar")
    assert list(copy) == ["0.jpg", "0.json", "0.cls", "2.jpg", "2.txt"]
    assert json.loads(copy["0.json"]) == {"captions": [ENGLISH[0]], "clip": 0.4, "url": "u"}
    assert (copy["0.jpg"], copy["0.cls"], copy["2.txt"]) == (b"picture 0", b"7", f"{ENGLISH[1]}\n".encode())
    assert found.tally.dropped == {"language": 4, "no caption": 1, "no picture": 1}
    assert (found.tally.n_items, found.tally.n_items_kept, found.tally.n_kept) == (5, 2, 2)


def test_a_shard_is_filtered_by_a_key_of_its_json(tmp_path: Path) -> None:
    source = planted_tar(tmp_path / "00.tar")

    found = run_filter(source, tmp_path / "out", language=None, score="clip", top_share=1.0)

    assert found.least == 0.4
    assert list(read_tar(tmp_path / "out" / "00.tar")) == ["0.jpg", "0.json", "0.cls"]


def test_what_is_kept_opens_as_a_data_set_with_its_splits(tmp_path: Path) -> None:
    from PIL import Image

    picture = io.BytesIO()
    Image.new("RGB", (4, 4)).save(picture, "PNG")
    (tmp_path / "in" / "train").mkdir(parents=True)
    (tmp_path / "in" / "test").mkdir()
    (tmp_path / "in" / "val").mkdir()
    for split in ("train", "val", "test"):
        members = [(f"{i}.png", picture.getvalue() + bytes([i])) for i in range(4)]
        texts = [(f"{i}.txt", text.encode()) for i, text in enumerate([*ENGLISH, GERMAN[0]])]
        write_tar(tmp_path / "in" / split / f"{split[1]}.tar", [*members, *texts])

    found = run_filter(tmp_path / "in", tmp_path / "out")

    data = open_dataset(str(tmp_path / "out"))
    assert {name: sorted(split.captions) for name, split in data.splits.items() if split.captions}["test"] == sorted(
        ENGLISH
    )
    assert [path.relative_to(tmp_path / "out").as_posix() for path in found.files] == [
        "test/e.tar",
        "train/r.tar",
        "val/a.tar",
    ]


# --- whole or not at all -------------------------------------------------------------------------------------------


def two_tables(folder: Path) -> Path:
    folder.mkdir()
    for name in ("train.csv", "val.csv"):
        write_csv(folder / name, [("image", "caption"), *[(f"{i}.jpg", text) for i, text in enumerate(ENGLISH)]])
    return folder


def test_a_filter_that_was_cut_short_goes_on_and_counts_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = two_tables(tmp_path / "in")
    whole = run_filter(source, tmp_path / "whole")
    copies = table_copies.copy_table
    asked: list[str] = []

    def power_cut(path: Path, to: Path, *rest: Any) -> None:
        asked.append(path.name)
        if path.name == "val.csv" and len(asked) == 2:
            raise KeyboardInterrupt
        copies(path, to, *rest)

    monkeypatch.setattr(filtering, "copy_table", power_cut)
    with pytest.raises(KeyboardInterrupt):
        run_filter(source, tmp_path / "out")
    with (tmp_path / "out" / LOG).open("a") as file:
        file.write('{"file": "val.csv", "sta')

    again = run_filter(source, tmp_path / "out")

    assert asked == ["train.csv", "val.csv", "val.csv"]
    assert again.tally == whole.tally
    assert (tmp_path / "out" / "val.csv").read_text() == (tmp_path / "whole" / "val.csv").read_text()
    assert len((tmp_path / "out" / LOG).read_text().splitlines()) == 3


def test_a_copy_that_breaks_off_leaves_no_file(tmp_path: Path) -> None:
    rows = [("image", "caption"), *[(f"{i}.jpg", ENGLISH[0]) for i in range(2000)], ("torn",)]
    source = write_csv(tmp_path / "pairs.csv", rows)

    with pytest.raises(ValueError, match="cells where the header has"):
        run_filter(source, tmp_path / "out")

    assert [path.name for path in (tmp_path / "out").iterdir()] == [LOG]


def test_nothing_of_anybody_else_is_written_over(tmp_path: Path) -> None:
    source = two_tables(tmp_path / "in")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "val.csv").write_text("mine")

    with pytest.raises(ValueError, match="no filter wrote it"):
        run_filter(source, tmp_path / "out")
    with pytest.raises(ValueError, match="where the data lies"):
        run_filter(source, source)
    run_filter(source, tmp_path / "new")
    with pytest.raises(ValueError, match="filtered by other rules"):
        run_filter(source, tmp_path / "new", min_probability=0.2)

    assert (tmp_path / "out" / "val.csv").read_text() == "mine"


# --- the command ---------------------------------------------------------------------------------------------------


def test_the_command_prints_what_was_dropped_and_an_example(tmp_path: Path) -> None:
    source = write_csv(tmp_path / "pairs.csv", [("image", "caption", "clip"), *planted_rows()])

    done = CliRunner().invoke(app, ["filter", str(source), "--out", str(tmp_path / "out")])

    assert done.exit_code == 0
    assert re.search(r"read +8", done.stdout)
    assert re.search(r"another language +4 +50.0 % +ein brauner Hund", done.stdout)
    assert re.search(r"kept +3 +37.5 %", done.stdout)


def test_the_command_prints_json_alone(tmp_path: Path) -> None:
    source = write_csv(tmp_path / "pairs.csv", [("image", "caption", "clip"), *planted_rows()])
    words = ["filter", str(source), "--out", str(tmp_path / "out"), "--language", "any", "--score", "clip"]

    done = CliRunner().invoke(app, [*words, "--min-score", "0.65", "--json"])

    found = json.loads(done.stdout)
    assert (found["n_kept"], found["least_score"], found["dropped"]["score"]) == (0, 0.65, 7)
    assert found["files"] == []


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--language", "any"], "a filter needs a rule"),
        (["--vocabulary", "nowhere.txt"], "a vocabulary is a text file"),
        (["--top-share", "0.2"], "need `score`"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path: Path, words: list[str], sentence: str) -> None:
    source = write_csv(tmp_path / "pairs.csv", [("image", "caption"), ("a.jpg", "a dog")])

    done = CliRunner().invoke(app, ["filter", str(source), "--out", str(tmp_path / "out"), *words])

    assert done.exit_code == 2
    assert done.stderr.startswith("error: ")
    assert sentence in done.stderr
    assert not (tmp_path / "out").exists()
