"""Models whose two sides were trained together: encoders of open_clip, and a ceiling beside the pairs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from small_zoo import SPLITS, read_rows, small_config, small_search, write_rows, write_world

import hyperalign
from hyperalign.embed.encoders import load_encoder
from hyperalign.embed.identity import identity, settle
from hyperalign.embed.zoo import EncoderSpec
from hyperalign.pipeline import ask
from hyperalign.show.view import draw_board
from hyperalign.use.chosen import choose_pair

ROWS = """
[[encoder]]
name = "{name}"
modality = "{side}"
loader = "rows"
checkpoint = "rows/{name}-{{split}}.npy"
n_params = 10
"""


def _write_ceiling(world: Path, *, width: int = 16) -> Path:
    """Two files of ready rows that agree perfectly, and their zoo."""
    for split in SPLITS:
        rows = np.random.default_rng(2).standard_normal((SPLITS[split], 16))
        write_rows(world, "clip-image", split, rows)
        write_rows(world, "clip-text", split, rows.repeat(2, 0)[:, :width])
    names = (("clip-image", "image"), ("clip-text", "text"))
    (world / "clip.toml").write_text("".join(ROWS.format(name=name, side=side) for name, side in names))
    return world / "clip.toml"


def test_a_ceiling_stands_beside_the_pairs_and_takes_no_part_in_their_order(tmp_path: Path) -> None:
    world = write_world(tmp_path / "world")
    plain = hyperalign.open_result(small_search(world))

    config = small_config(world, ceiling=(str(_write_ceiling(world)),))
    found = hyperalign.open_result(small_search(world, config=config, out="with"))

    board = found.leaderboard
    own, row = board[board["method"] != "ceiling"], board[board["method"] == "ceiling"].iloc[0]
    assert row["score"] == 100.0  # of perfect rows
    assert (row["image_encoder"], row["n_train"], row["train_flops"]) == ("clip-image", 0, 0)
    assert np.isnan(row["p_best"])
    assert own.reset_index(drop=True).equals(plain.leaderboard)
    assert found.winner.name == plain.winner.name
    assert found.answer[-1].startswith("The ceiling: clip-image+clip-text, trained together elsewhere, scores 100.0")
    assert "ceiling" not in " ".join(draw_board(found.run).others)
    with pytest.raises(ValueError, match="is no pair of"):
        choose_pair(found.path, method="ceiling")


def test_the_score_of_a_ceiling_is_that_of_its_cosines(tmp_path: Path) -> None:
    world = write_world(tmp_path / "world")
    zoo = _write_ceiling(world)
    rng = np.random.default_rng(5)
    noisy = read_rows(world, "clip-text", "test") + 1.5 * rng.standard_normal((40, 16))
    write_rows(world, "clip-text", "test", noisy)
    unit = [
        rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (read_rows(world, "clip-image", "test"), noisy)
    ]
    cosines = unit[1] @ unit[0].T
    t2i = float((cosines.argmax(1) == np.arange(40) // 2).mean())
    i2t = float((cosines.argmax(0) // 2 == np.arange(20)).mean())

    found = hyperalign.open_result(small_search(world, config=small_config(world, ceiling=(str(zoo),))))

    row = found.leaderboard[found.leaderboard["method"] == "ceiling"].iloc[0]
    assert row["score"] == pytest.approx(50 * (t2i + i2t), abs=1e-4)
    assert 0.1 < row["score"] / 100 < 0.99


@pytest.mark.parametrize(("width", "message"), [(16, "declares 3 and 2"), (12, "give rows of one width")])
def test_a_zoo_that_is_no_ceiling_is_refused(tmp_path: Path, width: int, message: str) -> None:
    world = write_world(tmp_path / "world")
    zoo = _write_ceiling(world, width=width) if width == 12 else world / "zoo.toml"

    with pytest.raises(ValueError, match=message):
        small_search(world, config=small_config(world, ceiling=(str(zoo),)))

    assert not [*(world / "reports").glob("*")], "said before anything is computed"


def test_a_ceiling_that_is_missing_is_known_before_anything_is_computed(tmp_path: Path) -> None:
    world = write_world(tmp_path / "world")
    config = small_config(world, ceiling=(str(tmp_path / "nowhere.toml"),))

    for dry in (True, False):
        with pytest.raises(FileNotFoundError, match=r"nowhere\.toml"):
            ask(config, cache_dir=tmp_path / "cache", progress=lambda *_: None, dry=dry)


@pytest.fixture
def clip(tmp_path: Path) -> dict[str, EncoderSpec]:
    """Both sides of a tiny open_clip model with weights of its own."""
    open_clip = pytest.importorskip("open_clip")
    vision = {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16}
    captions = {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    (tmp_path / "hyperalign-tiny.json").write_text(
        json.dumps({"embed_dim": 12, "vision_cfg": vision, "text_cfg": captions})
    )
    open_clip.add_model_config(tmp_path / "hyperalign-tiny.json")
    torch.manual_seed(0)
    save_file(open_clip.create_model("hyperalign-tiny").state_dict(), tmp_path / "tiny.safetensors")
    facts: dict[str, Any] = {"loader": "open-clip", "architecture": "hyperalign-tiny", "folder": tmp_path}
    facts["checkpoint"] = "tiny.safetensors"
    return {
        "image": EncoderSpec(name="tiny-image", modality="image", **facts),
        "text": EncoderSpec(name="tiny-text", modality="text", **facts),
    }


def test_both_sides_of_an_open_clip_model_embed_as_it_does(clip: dict[str, EncoderSpec], tmp_path: Path) -> None:
    import open_clip

    model, _, preprocess = open_clip.create_model_and_transforms(
        "hyperalign-tiny", pretrained=str(tmp_path / "tiny.safetensors")
    )
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    captions = ["a dog in the snow", "two bowls of soup on a table " * 20]
    image, text = (load_encoder(clip[side], device="cpu") for side in ("image", "text"))

    pictures = image.encode(image.preprocess(picture).unsqueeze(0))
    rows = text.encode(captions)

    with torch.no_grad():
        torch.testing.assert_close(pictures, model.eval().encode_image(preprocess(picture)[None]), rtol=0, atol=1e-3)
        expected = model.encode_text(open_clip.get_tokenizer("hyperalign-tiny")(captions))
    torch.testing.assert_close(rows, expected, rtol=0, atol=1e-5)
    assert (image.facts.embed_dim, text.facts.embed_dim) == (12, 12)
    assert image.facts.n_params + text.facts.n_params <= sum(p.numel() for p in model.parameters())


def test_an_open_clip_encoder_is_known_by_its_weights(clip: dict[str, EncoderSpec], tmp_path: Path) -> None:
    settled = settle(clip["image"], memory=None)
    before = identity(clip["image"], memory=None)

    weights = bytearray((tmp_path / "tiny.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "tiny.safetensors").write_bytes(weights)

    assert settled.embed_dim == 12
    assert '"size": [32, 32]' in before.preprocess
    assert identity(clip["image"], memory=None).weights != before.weights


def test_a_missing_or_broken_checkpoint_is_one_sentence(clip: dict[str, EncoderSpec], tmp_path: Path) -> None:
    (tmp_path / "tiny.safetensors").write_bytes(b"no weights")

    with pytest.raises(ValueError, match="open_clip cannot build hyperalign-tiny"):
        load_encoder(clip["image"], device="cpu")
    (tmp_path / "tiny.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        load_encoder(clip["text"], device="cpu")
