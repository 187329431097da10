"""A spec becomes a network whose weights fit to the last key, or one sentence says why not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hyperalign.embed import encoders, networks
from hyperalign.embed.consent import Written
from hyperalign.embed.encoders import load_encoder
from hyperalign.embed.zoo import EncoderSpec

ARCHITECTURE = "test_efficientnet"
CODE = """
import torch
from torch import nn

class Mean(nn.Module):
    def __init__(self, width=3):
        super().__init__()
        self.linear = nn.Linear(3, width, bias=False)
        nn.init.ones_(self.linear.weight)
    def forward(self, pictures):
        return self.linear(pictures.mean((2, 3)))

def mean(width=3):
    return Mean(width)

def nothing():
    return None

def raises():
    raise OSError("no such disk")

def unpooled():
    return nn.Conv2d(3, 4, 1, bias=False)

def nameless():
    return nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten())
"""


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """A small network with a head of 965 classes and running statistics of its own."""
    torch.manual_seed(0)
    network: nn.Module = timm.create_model(ARCHITECTURE, num_classes=965)
    with torch.no_grad():
        network.train()(torch.rand(4, 3, 96, 96))
    return network.eval()


@pytest.fixture
def checkpoint(network: nn.Module, tmp_path: Path) -> Path:
    """Its weights in half precision."""
    path = tmp_path / "weights.safetensors"
    save_file(
        {key: value.half() if value.is_floating_point() else value for key, value in network.state_dict().items()}, path
    )
    return path


def local(folder: Path, **changes: Any) -> EncoderSpec:
    given = {"architecture": ARCHITECTURE, "checkpoint": "weights.safetensors", "input_size": 96, **changes}
    return EncoderSpec(name="small", modality="image", loader="timm", folder=folder, **given)


def python(folder: Path, function: str, **changes: Any) -> EncoderSpec:
    (folder / "factory.py").write_text(CODE)
    given: dict[str, Any] = {"input_size": 8, "mean": (0, 0, 0), "std": (1, 1, 1), **changes}
    words = Written(f"factory.py:{function}")
    return EncoderSpec(name="own", modality="image", loader="python", factory=words, folder=folder, **given)


def test_a_checkpoint_with_another_number_of_classes_gives_its_networks_embedding(
    network: Any, checkpoint: Path
) -> None:
    encoder = load_encoder(local(checkpoint.parent), device="cpu")
    pictures = torch.rand(2, 3, 96, 96)

    rows = encoder.encode(pictures)

    with torch.inference_mode():
        expected = network.forward_head(network.forward_features(pictures), pre_logits=True)
    assert rows.shape == (2, encoder.facts.embed_dim)
    assert torch.allclose(rows, expected, atol=0.02, rtol=0.02)  # the checkpoint is in half precision


def test_half_precision_weights_are_computed_in_single_precision(checkpoint: Path) -> None:
    encoder = load_encoder(local(checkpoint.parent), device="cpu")

    weights = load_file(checkpoint)
    for key, tensor in encoder.network.network.state_dict().items():  # type: ignore[union-attr]
        if tensor.is_floating_point():
            assert tensor.dtype == torch.float32
            assert torch.equal(tensor, weights[key].float())


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda state: state.pop("conv_stem.weight"), "missing: conv_stem.weight"),
        (lambda state: state.update(surplus=torch.ones(2)), "unknown: surplus"),
        (lambda state: state.update({"conv_stem.weight": torch.ones(2)}), r"another shape: conv_stem.weight \(2,\)"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_with_the_key(
    checkpoint: Path, damage: Callable[[dict[str, Tensor]], Any], sentence: str
) -> None:
    state = load_file(checkpoint)
    damage(state)
    save_file(state, checkpoint)

    with pytest.raises(ValueError, match=rf"^encoder 'small': weights.safetensors does not fit .*{sentence}") as caught:
        load_encoder(local(checkpoint.parent), device="cpu")

    assert "\n" not in str(caught.value)


def test_counters_that_a_conversion_dropped_do_not_matter(checkpoint: Path) -> None:
    state = {key: value for key, value in load_file(checkpoint).items() if not key.endswith("num_batches_tracked")}
    assert len(state) < len(load_file(checkpoint))
    save_file(state, checkpoint)

    assert load_encoder(local(checkpoint.parent), device="cpu").facts.embed_dim > 0


def test_a_missing_or_unreadable_checkpoint_is_named(checkpoint: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"encoder 'small': no checkpoint .*none.safetensors"):
        load_encoder(local(checkpoint.parent, checkpoint="none.safetensors"), device="cpu")
    checkpoint.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match=r"weights.safetensors holds no weights that can be read"):
        load_encoder(local(checkpoint.parent), device="cpu")


def test_a_pickled_checkpoint_runs_no_code(tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (marker,))

    torch.save({"weight": Trap()}, tmp_path / "weights.pth")

    with pytest.raises(ValueError, match="holds no weights that can be read"):
        load_encoder(local(tmp_path, checkpoint="weights.pth"), device="cpu")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"architecture": "test_eficientnet"},
            "timm knows no architecture 'test_eficientnet'; did you mean test_effici",
        ),
        ({"architecture": f"{ARCHITECTURE}.r1_in1k"}, r"no weights 'r1_in1k' of test_efficientnet; it has r160_in1k"),
        ({"kwargs": {"depht": 2}}, r"timm cannot build test_efficientnet with \{'depht': 2\}"),
    ],
)
def test_what_timm_cannot_build_is_said_in_one_sentence(
    checkpoint: Path, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        load_encoder(local(checkpoint.parent, **changes), device="cpu")


def test_constructor_arguments_reach_the_network(tmp_path: Path) -> None:
    save_file(timm.create_model("test_vit", img_size=64, num_classes=0).state_dict(), tmp_path / "weights.safetensors")
    spec = local(tmp_path, architecture="test_vit", kwargs={"img_size": 64}, input_size=64)

    assert load_encoder(spec, device="cpu").picture.size == (64, 64)  # type: ignore[union-attr]


def test_a_size_that_the_network_refuses_is_said_with_the_way_out(tmp_path: Path) -> None:
    spec = EncoderSpec(name="vit", modality="image", loader="timm", architecture="deit_tiny_patch16_224", input_size=64)

    network = networks.build_network(spec, weights=False)

    with pytest.raises(ValueError, match=r"encoder 'vit' refuses a picture of 64 × 64: .*img_size"):
        encoders.probe_pictures(spec, network.module, network.picture)


def test_pooling_is_handed_to_timm_and_changes_the_embedding(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_file(timm.create_model("test_vit", num_classes=0).state_dict(), tmp_path / "weights.safetensors")
    own, mean = (
        load_encoder(
            local(tmp_path, architecture="test_vit", input_size=160, pooling=pooling, kwargs=kwargs), device="cpu"
        )
        for pooling, kwargs in ((None, {}), ("avg", {"fc_norm": False}))
    )
    pictures = torch.rand(1, 3, 160, 160)

    assert not torch.allclose(own.encode(pictures), mean.encode(pictures), atol=1e-3)


def test_the_width_is_measured_and_not_read_from_num_features() -> None:
    spec = EncoderSpec(name="m1", modality="image", loader="timm", architecture="mobilenetv3_small_100")

    network = networks.build_network(spec, weights=False)
    facts = encoders.probe_pictures(spec, network.module, network.picture)

    assert network.module.network.num_features == 576  # type: ignore[union-attr]
    assert facts.embed_dim == 1024


def test_hub_weights_that_cannot_be_fetched_are_one_sentence() -> None:
    spec = EncoderSpec(name="hub", modality="image", loader="timm", architecture=f"{ARCHITECTURE}.r160_in1k")

    with pytest.raises(FileNotFoundError, match=r"encoder 'hub': the weights of .* are not in the hub's local cache"):
        load_encoder(spec, device="cpu")


def test_hub_weights_are_those_of_the_declared_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    published = timm.create_model(ARCHITECTURE, num_classes=1000)
    save_file(published.state_dict(), tmp_path / "model.safetensors")
    asked: list[tuple[Any, ...]] = []

    def download(repo_id: str, filename: str, revision: str | None = None, **_: Any) -> str:
        asked.append((repo_id, filename, revision))
        return str(tmp_path / filename)

    monkeypatch.setattr(timm.models._hub, "hf_hub_download", download)
    spec = EncoderSpec(
        name="hub", modality="image", loader="timm", architecture=f"{ARCHITECTURE}.r160_in1k", revision="c" * 40
    )

    encoder = load_encoder(spec, device="cpu")

    assert asked == [(f"timm/{ARCHITECTURE}.r160_in1k", "model.safetensors", "c" * 40)]
    stem = encoder.network.state_dict()["network.conv_stem.weight"]
    assert torch.equal(stem, published.state_dict()["conv_stem.weight"])


def test_a_training_checkpoint_is_unwrapped_as_timm_does(network: nn.Module, tmp_path: Path) -> None:
    state = {f"module.{key}": value for key, value in network.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "weights.pth.tar")

    encoder = load_encoder(local(tmp_path, checkpoint="weights.pth.tar"), device="cpu")

    stem = encoder.network.state_dict()["network.conv_stem.weight"]
    assert torch.equal(stem, network.state_dict()["conv_stem.weight"])


def test_a_width_other_than_the_declared_one_is_refused(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match=r"declares embed_dim 7 but gives \d+ numbers"):
        load_encoder(local(checkpoint.parent, embed_dim=7), device="cpu")


def test_a_broken_torchvision_is_said_with_what_to_install() -> None:
    error = RuntimeError("operator torchvision::nms does not exist\nmore")

    with pytest.raises(
        ImportError, match=r"a torchvision that matches torch .* \(operator torchvision::nms does not e"
    ):
        networks.refuse_import("timm", error)


def test_a_missing_timm_is_said_with_what_to_install(monkeypatch: pytest.MonkeyPatch, checkpoint: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)

    with pytest.raises(ImportError, match=r"timm cannot be imported .*pip install"):
        load_encoder(local(checkpoint.parent), device="cpu")


def test_a_factory_gets_its_arguments_and_truncation_keeps_the_first_dimensions(tmp_path: Path) -> None:
    encoder = load_encoder(python(tmp_path, "mean", kwargs={"width": 5}, truncate_dim=2), device="cpu")

    assert encoder.facts.embed_dim == 2
    assert encoder.encode(torch.ones(1, 3, 8, 8)).tolist() == [[3.0, 3.0]]


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        ("meen", "factory.py has no function 'meen'; did you mean mean"),
        ("nothing", "must return an nn.Module, got NoneType"),
        ("raises", "factory.py:raises failed: OSError: no such disk"),
        ("unpooled", r"must give one embedding per picture, \(1, D\) for one, got \(1, 4, 8, 8\)"),
    ],
)
def test_a_faulty_factory_is_said_in_one_sentence(tmp_path: Path, function: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        load_encoder(python(tmp_path, function), device="cpu")

    assert "\n" not in str(caught.value)


def test_a_factory_file_that_is_missing_or_cannot_run_is_named(tmp_path: Path) -> None:
    spec = python(tmp_path, "mean")
    (tmp_path / "factory.py").write_text("import nothing_of_that_name\n")
    with pytest.raises(ValueError, match=r"factory.py cannot be run: ModuleNotFoundError: .*nothing_of_that_name"):
        load_encoder(spec, device="cpu")
    (tmp_path / "factory.py").unlink()
    with pytest.raises(FileNotFoundError, match=r"no factory file .*factory.py"):
        load_encoder(spec, device="cpu")


def test_a_changed_factory_is_run_again(tmp_path: Path) -> None:
    spec = python(tmp_path, "mean")
    first = load_encoder(spec, device="cpu").encode(torch.ones(1, 3, 8, 8))
    (tmp_path / "factory.py").write_text(CODE.replace("ones_", "zeros_"))

    second = load_encoder(spec, device="cpu").encode(torch.ones(1, 3, 8, 8))

    assert (float(first.sum()), float(second.sum())) == (9, 0)
