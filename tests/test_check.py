"""Facts of encoders of every loader held against what they are."""

from dataclasses import replace
from pathlib import Path

import pytest
from small_zoo import write_world

from hyperalign.embed import check as checking
from hyperalign.embed.check import check, check_zoo, find_twins
from hyperalign.embed.zoo import Facts, load_zoo, load_zoos


def test_ready_rows_are_as_wide_as_their_file_says(tmp_path: Path) -> None:
    specs = {spec.name: spec for spec in load_zoos([str(write_world(tmp_path / "world") / "zoo.toml")])}

    sharp, words = check_zoo([specs["sharp"], specs["words"]])
    wrong = check(replace(specs["sharp"], embed_dim=17))

    assert (sharp.ok, sharp.embed_dim, sharp.n_params, sharp.gflops) == (True, 16, 3_000_000, None)
    assert (words.ok, words.embed_dim, words.n_params) == (True, 10, 400_000)
    assert wrong.problems == ("declares embed_dim 17 but has 16",)


def test_sentence_encoders_of_the_embedded_zoo_are_what_they_declare() -> None:
    texts = [spec for spec in load_zoo("embedded") if spec.modality == "text"][:1]

    (result,) = check_zoo(texts)

    assert (result.ok, result.problems) == (True, ())
    assert (result.embed_dim, result.n_params) == (texts[0].embed_dim, texts[0].n_params)
    assert result.gflops == pytest.approx(texts[0].gflops, rel=0.01)
    assert find_twins(texts) == []


@pytest.mark.parametrize(("declared", "wrong"), [(10.1, False), (10.102, True), (9.9, False), (9.898, True)])
def test_a_declared_cost_may_be_off_by_a_hundredth(
    declared: float, wrong: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = next(spec for spec in load_zoo("embedded") if spec.modality == "image")
    assert spec.embed_dim is not None
    assert spec.n_params is not None
    measured = Facts(spec.embed_dim, spec.n_params, 10.0)
    monkeypatch.setattr(checking, "_measure", lambda spec: (measured, list[str]()))

    result = check(replace(spec, gflops=declared))

    assert result.problems == ((f"declares {declared:g} gflops but needs 10",) if wrong else ())
    assert check(replace(spec, gflops=None)).ok
