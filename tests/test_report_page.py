"""The page of a run in a browser: what a reader does, and that nothing leaves the page or gets into it.

Needs Playwright for Python and a Chromium that the system has; without them these tests are skipped.
"""

import csv
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import made_up_leaderboard, made_up_ledger, made_up_result
from made_up_grid import made_up_grid
from made_up_study import ATTACKS, made_up_study

from hyperalign.embed.zoo import Limits, Range
from hyperalign.relimit import open_run
from hyperalign.run import Run, create_run, finish_run
from hyperalign.show.address import address_of
from hyperalign.show.page import write_page
from hyperalign.show.study_page import write_study_page

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'hyperalign[browser]'")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
Page = Any


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium."""
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        )
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of 20 × 4 pairs with its page."""
    made = made_up_grid(tmp_path_factory.mktemp("grid"), 20, 4)
    write_page(made)
    return made


@contextmanager
def looked_at(
    browser: Any, path: Path, address: str = "", *, waits: str = "#board tbody tr[data-pair]", **options: Any
) -> Iterator[Page]:
    """The page, opened; whatever it fetches and whatever goes wrong in it fails the test."""
    context = browser.new_context(**{"viewport": {"width": 1300, "height": 900}, **options})
    context.set_default_timeout(100_000)  # a busy machine: what is slow is not wrong
    page = context.new_page()
    wrong: list[str] = []
    opened: list[str] = []

    def request(sent: Any) -> None:
        if not sent.url.startswith("data:"):
            (opened if sent.url.startswith("file:") else wrong).append(sent.url)

    def console(message: Any) -> None:
        if message.type in ("error", "warning"):
            wrong.append(message.text)

    def dialog(box: Any) -> None:
        wrong.append(box.message)
        box.dismiss()

    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", console)
    page.on("dialog", dialog)
    page.on("request", request)
    page.add_init_script("navigator.clipboard.writeText = async (text) => { window.copied = text; };")
    page.goto(path.as_uri() + address)
    page.wait_for_selector(waits)
    yield page
    assert wrong == []
    assert len(opened) == 1, "the page alone is read"
    context.close()


def column(page: Page, head: str) -> list[str]:
    """The cells below a head."""
    heads = page.locator("#board thead th").all_inner_texts()
    place = next(k for k, text in enumerate(heads) if text.split("\xa0")[0] == head)
    return [row.locator("td").nth(place).inner_text() for row in page.locator("#board tbody tr").all()]


def words_of(page: Page) -> dict[str, list[str]]:
    """What the address keeps."""
    page.wait_for_timeout(250)
    found: dict[str, list[str]] = page.evaluate(
        "Object.fromEntries([...new Set(new URLSearchParams(location.hash.slice(1)).keys())]"
        ".map((key) => [key, new URLSearchParams(location.hash.slice(1)).getAll(key)]))"
    )
    return found


def move(page: Page, label: str, step: int) -> None:
    """Put a handle of a limit on its step."""
    page.get_by_label(label).evaluate(
        "(input, step) => { input.value = step; input.dispatchEvent(new Event('input')); }", step
    )


def show(page: Page, name: str) -> Any:
    """A figure, scrolled to and drawn."""
    figure = page.locator(f"#figure-{name}")
    figure.scroll_into_view_if_needed()
    page.wait_for_selector(f"#figure-{name} .bk-Figure", state="attached")
    return figure


def pairs_of(page: Page) -> list[tuple[str, str]]:
    return list(zip(column(page, "image encoder"), column(page, "text encoder"), strict=True))


def test_the_page_draws_all_its_figures_and_fetches_nothing(browser: Any, run: Run) -> None:
    with looked_at(browser, run.path / "report.html") as page:
        for name in ("scatter", "heatmap", "recall", "ledger"):
            assert show(page, name).get_attribute("aria-label")


def test_a_head_sorts_and_says_so(browser: Any, run: Run) -> None:
    with looked_at(browser, run.path / "report.html") as page:
        page.get_by_role("button", name="score", exact=True).click()
        scores = [float(text) for text in column(page, "score")]

        assert scores == sorted(scores, reverse=True)
        assert page.locator("th[aria-sort=descending]").inner_text().startswith("score")
        page.get_by_role("button", name="image encoder", exact=True).click()
        names = column(page, "image encoder")
        assert names == sorted(names)
        assert words_of(page)["sort"] == ["image"]


def test_the_first_view_is_the_order_of_the_run(browser: Any, run: Run) -> None:
    table = run.leaderboard.sort_values("position").head(50)
    with looked_at(browser, run.path / "report.html") as page:
        assert pairs_of(page) == list(zip(table["image_encoder"], table["text_encoder"], strict=True))
        assert [text.rstrip("=") for text in column(page, "rank")] == [str(rank) for rank in table["rank"]]
        shared = table["rank"].map(run.leaderboard["rank"].value_counts()) > 1
        assert [text.endswith("=") for text in column(page, "rank")] == shared.tolist()


