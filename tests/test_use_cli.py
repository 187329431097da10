"""`classify`, `index`, `retrieve` and `evaluate` as they are typed."""

import json
from pathlib import Path

import pytest
from colours import colour_model, write_colour, write_colours

from hyperalign.cli import main


@pytest.fixture(autouse=True)
def _colours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A model that needs no network, and a folder of one's own."""
    monkeypatch.setattr("hyperalign.use.opened.open_model", lambda path, pair=None, trust_code=False: colour_model()[0])
    monkeypatch.chdir(tmp_path)
    Path("model").mkdir()


def run(*words: str) -> int:
    """The exit status of a command."""
    with pytest.raises(SystemExit) as stopped:
        main(list(words))
    return int(stopped.value.code or 0)


def records(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    """What was printed, as JSON lines."""
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_pictures_are_sorted_into_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    write_colour(Path("photos/rose.png"), (250, 0, 0))
    Path("photos/broken.jpg").write_bytes(b"no picture")

    status = run("classify", "model", "photos", "--labels", "red,blue", "--top", "1")

    printed = capsys.readouterr()
    lines = [json.loads(line) for line in printed.out.splitlines()]
    assert status == 0
    assert [line["path"] for line in lines] == ["photos/broken.jpg", "photos/rose.png"]
    assert lines[1]["labels"][0]["label"] == "red"
    assert "1 of 2 pictures cannot be read and are left out" in printed.err
    assert "photos/broken.jpg" in printed.err


def test_a_file_of_lines_takes_its_name_when_it_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    write_colours(Path("photos"), 3)

    status = run("classify", "model", "photos", "--labels", "red,blue", "--out", "sorted.jsonl")

    assert (status, capsys.readouterr().out) == (0, "sorted.jsonl\n")
    assert len(Path("sorted.jsonl").read_text().splitlines()) == 3


def test_pictures_are_indexed_and_found_again(capsys: pytest.CaptureFixture[str]) -> None:
    write_colours(Path("photos"), 12)
    write_colour(Path("photos/rose.png"), (250, 0, 0))

    made = run("index", "model", "photos")
    said = capsys.readouterr()
    found = run("retrieve", "photos.index", "red", "-k", "2")

    lines = records(capsys)
    assert (made, found, said.out) == (0, 0, "photos.index\n")
    assert "13 pictures, 13 embedded now" in said.err
    assert "recall@10 against looking at every row 1.000" in said.err
    assert [line["position"] for line in lines] == [1, 2]
    assert str(lines[0]["path"]).endswith("photos/rose.png")


def test_pictures_and_a_file_of_words_are_queries_too(capsys: pytest.CaptureFixture[str]) -> None:
    write_colours(Path("photos"), 5)
    rose = write_colour(Path("photos/rose.png"), (250, 0, 0))
    Path("words.txt").write_text("red\n\nall blue\n", encoding="utf-8")
    run("index", "model", "photos", "--to", "here")
    capsys.readouterr()

    run("retrieve", "here", "green", "zygote", "--queries", "words.txt", "--picture", str(rose), "-k", "1")

    printed = capsys.readouterr()
    queries = [json.loads(line)["query"] for line in printed.out.splitlines()]
    assert queries == ["green", "red", "all blue", "photos/rose.png"]
    assert "words knows no word of 'zygote'" in printed.err


def test_words_of_any_length_that_mean_nothing_are_named_by_their_beginning(capsys: pytest.CaptureFixture[str]) -> None:
    write_colours(Path("photos"), 5)
    run("index", "model", "photos", "--to", "here")
    capsys.readouterr()

    run("retrieve", "here", "zygote " * 5_000)

    assert capsys.readouterr().err.endswith(f"no word of '{'zygote ' * 8}zyg…'; nothing is found for it\n")


def test_a_path_that_is_looked_up_as_words_comes_with_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    write_colours(Path("photos"), 5)
    Path("red").write_bytes(b"a file that is called like a colour")
    run("index", "model", "photos", "--to", "here")
    capsys.readouterr()

    run("retrieve", "here", "red", "GREEN.JPG", "blue", "red " * 5_000, "-k", "1")

    printed = capsys.readouterr()
    hints = [line for line in printed.err.splitlines() if "--picture" in line]
    assert hints == [
        f"note: {path!r} is looked up as words; --picture looks for what is like a picture"
        for path in ("red", "GREEN.JPG")
    ]
    assert [json.loads(line)["query"] for line in printed.out.splitlines()] == ["red", "blue", "red " * 5_000]


def test_scores_are_a_table_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    for name, colour in (("red", (250, 0, 0)), ("blue", (0, 0, 250))):
        write_colour(Path(f"set/{name}/1.png"), colour)
    write_colour(Path("rose.png"), (250, 0, 0))
    write_colour(Path("sea.png"), (0, 0, 250))
    Path("pairs.csv").write_text("image,caption\nrose.png,red\nsea.png,blue\n")

    run("evaluate", "model", "--on", "set", "--on", "pairs.csv")
    table = capsys.readouterr().out
    run("evaluate", "model", "--on", "set", "--json")
    record = json.loads(capsys.readouterr().out)

    assert "eye+words: zero-shot, per cent" in table
    assert "eye+words: retrieval, per cent" in table
    assert "set: worst class 'blue', 1 picture" in table
    assert record["results"][0]["zero_shot_top_1"] == 100
    assert record["results"][0]["zero_shot_top_5"] is None  # of two classes


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["classify", "model", "nowhere", "--labels", "a,b"], "there is no nowhere; name a folder"),
        (["classify", "model", ".", "--labels", "a"], "at least two classes, got a in --labels"),
        (["index", "model", "nowhere"], "there is no nowhere"),
        (["index", "model", "empty"], "empty holds no pictures"),
        (["retrieve", "nowhere", "red"], "nowhere is no index of pictures: there is no such folder"),
        (["evaluate", "model", "--on", "nowhere.csv"], "there is no nowhere.csv"),
        (["evaluate", "model", "--on", "nowhere.csv", "--split", "half"], "got 'half'"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty").mkdir()

    status = run(*words)

    said = capsys.readouterr().err
    assert status == 2
    assert sentence in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["classify", "model", ".", "--labels", ""],
            "--labels is an empty word; give it what its help says: Names with",
        ),
        (["classify", "model", ".", "--labels="], "--labels is an empty word"),
        (["classify", "model", "", "--labels", "a,b"], "PICTURES is an empty word"),
        (["index", "model", "."], ""),
        (["index", "model", ".", ""], "FOLDER is an empty word; give it what its help says: Folders, tar shards or"),
        (["retrieve", "index", "red", "--queries", ""], "--queries is an empty word"),
        (["evaluate", "model", "--on", ""], "--on is an empty word; give it what its help says: A label set, or any"),
        (["specialise", "model", "--prompts", "", "--out", "here"], "--prompts is an empty word"),
        (["filter", "pairs.csv", "--vocabulary", "", "--out", "here"], "--vocabulary is an empty word"),
        (["search", "--data", ""], "--data is an empty word"),
        (["adapt", "model", "--labels", ""], "--labels is an empty word"),
        (["cache", "ls", "--cache-dir", ""], "--cache-dir is an empty word"),
        (["cache", "rm", ""], "PATTERN is an empty word"),
    ],
)
def test_an_empty_word_is_never_taken_for_this_folder(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_colours(Path(), 3)

    status = run(*words)

    said = capsys.readouterr().err
    assert status == (2 if sentence else 0)
    assert not sentence or said.startswith(f"error: {sentence}")


def test_a_name_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    write_colours(Path("photos"), 2)
    Path("photos/\x1b[31mred.jpg").write_bytes(b"no picture")

    run("index", "model", "photos", "--to", "here")

    assert "\x1b" not in capsys.readouterr().err


def test_an_interruption_says_that_the_same_command_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_colours(Path("photos"), 5)
    stopping = colour_model(stop_after=2)[0]
    monkeypatch.setattr("hyperalign.use.opened.open_model", lambda path, pair=None, trust_code=False: stopping)

    status = run("index", "model", "photos")

    assert status == 130
    assert "the same command goes on from there" in capsys.readouterr().err
