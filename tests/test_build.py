"""The embedded zoo: how it is made, and what was shipped."""

import tomllib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch.nn.functional import cosine_similarity

from hyperalign.embed.build import BuildPlan, build_zoo
from hyperalign.embed.build_images import (
    attribute_names,
    attribute_table,
    build_encoder,
    prepare,
    train_image_encoder,
)
from hyperalign.embed.build_texts import write_text_encoder
from hyperalign.embed.encoders import embed_captions, embed_pictures, load_encoder
from hyperalign.embed.recipes import IMAGE_RECIPES, TEXT_RECIPES, ImageRecipe, Kind, Objective, TextRecipe
from hyperalign.embed.scenes import ScenePictures, open_scene_split
from hyperalign.embed.world import SHAPES, UNSEEN_COLOURS, UNSEEN_TEXTURES, Scene, Thing
from hyperalign.embed.zoo import load_zoo, zoo_folder

TINY = ImageRecipe(
    name="tiny", architecture="resnet10t", kwargs={"channels": [8, 8, 8, 8], "stem_width": 8}, n_steps=2, batch_size=4
)
WORDS = TextRecipe(name="words", kind="static", embed_dim=8, n_steps=2, batch_size=4)
PLAN = BuildPlan(images=[TINY], texts=[WORDS], n_pictures=8, n_descriptions=30, n_processes=1)
CAPTIONS = open_scene_split("zoo", seed=1, n_pictures=30).captions


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_miniature_zoo_is_declared_with_its_facts_and_gives_finite_rows(tmp_path: Path) -> None:
    lines: list[str] = []
    path = build_zoo(tmp_path, plan=PLAN, log=lines.append)
    image, text = load_zoo(path)

    pictures, captions = open_scene_split("test", seed=0, n_pictures=2).pictures, ["a red star", "two discs"]
    seer, reader = load_encoder(image), load_encoder(text)
    rows, bad = embed_pictures(seer, pictures, 0, 2, n_workers=0)

    assert (image.name, text.name, image.license, text.license) == ("tiny", "words", "Apache-2.0", "Apache-2.0")
    assert (seer.facts.embed_dim, seer.facts.n_params) == (image.embed_dim, image.n_params)
    assert (reader.facts.embed_dim, reader.facts.n_params) == (text.embed_dim, text.n_params)
    assert seer.facts.gflops == pytest.approx(image.gflops, rel=1e-3)
    assert not bad
    assert np.isfinite(rows).all()
    assert np.isfinite(embed_captions(reader, captions)).all()
    assert any(line.startswith("tiny: step 2 of 2") for line in lines)


def test_the_same_seed_builds_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        build_zoo(tmp_path / folder, seed=seed, plan=PLAN)

    a, b, c = (_bytes(tmp_path / folder) for folder in "abc")
    assert a == b
    assert a.keys() == c.keys()
    assert a["embedded/tiny.safetensors"] != c["embedded/tiny.safetensors"]
    assert a["embedded/words/model.safetensors"] != c["embedded/words/model.safetensors"]


def test_building_one_encoder_keeps_the_others_declared(tmp_path: Path) -> None:
    build_zoo(tmp_path, plan=PLAN)
    before = _bytes(tmp_path)

    path = build_zoo(tmp_path, plan=PLAN, only=["words"], seed=1)

    assert [spec.name for spec in load_zoo(path)] == ["tiny", "words"]
    assert _bytes(tmp_path)["embedded/tiny.safetensors"] == before["embedded/tiny.safetensors"]
    assert _bytes(tmp_path)["embedded/words/model.safetensors"] != before["embedded/words/model.safetensors"]


def test_an_unknown_name_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="no recipe 'huge'; there are tiny, words"):
        build_zoo(tmp_path, plan=PLAN, only=["huge"])


def test_building_leaves_the_number_of_threads_as_it_was(tmp_path: Path) -> None:
    before = torch.get_num_threads()

    build_zoo(tmp_path, plan=PLAN, only=["tiny"])

    assert torch.get_num_threads() == before


@pytest.mark.parametrize("objective", ["attributes", "ground", "views"])
def test_each_objective_changes_the_encoder_and_its_loss_is_finite(objective: Objective) -> None:
    lines: list[str] = []
    pictures = ScenePictures(seed=0, split="zoo", n_pictures=8)
    recipe = replace(TINY, objective=objective)
    control = train_image_encoder(replace(TINY, objective="none"), pictures, seed=3, log=lines.append)

    encoder = train_image_encoder(recipe, pictures, seed=3, log=lines.append)

    moved = [not torch.equal(a, b) for a, b in zip(control.parameters(), encoder.parameters(), strict=True)]
    assert sum(moved) > 0.9 * len(moved)
    assert np.isfinite(float(lines[-1].rsplit(" ", 1)[1]))
    assert not encoder.training


