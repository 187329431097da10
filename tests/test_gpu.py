"""What a CUDA device must do as a CPU does, and what only it can be asked: `pytest -m gpu` on a machine with one."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hyperalign.align.connectors import contrastive, tiled_siglip
from hyperalign.config import build
from hyperalign.embed.encoders import embed_captions, embed_pictures, load_encoder
from hyperalign.embed.scenes import open_scene_split
from hyperalign.embed.zoo import find_encoder, load_zoo
from hyperalign.hyperclip.adapt import AdaptConfig, adapt, read_record
from hyperalign.hyperclip.architectures import BOTTLENECKS, find_architecture
from hyperalign.hyperclip.hypernetwork import HyperConfig
from hyperalign.hyperclip.overhead import Shape, measure_overhead
from hyperalign.hyperclip.specialise import specialise
from hyperalign.hyperclip.stored import load_model
from hyperalign.hyperclip.text import TextConfig
from hyperalign.pipeline import SearchConfig, search
from hyperalign.run import load_run

DEVICE = "cuda"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

SMALL = {"n_layers": 1, "width": 64, "n_heads": 4, "feed_forward": 64, "bottleneck": 32}
TRAIN = {"n_steps": 12, "batch_size": 64, "checkpoint_steps": 5, "n_validations": 2}


@pytest.fixture(autouse=True)
def _exact() -> Iterator[None]:
    """Float32 is float32: no products in TF32 beneath these comparisons."""
    with torch.backends.cudnn.flags(allow_tf32=False, deterministic=True):
        yield


def quiet(*_: object) -> None:
    """Report to nobody."""


def from_scratch(arch: str, **train: Any) -> AdaptConfig:
    """An architecture of the paper on scenes, all three methods."""
    record = {
        "arch": arch,
        "input_size": 64,
        "embed_dim": 64,
        "limit": 300,
        "methods": ("siglip", "hyperclip", "hyperclip-flat"),
        "train": {**TRAIN, **train},
        "hyper": SMALL,
        "text": {"n_layers": 1, "width": 32, "n_heads": 4, "context": 24},
    }
    return build(AdaptConfig, record)


@pytest.mark.parametrize("name", ["resnet10-64", "edgenext-128"])
def test_pictures_have_the_rows_that_a_cpu_gives_them(name: str) -> None:
    spec = find_encoder(load_zoo("embedded"), name)
    pictures = open_scene_split("test", seed=0, n_pictures=64).pictures

    rows = [embed_pictures(load_encoder(spec, device=one), pictures, 0, 64)[0] for one in (DEVICE, "cpu")]

    cosines = (rows[0] * rows[1]).sum(1) / np.linalg.norm(rows[0], axis=1) / np.linalg.norm(rows[1], axis=1)
    assert cosines.min() > 0.9999


@pytest.mark.parametrize("name", ["static-256", "bert-128", "lstm-192"])
def test_captions_have_the_rows_that_a_cpu_gives_them(name: str) -> None:
    spec = find_encoder(load_zoo("embedded"), name)
    captions = open_scene_split("test", seed=0, n_pictures=64).captions

    rows = [embed_captions(load_encoder(spec, device=one), captions) for one in (DEVICE, "cpu")]

    np.testing.assert_allclose(rows[0], rows[1], atol=1e-4 * np.abs(rows[1]).max())


@pytest.mark.parametrize("loss", ["infonce", "siglip"])
def test_losses_and_gradients_are_those_of_a_cpu(loss: str) -> None:
    dice = torch.Generator().manual_seed(0)
    sides = [torch.nn.functional.normalize(torch.randn(2, 3000, 64, generator=dice), dim=2) for _ in range(2)]
    found = []
    for device in (DEVICE, "cpu"):
        image, text = (side.to(device).requires_grad_() for side in sides)
        scale, bias = torch.tensor(10.0, device=device), torch.tensor(-10.0, device=device)
        losses = contrastive(image, text, scale) if loss == "infonce" else tiled_siglip(image, text, scale, bias)
        losses.sum().backward()
        assert image.grad is not None
        found.append((float(losses.detach().sum()), image.grad.cpu()))

    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-3, atol=1e-7)


def test_a_search_embeds_on_it_and_ranks_as_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = SearchConfig(zoo=("embedded",), data="scenes", limit=200, verify=0, exhaustive=True, scores=False)
    tables = []
    for folder, cpu in (("gpu", "false"), ("cpu", "true")):
        monkeypatch.setenv("ACCELERATE_USE_CPU", cpu)
        run = search(config, cache_dir=tmp_path / folder, out=tmp_path / folder, progress=quiet, say=quiet)
        tables.append(load_run(run).leaderboard.set_index(["image_encoder", "text_encoder", "method"])["score"])

    assert (tables[0] - tables[1].reindex(tables[0].index)).abs().max() < 2  # a hit more or less of 20 pictures and so
    assert tables[0].corr(tables[1].reindex(tables[0].index), method="spearman") > 0.98


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
@pytest.mark.parametrize("arch", ["M1", "T0", "E0"])
def test_three_architectures_learn_on_it(arch: str, precision: str, tmp_path: Path) -> None:
    folder = adapt(from_scratch(arch, precision=precision), cache_dir=tmp_path / "cache", out=tmp_path)

    record = read_record(folder)
    assert record["status"] == "finished"
    for method in ("siglip", "hyperclip", "hyperclip-flat"):
        looks = record["trainings"][method]["looks"]
        assert looks[-1]["loss"] < looks[0]["loss"]
        assert len(record["trainings"][method]["validated"]) == 3


def test_a_training_that_was_cut_short_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    config = replace(from_scratch("M1"), methods=("hyperclip",))

    def cut(name: str, done: int, total: int) -> None:
        if name == "training hyperclip" and done == 8:
            raise KeyboardInterrupt

    whole = adapt(config, cache_dir=tmp_path / "cache", out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        adapt(config, cache_dir=tmp_path / "cache", out=tmp_path / "cut", progress=cut)
    (folder,) = (tmp_path / "cut").iterdir()
    adapt(config, cache_dir=tmp_path / "cache", out=tmp_path / "cut", resume=folder)

    trained = [read_record(one)["trainings"]["hyperclip"] for one in (whole, folder)]
    assert trained[1]["resumed_at"] == 5
    losses = [[look["loss"] for look in one["looks"]] for one in trained]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)  # sums on a GPU have no order


@pytest.mark.parametrize("arch", sorted(BOTTLENECKS))
def test_a_specialised_encoder_is_the_live_one(arch: str, tmp_path: Path) -> None:
    config = replace(from_scratch(arch, n_steps=2), methods=("hyperclip",), limit=100)
    model = load_model(adapt(config, cache_dir=tmp_path / "cache", out=tmp_path) / "hyperclip")
    words, pictures = ["red circle", "blue star", "a dotted square"], torch.randn(4, 3, 64, 64)
    model.network.to(DEVICE).eval()

    folded = specialise(model, words)

    with torch.no_grad():
        live = model.network.embed_pictures(pictures.to(DEVICE), model.network.emit(folded.classes.to(DEVICE)))
        model.network.image.load_state_dict({name: one.to(DEVICE) for name, one in folded.state.items()})
        plain = model.network.embed_pictures(pictures.to(DEVICE), {})
    torch.testing.assert_close(live, plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize("arch", sorted(BOTTLENECKS))
def test_the_overhead_is_measured_at_the_largest_batch_that_fits(arch: str, record_property: Any) -> None:
    shape = Shape(image=find_architecture(arch), hyper=HyperConfig(bottleneck=BOTTLENECKS[arch]), text=TextConfig())

    found = measure_overhead(shape, batch_size=None, device=DEVICE, precision=torch.bfloat16)

    assert found.batch_size >= 64
    assert found.hyper_per_second is not None
    assert found.slower is not None
    record_property(arch, str(found))


@pytest.mark.parametrize("n_items", [8_192, 32_768])
def test_siglip_of_a_large_batch_stays_in_little_memory(n_items: int) -> None:
    image, text = (torch.randn(1, n_items, 512, device=DEVICE, requires_grad=True) for _ in range(2))
    scale, bias = torch.tensor(10.0, device=DEVICE), torch.tensor(-10.0, device=DEVICE)
    torch.cuda.reset_peak_memory_stats()

    tiled_siglip(image, text, scale, bias).sum().backward()

    assert torch.cuda.max_memory_allocated() < 2**30
