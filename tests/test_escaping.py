"""Names, captions and notes are a stranger's: what shows them shows letters, and nothing acts on them."""

import io
import json
import re
from pathlib import Path

import pytest
from conftest import made_up_leaderboard, made_up_ledger, made_up_result
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console

from hyperalign.cli.manners import _sentence, say
from hyperalign.run import create_run, finish_run, log_event, read_log
from hyperalign.show.lists import facts_table, plain_table
from hyperalign.show.page import render_page
from hyperalign.show.shell import as_json
from hyperalign.show.table import render_run
from hyperalign.show.words import clean
from hyperalign.use.card import escape

ATTACKS = (
    *("<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "</script><!--"),
    *("[bold]x[/bold]", "[/]", "[link=file:///x]y", "\x1b[31mred\x1b[0m", "\x1b]8;;http://x\x07y"),
    *("a\nb", "a\r\rb", "\x00", "\u202egnp.exe", "a\u2028b", "\u200b"),
    *("| a | b |", "`x`", "``` \n# x", "**x**", "[a](javascript:x)", "![a](http://x)", "&lt;b&gt;"),
    *("{{ 7*7 }}", "$x^2$", "http://x.y"),
)
TEXTS = st.one_of(
    st.sampled_from(ATTACKS), st.text(max_size=60), st.lists(st.sampled_from(ATTACKS), max_size=3).map("".join)
)
MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


@given(TEXTS)
@settings(max_examples=300, deadline=None)
def test_what_is_cleaned_is_one_line_that_steers_no_terminal(text: str) -> None:
    shown = clean(text)

    assert shown.isprintable()
    assert shown.splitlines() in ([shown], [])
    assert shown == "".join(letter if letter.isprintable() else f"\\u{ord(letter):04x}" for letter in text)


@given(TEXTS)
@settings(max_examples=300, deadline=None)
def test_what_is_escaped_for_a_card_is_text_to_markdown_and_one_cell_of_a_table(text: str) -> None:
    line = MARKDOWN.parseInline(f"x {escape(text)} x")[0]
    table = MARKDOWN.parse(f"| a | b |\n|---|---|\n| x{escape(text)}x | y |\n")

    assert {token.type for token in line.children or []} <= {"text", "text_special"}
    assert [token.type for token in table].count("td_open") == 2
    shown = "".join(token.content for token in line.children or [])
    assert shown == "x " + "".join(c if c.isprintable() else f"u{ord(c):04x}" for c in text) + " x"


@given(TEXTS)
@settings(max_examples=200, deadline=None)
def test_data_in_a_page_cannot_end_its_script_and_comes_back_as_it_was(text: str) -> None:
    data = as_json({"name": text, text: [text]})

    assert not set("<>&") & set(data)
    assert json.loads(data) == {"name": text, text: [text]}


@given(TEXTS)
@settings(max_examples=100, deadline=None)
def test_tables_in_the_terminal_show_names_as_letters(text: str) -> None:
    out = io.StringIO()
    console = Console(file=out, width=2000, color_system="truecolor", force_terminal=True)
    console.print(plain_table(("name", "n"), [(text, "1")], words=1))
    console.print(facts_table([(text, text)]))

    assert "\x1b]8" not in out.getvalue()  # no link
    assert "\x1b[31m" not in out.getvalue()  # no colour of theirs
    assert "".join(clean(text).split()) in "".join(re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue()).split())


@pytest.mark.parametrize("text", ATTACKS)
def test_a_message_is_one_line_without_anything_that_steers(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = _sentence(ValueError(f"no encoder {text} in the zoo"))
    assert said is not None

    say(f"error: {said}")

    line = capsys.readouterr().err
    assert line.endswith("\n")
    assert line[:-1].isprintable()


@pytest.mark.parametrize("text", ATTACKS)
def test_a_run_of_hostile_words_is_shown_as_letters(text: str, tmp_path: Path) -> None:
    path = create_run(tmp_path, label=text, configuration={"data": text, "task": "retrieval"})
    result = {**made_up_result(), "answer": [text], "notes": [text], "counts": [text], "encoders": []}
    board = made_up_leaderboard().replace({"small-vit": text, "words": f"w{text}"})
    log_event(path, "note", text=text)
    run = finish_run(path, result, leaderboard=board, ledger=made_up_ledger())  # type: ignore[arg-type]
    out = io.StringIO()

    Console(file=out, width=160, color_system=None).print(render_run(run, width=160))
    page = render_page(run)

    assert all(line.isprintable() for line in out.getvalue().split("\n"))
    assert "<script>alert(1)" not in page
    assert "<img src=x" not in page
    assert "\x1b" not in page
    assert [line["text"] for line in read_log(path) if line["event"] == "note"] == [text]
