"""What is drawn of a run: the same bytes for the same run, at any width, and nothing that a name could do."""

import base64
import hashlib
import io
import math
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from conftest import made_up_leaderboard, made_up_ledger, made_up_result
from rich.console import Console

from hyperalign.run import Run, create_run, finish_run, load_run
from hyperalign.show import words
from hyperalign.show.page import render_page, write_page
from hyperalign.show.progress import Display
from hyperalign.show.table import render_run
from hyperalign.show.view import draw_board

WIDTHS = (40, 60, 80, 120, 200)


def finish(folder: Path, table: pd.DataFrame) -> Run:
    run = create_run(folder, label="made up", configuration={"data": "<script>alert(1)</script>", "task": "retrieval"})
    return finish_run(run, made_up_result(), leaderboard=table, ledger=made_up_ledger())


def printed(run: Run, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(render_run(run, width=width))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


class Tags(HTMLParser):
    """Counts tags and refuses a page whose tags do not close."""

    def __init__(self, page: str) -> None:
        """Read a whole page."""
        super().__init__()
        self.names: list[str] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag, and that it must be closed."""
        self.names.append(tag)
        if tag not in ("meta", "br", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Close the tag that was opened last."""
        assert self.open.pop() == tag


@pytest.mark.parametrize(
    ("word", "number", "text"),
    [
        (words.count, 21_665_664, "21.7M"),
        (words.count, 950, "950"),
        (words.count, math.nan, "–"),
        (words.flops, 1.536e12, "1.54 TFLOP"),
        (words.flops, 374e15, "374 PFLOP"),
        (words.flops, 0, "0 FLOP"),
        (words.size, 1_500_000_000, "1.50 GB"),
        (words.size, 0, "–"),
        (words.duration, 0.25, "0.25 s"),
        (words.duration, 0.00892, "9 ms"),
        (words.duration, 59.96, "1 min 00 s"),
        (words.duration, 12_000, "3 h 20 min"),
        (words.points, 41.204, "41.20"),
        (words.times, 30.96, "31.0×"),
        (words.times, 0.417, "0.42×"),
        (words.times, math.inf, "–"),
    ],
)
def test_numbers_are_said_in_three_figures(word: object, number: float, text: str) -> None:
    assert callable(word)

    assert word(number) == text


def test_a_name_cannot_steer_a_terminal() -> None:
    assert words.clean("a\x1b[31mred\r\n\u202eb\x9b1m") == "a\\u001b[31mred\\u000d\\u000a\\u202eb\\u009b1m"


def test_the_order_is_that_of_the_method_that_answers(finished_run: Run) -> None:
    board = draw_board(finished_run)

    assert board.method == "hypernet · both"
    assert [row.image for row in board.rows] == ["small-vit", "tiny-net", "wide-net"]
    assert [row.score for row in board.rows] == [47.5, 45.0, 42.5]


def test_another_method_stands_beside_as_the_mean_of_its_seeds(finished_run: Run) -> None:
    board = draw_board(finished_run)

    assert board.others == ("ape · text",)
    assert board.rows[0].others == (48.5,)  # of 49 and 48


def test_a_method_that_did_not_see_a_pair_leaves_its_place_empty(tmp_path: Path) -> None:
    table = made_up_leaderboard()
    unseen = (table["method"] == "ape") & (table["image_encoder"] != "small-vit")

    board = draw_board(finish(tmp_path, table[~unseen]))

    assert board.rows[0].others == (48.5,)
    assert math.isnan(board.rows[1].others[0])


@pytest.mark.parametrize("width", WIDTHS)
def test_no_line_is_wider_than_the_terminal(finished_run: Run, width: int) -> None:
    for line in printed(finished_run, width).splitlines():
        assert len(line) <= width


@pytest.mark.parametrize("width", WIDTHS)
def test_every_width_shows_the_pair_its_score_and_both_ratios(finished_run: Run, width: int) -> None:
    text = printed(finished_run, width)

    assert "small-vit" in text
    assert "47.50" in text
    assert "31.0×" in text
    assert "15.0×" in text


def test_ratios_of_the_same_two_sides_are_one_by_both_their_names(finished_run: Run) -> None:
    matched, own = finished_run.result["ratios"]
    finished_run.result["ratios"] = [matched, {**matched, "setting": own["setting"]}]

    for text in (printed(finished_run, 120), render_page(finished_run).split("<script")[0]):
        assert text.count("matched batch 512, each at its own best: 31.0×") == 1
        assert text.count("ape, text, 10 epochs, 3 pairs, computed") == 1


def test_a_wide_terminal_shows_every_column_of_the_answer(finished_run: Run) -> None:
    text = printed(finished_run, 200)

    for head in ("#", "rank", "pair", "score", "95 %", "params", "GFLOP", "latency", "training", "ape · text"):
        assert f" {head} " in text
    assert "for want of space" not in text


def test_a_narrow_terminal_says_which_columns_went(finished_run: Run) -> None:
    text = " ".join(printed(finished_run, 60).split())

    assert "not shown for want of space" in text
    assert "latency" in text


def test_the_cost_of_the_search_and_of_everything_are_added_up(finished_run: Run) -> None:
    for text in (" ".join(printed(finished_run, 120).split()), " ".join(render_page(finished_run).split())):
        assert "the search by hypernet · both: 10.0 GFLOP, 2.8 s; everything in this run: 30.0 GFLOP, 6.8 s" in text


def test_wherever_a_ratio_is_printed_its_sides_and_the_published_account_are_too(finished_run: Run) -> None:
    for text in (" ".join(printed(finished_run, 120).split()), render_page(finished_run)):
        assert "ape, text, 10 epochs, 3 pairs, computed" in text
        assert "batch 16384" in text
        assert "15×" in text
        assert "1.1×" in text
        assert "a third of the data" in text


def test_markup_in_a_name_is_printed_as_it_is(tmp_path: Path) -> None:
    run = finish(tmp_path, made_up_leaderboard(("[bold red]x[/]", "b", "c")))

    assert "[bold red]x[/]" in printed(run, 200)


def test_a_name_cannot_become_part_of_the_page(tmp_path: Path) -> None:
    attack = "<script>alert(1)</script>"
    run = finish(tmp_path, made_up_leaderboard((attack, "'\"><img src=x onerror=alert(1)>", "{{ 7 * 7 }}")))
    run.result["answer"] = [attack]
    run.result["notes"] = [attack]
    run.result["name"] = f"</title>{attack}"

    page = render_page(run)

    assert attack not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert not {"img"} & set(Tags(page).names)
    assert ">{{ 7 * 7 }}<" in page


def test_the_page_loads_nothing_and_runs_its_own_scripts_alone(finished_run: Run) -> None:
    page = unescape(render_page(finished_run).split("<style>")[0])
    page += render_page(finished_run).split("<style>")[1]
    scripts = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)

    rest = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"""(src|action)\s*=|href="[^#]|url\(|@import|http://|https://""", rest)
    assert "default-src 'none'" in page
    assert "unsafe-eval" not in page.split("<style>")[0]
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert re.findall(r"'sha256-(.*?)'", page) == digests


