"""What a run says of itself: the baseline beside the winner, what was cut short, and what each would have cost."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hyperalign.account import compute_ratios, describe_checked, note_left_out, note_unfinished, sum_up
from hyperalign.forecast import forecast, hollow_grid
from hyperalign.ledger import Line
from hyperalign.request import SearchConfig
from hyperalign.scoring import scoring_flops
from hyperalign.solve import Method

TRAIN, VAL = (hollow_grid([8, 12], [5], np.arange(2 * n) // 2) for n in (700, 100))


def solved(name: str, *, n_pairs: int = 2, n_steps: tuple[int, ...] = (), stopped: bool = False) -> Any:
    solution = SimpleNamespace(pairs=[(0, 0)] * n_pairs, fits=[SimpleNamespace(n_steps=n) for n in n_steps])
    sides = "both" if name in ("hypernet", "closed-form") else "text"
    return SimpleNamespace(method=Method(name, sides, 0), solution=solution, stopped=stopped)


def table_of(name: str, rows: list[tuple[str, str, float]]) -> Any:
    table = pd.DataFrame(rows, columns=["image_encoder", "text_encoder", "score"])
    table = table.assign(score_low=table["score"] - 2, score_high=table["score"] + 3, p_best=table["score"] / 100)
    return SimpleNamespace(table=table, solved=solved(name))


def test_a_verified_pair_stands_beside_its_own_score_by_the_method_that_answers() -> None:
    main = table_of("hypernet", [("a", "x", 10.0), ("a", "y", 20.0), ("b", "x", 30.0), ("b", "y", 40.0)])

    words = describe_checked(main, [table_of("ape", [("a", "y", 21.0)]), table_of("ape", [("b", "x", 28.5)])])

    assert words == [
        "Verified by ape, trained for a+y alone: 21.0 (95 % interval 19.0 to 24.0); hypernet gave 20.0.",
        "Verified by ape, trained for b+x alone: 28.5 (95 % interval 26.5 to 31.5); hypernet gave 30.0.",
    ]


@pytest.mark.parametrize(
    ("polished", "beginning"),
    [
        ([("a", "y", 21.0, 5.0)], "Polished, made for a+y alone: 21.0"),
        ([("a", "y", 21.0, 5.0), ("b", "x", 28.5, 4.0)], "Polished, 2 pairs by themselves; a+y validates best: 21.0"),
        ([("a", "y", 21.0, 5.0), ("b", "x", 28.5, 6.0)], "Polished, 2 pairs by themselves; b+x validates best: 28.5"),
        ([("a", "y", 21.0, 5.5)], "Polished, made for a+y alone: 21.0"),  # no better than its own
    ],
)
def test_of_polished_pairs_the_one_that_validates_best_is_named(polished: list[Any], beginning: str) -> None:
    main = table_of("hypernet", [("a", "y", 20.0), ("b", "x", 30.0)])
    main.table["validation_score"] = 5.5  # between those of b+x
    one = table_of("polished", [row[:3] for row in polished])
    one.table["validation_score"] = [row[3] for row in polished]

    (words,) = describe_checked(main, [one])

    assert words.startswith(f"{beginning} (95 % interval ")
    among = {"28.5": ", the best of them with probability 0.28"}  # of the polished, where that is who is used
    assert f"){among[beginning[-4:]] if 'b+x' in beginning else ''}; hypernet gave " in words
    assert f"; hypernet gave {20.0 if 'a+y' in beginning else 30.0:.1f}. The " in words
    used = "polished connector" if "b+x" in beginning else "connector of hypernet"
    assert words.endswith(f" The {used} validates better: it is the one that is used.")


def test_a_connector_that_verification_made_is_named_where_it_validates_best() -> None:
    main, ape, polished = (table_of(name, [("a", "y", 20.0)]) for name in ("hypernet", "ape", "polished"))
    for one, score in ((main, 5.0), (ape, 7.0), (polished, 6.0)):
        one.table["validation_score"] = score

    *_, words = describe_checked(main, [ape, polished])

    assert words.endswith("The connector of ape validates better: it is the one that is used.")


def test_only_what_was_cut_short_is_noted() -> None:
    bench: Any = SimpleNamespace(pairs=[(0, 0), (1, 0)])
    whole, few = solved("hypernet", n_steps=(7,)), solved("ape", n_pairs=1, n_steps=(7,), stopped=True)
    stopped = solved("hypernet-sliced", n_steps=(1000, 234), stopped=True)

    assert note_unfinished([whole, few, stopped], bench) == [
        f"{few.method.label}: 1 of 2 pairs were finished in the time given",
        f"{stopped.method.label}: training was stopped after 1,234 steps, for the time was up",
    ]


@pytest.mark.parametrize(
    ("name", "trained"),
    [("hypernet", "batch 64, 3 epochs"), ("hypernet-sliced", "batch 32, 2 epochs"), ("closed-form", "no training")],
)
def test_a_ratio_names_both_its_sides_and_what_each_has_cost(name: str, trained: str) -> None:
    recipe = SearchConfig().recipe()
    recipe = replace(
        recipe,
        ape=replace(recipe.ape, batch_size=128, n_epochs=4, n_steps=None),
        residual=replace(recipe.residual, batch_size=64, n_epochs=3, n_steps=None),
        sliced=replace(recipe.sliced, batch_size=32, n_epochs=2, n_steps=None),
    )
    best, pairs = solved(name), TRAIN.pairs()
    label = best.method.label
    lines = [
        *(
            Line("set-up", label, "", 5, 1.0),
            Line("training", label, "", 70, 1.0),
            Line("validation", label, "", 600, 1),
        ),
        *(Line("verification", label, "", 9_000, 1.0), Line("training", "ape · text", "", 80_000, 1.0)),
    ]

    matched, own = compute_ratios(best, lines, recipe, pairs, TRAIN, VAL)

    batch = 32 if name == "hypernet-sliced" else 64
    assert matched["setting"] == f"matched batch {batch}"
    assert own["setting"] == "each at its own setting"
    for ratio, size in ((matched, batch), (own, 128)):
        config = replace(recipe, ape=replace(recipe.ape, batch_size=size))
        cost = forecast(Method("ape", "text", recipe.ape.seed), TRAIN, pairs, config)
        assert ratio["baseline"] == f"ape · text, batch {size}, 4 epochs, 2 pairs, computed, validation included"
        assert ratio["baseline_flops"] == cost.train_flops + scoring_flops(cost.solution, VAL)
        assert ratio["method"] == f"{label}, {trained}, set-up and validation included"
        assert ratio["method_flops"] == 675
    assert sum_up(best, lines) == {"search_flops": 675, "all_flops": 89_675}


@pytest.mark.parametrize("n_steps", [0, 1234])
def test_a_ratio_of_a_training_that_was_stopped_says_after_how_many_steps(n_steps: int) -> None:
    best = solved("hypernet", n_steps=(n_steps,), stopped=True)
    lines = [Line("training", best.method.label, "", 70, 1.0)]

    for ratio in compute_ratios(best, lines, SearchConfig().recipe(), TRAIN.pairs(), TRAIN, VAL):
        words = f"batch 512, stopped after {n_steps:,} steps, set-up and validation included"
        assert ratio["method"] == f"{best.method.label}, {words}"


@pytest.mark.parametrize(
    ("made", "n_verified", "n_polished", "notes"),
    [
        ((("ape", 1), ("polished", 2)), 1, 2, []),
        ((("polished", 2),), 1, 2, ["the first pair was not verified by ape in the time given"]),
        ((), 0, 2, ["0 of the first 2 pairs were polished in the time given"]),
        ((("ape", 1),), 3, 0, ["1 of the first 2 pairs were verified by ape in the time given"]),  # there are two
    ],
)
def test_first_pairs_that_nobody_had_time_for_are_noted(
    made: tuple[Any, ...], n_verified: int, n_polished: int, notes: list[str]
) -> None:
    checked = [solved(name, n_pairs=n_pairs) for name, n_pairs in made]

    assert note_left_out(solved("hypernet"), checked, n_verified=n_verified, n_polished=n_polished) == notes


def test_a_choice_among_polished_pairs_has_a_ratio_with_what_that_cost() -> None:
    best, recipe, pairs = solved("hypernet"), SearchConfig().recipe(), TRAIN.pairs()
    lines = [Line("training", best.method.label, "", 70, 1.0), Line("verification", "ape · text", "", 9_000, 1.0)]
    polished = [Line("polishing", "polished · both", "", flops, 1.0) for flops in (500, 6)]
    updates = Line("optimiser", "polished · both", "", 80_000)

    plain = compute_ratios(best, lines, recipe, pairs, TRAIN, VAL)
    *same, chosen = compute_ratios(best, [*lines, *polished, updates], recipe, pairs, TRAIN, VAL)

    assert same == plain
    assert chosen["setting"] == f"{plain[0]['setting']}, first pairs polished"
    assert chosen["method_flops"] == 70 + 500 + 6
    assert chosen["baseline_flops"] == plain[0]["baseline_flops"]
    assert ", polishing, set-up and validation included" in chosen["method"]


def test_the_baseline_is_not_held_against_itself() -> None:
    assert compute_ratios(solved("ape"), [], SearchConfig().recipe(), TRAIN.pairs(), TRAIN, VAL) == []