def test_a_limit_ranks_anew_as_the_program_does(browser: Any, run: Run) -> None:
    limits = Limits(image_params=Range(low=4_000_000, high=12_000_000), dim=Range(high=768), licenses=("mit",))
    table, *_, answer = open_run(run).under(limits)
    with looked_at(browser, run.path / "report.html") as page:
        move(page, "Image parameters: at most", 11)
        move(page, "Image parameters: at least", 3)
        move(page, "Image width: at most", 1)
        page.get_by_role("button", name="MIT").click()
        playwright.expect(page.locator("#board tbody tr")).to_have_count(len(table))
        assert pairs_of(page) == list(zip(table["image_encoder"], table["text_encoder"], strict=True))
        assert [int(text.rstrip("=")) for text in column(page, "rank")] == table["rank"].tolist()
        chances = [0.0 if text == "<0.01" else float(text) for text in column(page, "P(best)")]
        np.testing.assert_allclose(chances, table["p_best"], atol=0.02)
        assert words_of(page)["budget"] == ["4000000:12000000"]
        assert "--budget 4000000:12000000" in page.locator("#command").inner_text()
        assert "--license MIT" in page.locator("#command").inner_text()
        winner = f"{table['image_encoder'][0]} + {table['text_encoder'][0]}"
        assert page.locator("#winner").inner_text() == winner
        said = page.locator("#sentence").inner_text()
        chance = re.compile(r"probability \d\.\d\d")
        assert chance.sub("probability", said) == chance.sub("probability", answer)


def test_a_link_brings_back_what_was_seen(browser: Any, run: Run) -> None:
    with looked_at(browser, run.path / "report.html") as page:
        move(page, "Text parameters: at most", 1)
        page.get_by_role("searchbox").fill("image-00")
        page.get_by_role("button", name="P(best)").click()
        page.locator("#board tbody tr").nth(2).get_by_role("checkbox").check()
        page.locator("#board tbody tr").nth(4).get_by_role("checkbox").check()
        page.locator("#columns").evaluate("(menu) => menu.querySelector('[data-column=validation]').click()")
        seen, address = page.locator("#board").inner_text(), page.evaluate("location.hash")
        page.wait_for_timeout(300)
        address = page.evaluate("location.hash")

    with looked_at(browser, run.path / "report.html", address) as page:
        assert page.locator("#board").inner_text() == seen
        assert page.locator("#selected .picked").count() == 2
        assert page.get_by_role("searchbox").input_value() == "image-00"


def test_a_link_within_the_page_keeps_what_was_asked(browser: Any, run: Run) -> None:
    with looked_at(browser, run.path / "report.html", "#budget=:3000000") as page:
        page.locator(".skip").focus()
        page.keyboard.press("Enter")
        page.wait_for_url(lambda url: "#leaderboard" not in url)  # the browser tells the page of it a moment later

        assert words_of(page) == {"budget": [":3000000"]}
        assert page.locator("#within").inner_text() == "12 of 80 pairs"


def test_the_limits_of_the_command_line_open_the_page_at_them(browser: Any, run: Run) -> None:
    limits = Limits(gflops=Range(high=3 * 0.123456789), text_params=Range(low=2_000_000), licenses=("Apache-2.0",))
    table = open_run(run).under(limits).table

    with looked_at(browser, run.path / "report.html", address_of(limits)) as page:
        assert pairs_of(page) == list(zip(table["image_encoder"], table["text_encoder"], strict=True))


def test_a_row_opens_its_pair_and_escape_leads_back(browser: Any, run: Run) -> None:
    best = run.leaderboard.sort_values("position").iloc[0]
    pair = f"{best['image_encoder']}+{best['text_encoder']}"
    with looked_at(browser, run.path / "report.html") as page:
        page.locator("#board button.open").first.focus()
        page.keyboard.press("Enter")

        text = page.locator("#drawer").inner_text()
        assert f"{best['score']:.2f}" in text
        assert f"--pair {pair}" in text
        assert "Apache-2.0" in text or "MIT" in text
        assert words_of(page) == {"pair": [pair], "open": [pair]}
        page.keyboard.press("Escape")
        assert page.locator("#drawer").is_hidden()
        assert page.evaluate("document.activeElement.className") == "open"


def test_arrow_keys_go_through_a_figure_and_select_everywhere(browser: Any, run: Run) -> None:
    with looked_at(browser, run.path / "report.html") as page:
        show(page, "heatmap")
        page.locator("#figure-heatmap").focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Enter")

        page.wait_for_url(lambda url: "open=" in url)  # the address follows what is drawn
        [pair] = words_of(page)["open"]
        assert "score" in page.locator("#spoken").inner_text()
        playwright.expect(page.locator("#recall-pairs li")).to_have_count(1)
        assert page.locator("#recall-pairs li").all_inner_texts() == [pair]
        assert page.locator("#drawer-title").inner_text() == pair.replace("+", " + ")