def test_the_tags_of_the_page_close(finished_run: Run) -> None:
    assert Tags(render_page(finished_run)).open == []


def test_the_page_is_made_for_light_and_dark_and_for_small_screens(finished_run: Run) -> None:
    page = render_page(finished_run)

    assert "prefers-color-scheme: dark" in page
    assert "width=device-width" in page


def test_the_same_run_gives_the_same_bytes(finished_run: Run) -> None:
    first = write_page(finished_run).read_bytes()

    assert write_page(load_run(finished_run.path)).read_bytes() == first


def test_a_page_needs_no_interval_no_ratio_and_no_agreement(tmp_path: Path) -> None:
    run = create_run(tmp_path, label="bare", configuration={})
    bare = made_up_leaderboard().assign(score_low=math.nan, score_high=math.nan, p_best=math.nan)
    finished = finish_run(run, {"method": "hypernet"}, leaderboard=bare, ledger=[])

    page = re.sub(r"<script>.*?</script>", "", render_page(finished), flags=re.DOTALL)

    assert "small-vit" in page
    assert "nan" not in page.lower()
    assert "None" not in page
    assert "small-vit" in printed(finished, 80)


def test_a_stage_leaves_one_plain_line_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.monotonic", lambda: 7.0)
    console = Console(file=io.StringIO(), width=40)
    with Display(console) as display:
        for done in (0, 1_000, 3_000):
            display.progress("embedding [red] with a long name, train", done, 3_000)
        display.say("and so on")

    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue() == "embedding [red] with a long name, train: 3,000\nand so on\n"


def test_a_stage_of_one_thing_has_no_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr("time.monotonic", lambda: float(next(clock)))
    console = Console(file=io.StringIO(), width=80)
    Display(console).progress("canonical coordinates", 1, 1)

    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue() == "canonical coordinates: done in 1.0 s\n"


def test_a_long_stage_speaks_now_and_then_with_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 5))
    monkeypatch.setattr("time.monotonic", lambda: float(next(clock)))
    console = Console(file=io.StringIO(), width=200)
    display = Display(console, every=10.0)
    for done in range(0, 500, 100):
        display.progress("training", done, 500)

    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert lines == ["training: 200 of 500, 20/s, 15.0 s left", "training: 400 of 500, 20/s, 5.0 s left"]