def test_attributes_are_learned_by_heart_from_few_pictures() -> None:
    """In the end the loss is well below that of knowing only how frequent each attribute is."""
    lines: list[str] = []
    pictures = ScenePictures(seed=0, split="zoo", n_pictures=16)
    recipe = replace(TINY, objective="ground", n_steps=60, batch_size=16, learning_rate=1e-2)
    share = attribute_table([pictures.scene(index) for index in range(16)], "ground").mean(0).clip(1e-6, 1 - 1e-6)

    train_image_encoder(recipe, pictures, seed=0, log=lines.append)

    entropy = float(-(share * np.log(share) + (1 - share) * np.log(1 - share)).sum())
    assert float(lines[-1].rsplit(" ", 1)[1]) < 0.8 * entropy


def test_the_attribute_table_says_what_the_scene_holds_and_no_more() -> None:
    scene = Scene((Thing(shape=0, colour=0, size=2, texture=1, cell=4), Thing(5, 8, 0, 0, 0)), 3, 1, 0)
    names = attribute_names("attributes")

    row = attribute_table([scene])[0]

    assert {name for name, value in zip(names, row, strict=True) if value} == {
        *("background lined", "tint sandy", "clutter none", "2 things", "anything at 4", "anything at 0"),
        *("circle", "red", "red circle", "striped circle", "large circle", "striped red", "large red"),
        *("cross", "black", "black cross", "plain cross", "small cross", "plain black", "small black"),
        *("circle at 4", "red at 4", "cross at 0", "black at 0"),
    }
    assert len(names) == len(set(names))


def test_nobody_is_taught_that_a_held_out_combination_never_occurs() -> None:
    names = set(attribute_names("attributes"))

    assert all(f"orange {SHAPES[shape]}" not in names for shape, colour in UNSEEN_COLOURS if colour == 1)
    assert len([name for name in names if name.endswith(" circle") and " at " not in name]) == 9 + 4 + 3
    assert len(UNSEEN_COLOURS) == 10
    assert len(UNSEEN_TEXTURES) == 6


@pytest.mark.parametrize(("input_size", "tolerance"), [(64, 1e-6), (48, 0.03)])
def test_an_encoder_sees_in_use_what_it_saw_in_training(tmp_path: Path, input_size: int, tolerance: float) -> None:
    """Bytes are rounded after a resize, by 1/2 of 255 levels at a deviation of 1/4: 0.008."""
    path = build_zoo(tmp_path, plan=replace(PLAN, images=[replace(TINY, input_size=input_size)]), only=["tiny"])
    encoder, pictures = load_encoder(load_zoo(path)[0]), ScenePictures(seed=0, split="test", n_pictures=3)
    raw = torch.from_numpy(pictures.block(0, 3).copy())

    seen = torch.stack([encoder.preprocess(pictures[index]) for index in range(3)]).float() / 255
    assert encoder.picture is not None
    mean, std = torch.tensor(encoder.picture.mean), torch.tensor(encoder.picture.std)

    assert torch.allclose((seen - mean[:, None, None]) / std[:, None, None], prepare(raw, input_size), atol=tolerance)


@pytest.mark.parametrize(
    ("kind", "n_steps", "n_masked_steps"),
    [("counts", 0, 0), ("cooccurrence", 0, 0), ("static", 2, 0), ("recurrent", 2, 0), ("transformer", 1, 1)],
)
def test_each_kind_of_text_encoder_is_stored_halved_and_read_back(
    tmp_path: Path, kind: Kind, n_steps: int, n_masked_steps: int
) -> None:
    recipe = TextRecipe(
        name=kind, kind=kind, embed_dim=16, n_steps=n_steps, n_masked_steps=n_masked_steps, batch_size=4
    )

    encoder = write_text_encoder(recipe, CAPTIONS, tmp_path / kind, seed=0, log=lambda line: None)
    rows = encoder.encode(["a red star on a tiled ground", "A RED STAR ON A TILED GROUND", "two discs"])

    assert rows.shape == (3, 16)
    assert np.allclose(rows[0], rows[1])
    assert not np.allclose(rows[0], rows[2], atol=1e-2)
    assert _types((tmp_path / kind).rglob("*.safetensors")) == {"F16"}
    assert not list((tmp_path / kind).rglob("*.bin"))