def test_hovering_names_a_pair_and_a_click_selects_it(browser: Any, run: Run) -> None:
    best = run.leaderboard.groupby("text_encoder")["score"].mean().idxmax()
    with looked_at(browser, run.path / "report.html") as page:
        box = show(page, "heatmap").bounding_box()
        page.wait_for_timeout(500)
        at = (box["x"] + box["width"] / 2, box["y"] + 14)
        page.mouse.move(*at)
        page.wait_for_selector("#figure-heatmap .tip:not([hidden])")
        named = page.locator("#figure-heatmap .tip .head").inner_text()
        page.mouse.click(*at)
        page.wait_for_selector("#selected .picked")

        assert named.endswith(f" + {best}"), "the best text encoder stands on top"
        assert words_of(page)["pair"] == [named.replace(" + ", "+")]


def test_what_is_shown_is_copied(browser: Any, run: Run) -> None:
    with looked_at(browser, run.path / "report.html") as page:
        page.get_by_role("searchbox").fill("image-003 text-1")
        page.get_by_role("button", name="Copy CSV").click()
        [values] = csv.DictReader(page.evaluate("window.copied").splitlines())

        assert (values["image encoder"], values["text encoder"]) == ("image-003", "text-1")
        assert float(values["GFLOP, image"]) == 4 * 0.123456789
        page.get_by_role("button", name="Copy Markdown").click()
        rows = page.evaluate("window.copied").splitlines()
        assert len(rows) == 3
        assert {row.count("|") for row in rows} == {rows[0].count("|")}


def test_a_name_is_shown_and_does_nothing(browser: Any, tmp_path: Path) -> None:
    attacks = (
        "<script>alert(1)</script>",
        "'\"><img src=x onerror=alert(1)>",
        "=1+1</script><script>alert(2)</script>",
    )
    path = create_run(tmp_path, label="attack", configuration={"task": "retrieval"})
    finished = finish_run(
        path,
        {**made_up_result(), "answer": [attacks[0]]},
        leaderboard=made_up_leaderboard(attacks),
        ledger=made_up_ledger(),
    )
    write_page(finished)

    with looked_at(browser, finished.path / "report.html") as page:
        assert column(page, "image encoder") == list(attacks)
        page.locator("#board button.open").first.click()
        assert attacks[0] in page.locator("#drawer").inner_text()
        show(page, "scatter")
        page.locator("#figure-scatter").focus()
        page.keyboard.press("ArrowRight")
        page.get_by_role("button", name="Copy CSV").click()
        assert "\"'=1+1" in page.evaluate("window.copied") or "'=1+1" in page.evaluate("window.copied")
        assert page.evaluate("document.querySelectorAll('main img').length") == 0


def test_a_script_that_is_not_of_the_page_does_not_run(browser: Any, run: Run) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.goto((run.path / "report.html").as_uri())

    page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), { textContent: 'window.ran = 1' }))"
    )

    assert page.evaluate("window.ran") is None
    context.close()


def test_a_run_without_hits_can_be_limited_and_claims_no_chances(browser: Any, finished_run: Run) -> None:
    write_page(finished_run)
    with looked_at(browser, finished_run.path / "report.html") as page:
        move(page, "Image parameters: at most", 1)

        assert column(page, "image encoder") == ["small-vit", "tiny-net"]
        assert set(column(page, "P(best)")) == {"–"}


@pytest.mark.parametrize("width", [390, 800, 1300])
def test_nothing_is_wider_than_the_screen(browser: Any, run: Run, width: int) -> None:
    with looked_at(browser, run.path / "report.html", viewport={"width": width, "height": 800}) as page:
        page.locator("#figure-ledger").scroll_into_view_if_needed()
        page.wait_for_timeout(300)

        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_dark_page_is_dark(browser: Any, run: Run) -> None:
    with looked_at(browser, run.path / "report.html", color_scheme="dark") as page:
        shade = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")

        assert max(shade) < 60


def test_without_scripts_the_answer_and_the_first_pairs_are_there(browser: Any, run: Run) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((run.path / "report.html").as_uri())

    assert page.locator("#board tbody tr").count() == 50
    assert "30 more pairs in leaderboard.csv" in page.locator("noscript").inner_text()
    context.close()


