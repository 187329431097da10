"""The measurement of HyperCLIP's effect: class sets are what they say, held-out ones stay out, and its rows add up."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hyperalign.bench.sheet import Asked
from hyperalign.embed.scenes import ScenePictures
from hyperalign.embed.world import COLOURS, SHAPES, SIZES, TEXTURES
from hyperalign.hyperclip import effect
from hyperalign.hyperclip.class_sets import N_TOGETHER, class_sets, order_of_sets, prompts_of
from hyperalign.request import SearchConfig

PICTURES = ScenePictures(seed=0, split="train", n_pictures=120)


def test_a_class_shows_exactly_one_thing_of_the_shared_attribute() -> None:
    seen, held = class_sets(PICTURES)
    (red,) = (one for one in [*seen, *held] if one.prompts[:2] == ["a red circle", "a red square"])

    for shape, index in enumerate(red.pictures):
        for picture in index:
            things = [t for t in PICTURES.scene(int(picture)).things if COLOURS[t.colour] == "red"]
            assert [SHAPES[t.shape] for t in things] == [SHAPES[shape]]
    assert sum(map(len, red.pictures)) > 5
    assert len(red.places) == len(red.labels)


def test_two_shared_attributes_leave_one_thing_where_one_may_leave_two() -> None:
    """A small striped thing beside a large striped one is no member of the striped things, but of the small ones."""
    seen, held = class_sets(PICTURES)
    (one,) = (o for o in [*seen, *held] if o.prompts[:2] == ["a small striped circle", "a small striped square"])

    n_crowded = 0
    for shape, index in enumerate(one.pictures):
        for picture in index:
            striped = [t for t in PICTURES.scene(int(picture)).things if TEXTURES[t.texture] == "striped"]
            assert [SHAPES[t.shape] for t in striped if SIZES[t.size] == "small"] == [SHAPES[shape]]
            n_crowded += len(striped) > 1
    assert n_crowded > 0


def test_held_out_sets_are_the_same_for_any_pictures_and_share_none_with_the_others() -> None:
    seen, held = class_sets(PICTURES)
    _, again = class_sets(ScenePictures(seed=3, split="test", n_pictures=30))

    assert [one.prompts for one in held] == [one.prompts for one in again]
    assert not {tuple(one.prompts) for one in held} & {tuple(one.prompts) for one in seen}
    assert len(held) / (len(held) + len(seen)) == pytest.approx(0.2, abs=0.02)


def test_a_part_of_a_step_is_of_one_set_and_of_different_classes() -> None:
    seen, _ = class_sets(PICTURES)
    prompts = prompts_of(seen)
    order = order_of_sets(seen, prompts, n_pictures=120, seed=1)(4)

    for start in range(0, 120 - N_TOGETHER, N_TOGETHER):
        own = [prompts[k] for k in order.captions[start : start + N_TOGETHER]]
        (one, *_) = (one for one in seen if set(own) <= set(one.prompts))
        n_classes = sum(len(part) > 0 for part in one.pictures)
        assert len(set(own)) == min(N_TOGETHER, n_classes)
        for picture, prompt in zip(order.pictures[start:], own, strict=False):
            homes = [o for o in seen if prompt in o.prompts and set(own) <= set(o.prompts)]
            assert any(picture in o.pictures[o.prompts.index(prompt)] for o in homes)
    assert np.array_equal(order.pictures, order_of_sets(seen, prompts, n_pictures=120, seed=1)(4).pictures)


def test_pictures_without_two_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="no class set has pictures of two classes"):
        order_of_sets([], [], n_pictures=8, seed=0)


def test_the_measurement_has_every_method_of_every_seed_and_the_gains_of_the_mean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(effect, "TRAIN", replace(effect.TRAIN, n_steps=2, batch_size=32, n_parts=2))
    monkeypatch.setattr(effect, "BOUND", replace(effect.BOUND, n_epochs=1))
    said: list[str] = []
    asked = Asked(
        config=SearchConfig(limit=60),
        cache_dir=tmp_path,
        out=tmp_path,
        n_seeds=2,
        progress=lambda stage, done, total: None,
        say=said.append,
    )

    table, gains = effect.measure(asked)

    assert [(row["method"], row["seed"]) for row in table.rows][:5] == [
        ("SigLIP", 0),
        ("HyperCLIP", 0),
        ("upper bound", 0),
        ("HyperCLIP, no transformer", 0),
        ("start, no connector", 0),
    ]
    score = {(row["method"], row["seed"]): row["held_out_score"] for row in table.rows}
    for row in gains.rows:
        expected = np.mean([score[row["method"], seed] - score["SigLIP", seed] for seed in (0, 1)])
        assert row["gain_score"] == pytest.approx(expected)
        assert row["low_score"] <= row["gain_score"] <= row["high_score"]
    assert len(said) == 6
    assert all(row["emitted_norm"] > 0 for row in table.rows if row["method"].startswith("Hyper"))