def test_paraphrases_come_closer_than_captions_of_other_scenes(tmp_path: Path) -> None:
    recipe = replace(WORDS, embed_dim=32, n_steps=240, batch_size=16, learning_rate=5e-2)
    held_out = open_scene_split("test", seed=0, n_pictures=20).captions

    encoder = write_text_encoder(recipe, CAPTIONS, tmp_path / "words", seed=0, log=lambda line: None)
    rows = torch.from_numpy(encoder.encode(list(held_out))).float().view(20, 5, 32)

    together = cosine_similarity(rows[:, 0], rows[:, 1]).mean()
    apart = cosine_similarity(rows[:, 0], rows[:, 1].roll(1, 0)).mean()
    assert together > apart + 0.1


def _types(paths: Iterable[Path]) -> set[str]:
    """Kinds of numbers in the files, as safetensors calls them."""
    kinds = set()
    for path in paths:
        with safe_open(path, framework="np") as file:
            kinds |= {file.get_slice(key).get_dtype() for key in file.keys()}
    return kinds


SHIPPED = load_zoo("embedded")


def test_the_shipped_zoo_is_the_one_the_recipes_make() -> None:
    assert [spec.name for spec in SHIPPED] == [recipe.name for recipe in (*IMAGE_RECIPES, *TEXT_RECIPES)]
    for spec, recipe in zip(SHIPPED, IMAGE_RECIPES, strict=False):
        assert (spec.architecture, dict(spec.kwargs), spec.input_size) == (
            recipe.architecture,
            dict(recipe.kwargs),
            recipe.input_size,
        )


def test_the_shipped_weights_are_there_halved_and_small() -> None:
    folder = zoo_folder()
    files = [path for path in (folder / "embedded").rglob("*") if path.is_file()]

    assert all((folder / str(spec.checkpoint)).exists() for spec in SHIPPED)
    assert sum(path.stat().st_size for path in files) <= 25_000_000
    assert _types(path for path in files if path.suffix == ".safetensors") == {"F16"}
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".pth", ".pkl")]


def test_the_shipped_zoo_is_varied_enough_to_choose_from() -> None:
    images, texts = ([spec for spec in SHIPPED if spec.modality == side] for side in ("image", "text"))
    families = {type(build_encoder(recipe)).__module__ for recipe in IMAGE_RECIPES}

    assert len(images) >= 12
    assert len(texts) >= 4
    assert len(families) >= 6
    assert len({spec.embed_dim for spec in images}) >= 3
    assert sum(spec.n_params is not None and spec.n_params < 500_000 for spec in images) >= 3
    assert len({recipe.kind for recipe in TEXT_RECIPES}) >= 4


def test_the_control_is_untrained_and_its_architecture_appears_trained() -> None:
    (control,) = [recipe for recipe in IMAGE_RECIPES if recipe.objective == "none"]

    twins = [r for r in IMAGE_RECIPES if r.architecture == control.architecture and r.kwargs == control.kwargs]

    assert {recipe.objective for recipe in twins} >= {"none", "attributes", "views"}
    assert len({recipe.n_steps for recipe in twins if recipe.objective == "attributes"}) >= 2


def test_every_shipped_entry_says_how_it_was_trained_and_under_which_licence() -> None:
    text = (zoo_folder() / "embedded.toml").read_text()

    assert all(entry["license"] == "Apache-2.0" for entry in tomllib.loads(text)["encoder"])
    assert text.count("\n# Objective: ") + text.count("\n# Not trained") == len(IMAGE_RECIPES)


@pytest.mark.parametrize("spec", SHIPPED, ids=lambda spec: spec.name)
def test_a_shipped_encoder_is_what_it_declares_and_tells_scenes_apart(spec) -> None:  # type: ignore[no-untyped-def]
    encoder = load_encoder(spec)
    split = open_scene_split("test", seed=0, n_pictures=4)

    if spec.modality == "image":
        rows, bad = embed_pictures(encoder, split.pictures, 0, 4, n_workers=0)
        assert not bad
    else:
        rows = embed_captions(encoder, list(split.captions))

    assert (encoder.facts.embed_dim, encoder.facts.n_params) == (spec.embed_dim, spec.n_params)
    assert np.isfinite(rows).all()
    assert len(np.unique(rows.round(3), axis=0)) == len(rows)