def test_two_runs_say_what_rose_and_what_it_cost(browser: Any, run: Run, tmp_path: Path) -> None:
    other = made_up_grid(tmp_path, 20, 3, seed=1)
    path = write_page(run, [other])

    with looked_at(browser, path) as page:
        text = page.locator("#versus").inner_text()
        assert "60 pairs are in both" in text
        assert "20 pairs only here" in text
        assert "1.00× as much" in text
        change = next(text for text in page.locator("#board thead th").all_inner_texts() if "change from" in text)
        first = run.leaderboard.sort_values("position").iloc[0]
        beside = other.leaderboard.set_index(["image_encoder", "text_encoder"])["score"]
        pair = (first["image_encoder"], first["text_encoder"])
        moved = f"{abs(first['score'] - beside[pair]):.2f}" if pair in beside.index else "–"
        assert column(page, change)[0].lstrip("+−±") == moved


STUDY = {"waits": "#trials button.open"}  # what is there when a study's page is ready


@pytest.mark.parametrize("objectives", [1, 2])
def test_a_study_draws_its_figures_and_says_them(browser: Any, tmp_path: Path, objectives: int) -> None:
    made_up_study(tmp_path, objectives=objectives)

    with looked_at(browser, write_study_page(tmp_path), **STUDY) as page:
        said = show(page, "study-history").get_attribute("aria-label")
        assert said.startswith("Best so far" if objectives == 1 else "Pareto front of 7 trials")
        assert "learning rate 75 per cent" in show(page, "study-importance").get_attribute("aria-label")
        assert "batch size: 256 in the best trial" in show(page, "study-slices").get_attribute("aria-label")
        assert page.locator("#figure-study-slices .bk-Figure").count() == 3


def test_trials_are_sorted_and_those_without_a_value_stand_last(browser: Any, tmp_path: Path) -> None:
    made_up_study(tmp_path)

    with looked_at(browser, write_study_page(tmp_path), **STUDY) as page:
        score = page.get_by_role("button", name="mean score on validation / %")
        score.click()
        rising = page.locator("#trials tbody td:nth-child(3)").all_inner_texts()
        score.click()
        falling = page.locator("#trials tbody td:nth-child(3)").all_inner_texts()

        assert rising == ["10", "12", "13", "16", "18", "19", "21", *["–"] * 5]
        assert falling[:7] == rising[6::-1]
        assert falling[7:] == ["–"] * 5
        assert page.locator("#trials th[aria-sort=descending]").inner_text().startswith("mean score")


def test_arrow_keys_go_from_trial_to_trial_and_open_the_row(browser: Any, tmp_path: Path) -> None:
    made_up_study(tmp_path)

    with looked_at(browser, write_study_page(tmp_path), **STUDY) as page:
        show(page, "study-history")
        page.locator("#figure-study-history").focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")

        assert page.locator("#spoken").inner_text().startswith("trial 1, pruned, ")
        assert page.locator("#trials tr.opened td").first.inner_text() == "1"
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.closest('tr').cells[0].textContent") == "1"


def test_choices_and_errors_of_a_study_do_nothing(browser: Any, tmp_path: Path) -> None:
    made_up_study(tmp_path)

    with looked_at(browser, write_study_page(tmp_path), **STUDY) as page:
        show(page, "study-slices")
        page.locator("#trials tbody tr", has_text="failed").click()

        assert ATTACKS[1] in page.locator("#trials").inner_text()
        assert ATTACKS[2] in page.locator("#spoken").inner_text()
        assert page.evaluate("document.querySelectorAll('main img').length") == 0


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1300, "dark")])
def test_a_study_on_the_page_of_its_run_is_no_wider_than_the_screen(
    browser: Any, tmp_path: Path, width: int, scheme: str
) -> None:
    made = made_up_grid(tmp_path, 4, 2)
    made_up_study(made.path)

    with looked_at(browser, write_page(made), viewport={"width": width, "height": 800}, color_scheme=scheme) as page:
        show(page, "study-history")
        page.wait_for_timeout(300)

        assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.slow
def test_nine_thousand_pairs_open_in_two_seconds_and_a_slider_answers_in_a_tenth(browser: Any, tmp_path: Path) -> None:
    path = write_page(made_up_grid(tmp_path, 300, 30, n_test=300))

    with looked_at(browser, path) as page:
        opened = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
        answers = page.evaluate(SLIDE)

    assert path.stat().st_size < 6_000_000
    assert opened < 2_000
    assert float(np.median(answers)) < 100


SLIDE = """async () => {
  const input = document.querySelector('#sliders input[aria-label*="at most"]');
  const painted = () => new Promise((done) => requestAnimationFrame(() => {
    const channel = new MessageChannel();
    channel.port1.onmessage = done;
    channel.port2.postMessage(0);
  }));
  const move = async (step) => {
    const start = performance.now();
    input.value = step; input.dispatchEvent(new Event('input')); await painted();
    return performance.now() - start;
  };
  await move(280); await new Promise((done) => setTimeout(done, 1500));
  const took = []; for (let step = 250; step > 100; step -= 10) took.push(await move(step));
  return took;
}"""
