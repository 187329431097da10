"""What the shipped zoos declare is what the networks are; what is declared wrongly is found."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
from safetensors.torch import load_file, save_file

from hyperalign.embed.check import NOT_CHECKED, check, check_zoo, find_twins
from hyperalign.embed.zoo import EncoderSpec, find_encoder, load_zoo

HUB, HYPERCLIP = load_zoo("hub"), load_zoo("hyperclip")
IMAGES = [spec for spec in HUB if spec.modality == "image"]
TINY = EncoderSpec(name="tiny", modality="image", loader="timm", architecture="test_efficientnet")


@pytest.fixture
def local(tmp_path: Path) -> EncoderSpec:
    save_file(timm.create_model("test_efficientnet", num_classes=7).state_dict(), tmp_path / "weights.safetensors")
    return replace(TINY, checkpoint="weights.safetensors", folder=tmp_path)


def test_the_hub_has_ten_image_encoders_of_each_width_of_the_method_and_more_small_ones() -> None:
    large = IMAGES[:30]

    assert [[spec.embed_dim for spec in large].count(width) for width in (384, 768, 1024)] == [10, 10, 10]
    small = IMAGES[32:]
    assert all(spec.n_params is not None and spec.n_params < 12_000_000 for spec in small)
    families = {re.split(r"[-0-9]", spec.name)[0] for spec in small}
    assert families == {"mobilenetv", "efficientnet", "tinynet", "fastvit", "ghostnet", "ghostnetv", "repvit"}
    assert len([spec for spec in HUB if spec.modality == "text"]) == 9


def test_every_entry_of_the_hub_declares_all_facts_and_a_licence() -> None:
    for spec in HUB:
        assert None not in (spec.embed_dim, spec.n_params, spec.gflops, spec.license), spec.name


def test_every_tag_of_the_hub_is_one_that_timm_has_weights_for() -> None:
    known = set(timm.list_pretrained())

    assert [spec.architecture for spec in IMAGES if spec.architecture not in known] == []


@pytest.mark.parametrize("spec", HYPERCLIP, ids=lambda spec: spec.name)
def test_a_hyperclip_architecture_is_what_it_declares(spec: EncoderSpec) -> None:
    result = check(spec)

    assert result.ok
    assert result.problems == ()


@pytest.mark.parametrize(
    ("name", "millions", "input_size"),
    [
        ("b0", 4.66, 224), ("b1", 7.17, 240), ("b2", 8.42, 260), ("m0", 4.86, 224), ("m1", 2.04, 224),
        ("t0", 1.71, 152), ("e0", 7.64, 320), ("v0", 4.65, 224),
    ],
)  # fmt: skip
def test_hyperclip_sizes_with_a_head_are_those_measured_for_the_design(
    name: str, millions: float, input_size: int
) -> None:
    spec = find_encoder(HYPERCLIP, f"hyperclip-{name}")
    assert spec.n_params is not None
    assert spec.embed_dim is not None

    with_head = spec.n_params + 512 * spec.embed_dim + 512

    assert round(with_head / 1e6, 2) == millions
    assert spec.input_size == input_size


@pytest.mark.parametrize("name", ["deit-s16", "efficientvit-m5", "maxvit-b", "eva02-l14-448", "repvit-m0-9"])
def test_some_image_encoders_of_the_hub_are_what_they_declare(name: str) -> None:
    result = check(find_encoder(HUB, name))

    assert result.ok
    assert result.problems == ()


@pytest.mark.slow
def test_every_encoder_of_the_hub_is_what_it_declares() -> None:
    results = check_zoo(HUB)

    assert [result for result in results if not result.ok] == []
    assert {result.problems for result in results[: len(IMAGES)]} == {()}


def test_the_cost_of_a_known_network_is_the_published_one() -> None:
    result = check(find_encoder(HUB, "deit-s16"))

    assert result.gflops == pytest.approx(2 * 4.6, rel=0.01)  # 4.6 G multiply-adds, arXiv:2012.12877, Table 5


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"embed_dim": 5}, "declares embed_dim 5 but has 256"),
        ({"n_params": 5}, r"declares n_params 5 but has 99,196"),
        ({"gflops": 5.0}, r"declares 5 gflops but needs 0\.\d+"),
        ({"license": "MIT"}, "declares the licence MIT but timm records apache-2.0"),
        ({"architecture": "no_such_net"}, "timm knows no architecture 'no_such_net'"),
    ],
)
def test_a_fact_that_does_not_hold_is_found(changes: dict[str, Any], sentence: str) -> None:
    result = check(replace(TINY, **changes))

    assert not result.ok
    assert len(result.problems) == 1
    assert re.search(sentence, result.problems[0])


def test_a_cost_may_be_declared_rounded() -> None:
    measured = check(TINY).gflops
    assert measured is not None

    assert check(replace(TINY, gflops=float(f"{measured:.3g}"))).ok


def test_local_weights_are_held_against_the_network_without_their_head(local: EncoderSpec) -> None:
    path = local.folder / "weights.safetensors"
    assert check(local).ok
    save_file({key: value for key, value in load_file(path).items() if key != "conv_stem.weight"}, path)

    result = check(local)

    assert result.problems == ("weights.safetensors does not fit test_efficientnet: missing: conv_stem.weight",)
    assert result.embed_dim == 256


def test_a_missing_or_damaged_checkpoint_is_a_problem_and_no_crash(local: EncoderSpec) -> None:
    (local.folder / "weights.safetensors").write_bytes(b"12345678torn")
    damaged = check(local)
    (local.folder / "weights.safetensors").unlink()
    missing = check(local)

    assert not damaged.ok
    assert not missing.ok
    assert "cannot be read" in damaged.problems[0]
    assert "no checkpoint" in missing.problems[0]


def test_a_text_encoder_whose_weights_are_elsewhere_is_not_checked_and_not_blamed() -> None:
    result = check(find_encoder(HUB, "all-MiniLM-L6-v2"))

    assert (result.ok, result.problems) == (True, (NOT_CHECKED,))
    assert result.embed_dim is None


def test_twins_are_found_by_their_bytes_and_on_the_hub_by_their_tag(local: EncoderSpec, tmp_path: Path) -> None:
    (tmp_path / "copy.safetensors").write_bytes((tmp_path / "weights.safetensors").read_bytes())
    twin = replace(local, name="copy", checkpoint="copy.safetensors")
    other = replace(local, name="other", checkpoint="other.safetensors")
    state = load_file(tmp_path / "weights.safetensors")
    save_file({**state, "conv_stem.weight": state["conv_stem.weight"] + 1}, tmp_path / "other.safetensors")
    wider = replace(TINY, name="wider", input_size=256)

    assert find_twins([local, other, TINY, twin, wider]) == [("tiny", "copy"), ("tiny", "wider")]
    assert find_twins([*HUB, *HYPERCLIP]) == []


def test_progress_is_told_after_each_encoder() -> None:
    told: list[tuple[str, int, int]] = []

    check_zoo([TINY, TINY], progress=lambda *news: told.append(news))

    assert told == [("checking encoders", 1, 2), ("checking encoders", 2, 2)]
