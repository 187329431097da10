"""Pictures become rows: in their places, the same by whichever way they come, NaN where they cannot be read."""

import os
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from hyperalign.embed import networks
from hyperalign.embed.consent import Written
from hyperalign.embed.encoders import Encoder, embed_captions, embed_pictures, load_encoder, measure_latency, open_rows
from hyperalign.embed.zoo import EncoderSpec, load_zoo

ARCHITECTURE = "test_efficientnet"
CODE = """
import torch
from torch import nn

class Mean(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3, bias=False)
        nn.init.ones_(self.linear.weight)
    def forward(self, pictures):
        return self.linear(pictures.mean((2, 3)))

def mean():
    return Mean()

def convolution():
    return nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten())
"""


class _Drawn:
    """Pictures of noise in memory; number 2 can be broken."""

    def __init__(self, n: int, side: int, broken: Exception | None = None) -> None:
        self.pixels = np.random.default_rng(0).integers(0, 256, (n, side, side, 3), dtype=np.uint8)
        self.broken = broken

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Image.Image:
        if index == 2 and self.broken is not None:
            raise self.broken
        return Image.fromarray(self.pixels[index])


class _DrawnAtOnce(_Drawn):
    """The same, with blocks; a view that cannot be written to, as of a mapped file."""

    def block(self, start: int, stop: int) -> NDArray[np.uint8]:
        view = self.pixels[start:stop]
        view.flags.writeable = False
        return view


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


def test_bytes_normalised_on_the_device_equal_timms_own_preprocessing(checkpoint: Path) -> None:
    spec = local(checkpoint.parent, crop_pct=0.875, interpolation="bilinear", mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    encoder = load_encoder(spec, device="cpu")
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (130, 170, 3), dtype=np.uint8))
    own = timm.data.create_transform(
        input_size=(3, 96, 96), crop_pct=0.875, interpolation="bilinear", mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)
    )

    rows = encoder.encode(encoder.preprocess(picture)[None])

    assert torch.equal(rows, encoder.encode(own(picture)[None]))


def test_the_models_own_preprocessing_is_the_default() -> None:
    spec = EncoderSpec(name="own", modality="image", loader="timm", architecture="test_vit.r160_in1k")

    picture = networks.build_network(spec, weights=False).picture

    config = timm.get_pretrained_cfg("test_vit.r160_in1k")
    assert picture.size == config.input_size[1:]
    assert (picture.mean, picture.std) == (config.mean, config.std)
    assert (picture.interpolation, picture.crop_pct) == (config.interpolation, config.crop_pct)


def test_a_picture_that_cannot_be_decoded_has_a_row_of_nan_and_spoils_no_other(tmp_path: Path) -> None:
    encoder = load_encoder(python(tmp_path, "mean"), device="cpu")
    whole, _ = embed_pictures(encoder, _Drawn(6, 8), 1, 6, batch_size=2)

    rows, bad = embed_pictures(encoder, _Drawn(6, 8, broken=SyntaxError("broken PNG file")), 1, 6, batch_size=2)

    assert bad == [(2, "SyntaxError: broken PNG file")]
    assert np.isnan(rows[1]).all()
    assert np.array_equal(np.delete(rows, 1, 0), np.delete(whole, 1, 0))


def test_the_reason_is_the_same_in_every_run(tmp_path: Path) -> None:
    encoder = load_encoder(python(tmp_path, "mean"), device="cpu")
    error = OSError(f"cannot identify image file {BytesIO()!r}\nat all")

    _, bad = embed_pictures(encoder, _Drawn(3, 8, broken=error), 0, 3)

    assert bad == [(2, "OSError: cannot identify image file at all")]


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Files(_Drawn):
        def __getitem__(self, index: int) -> Image.Image:
            file = BytesIO()
            Image.fromarray(self.pixels[index]).resize((8 + 4 * (index == 1), 8)).save(file, "png")
            return Image.open(file)

    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 80)  # PIL itself only warns below twice as many
    encoder = load_encoder(python(tmp_path, "mean"), device="cpu")

    rows, bad = embed_pictures(encoder, Files(3, 8), 0, 3)

    assert [index for index, _ in bad] == [1]
    assert "DecompressionBomb" in bad[0][1]
    assert np.isfinite(rows[[0, 2]]).all()


def test_workers_change_nothing(tmp_path: Path) -> None:
    encoder = load_encoder(python(tmp_path, "mean"), device="cpu")
    pictures = _Drawn(7, 20, broken=OSError("torn"))

    alone, bad = embed_pictures(encoder, pictures, 0, 7, batch_size=2, n_workers=0)
    helped, bad_helped = embed_pictures(encoder, pictures, 0, 7, batch_size=2, n_workers=2)

    assert np.array_equal(alone, helped, equal_nan=True)
    assert bad == bad_helped == [(2, "OSError: torn")]


@pytest.mark.parametrize("side", [8, 20])
def test_a_block_of_pictures_gives_the_rows_of_its_pictures(tmp_path: Path, side: int) -> None:
    encoder = load_encoder(python(tmp_path, "mean", mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)), device="cpu")

    rows, bad = embed_pictures(encoder, _DrawnAtOnce(7, side), 1, 6, batch_size=2)

    assert np.array_equal(rows, embed_pictures(encoder, _Drawn(7, side), 1, 6, batch_size=2)[0])
    assert bad == []


def test_an_empty_stretch_has_no_rows(tmp_path: Path) -> None:
    encoder = load_encoder(python(tmp_path, "mean"), device="cpu")

    assert embed_pictures(encoder, _Drawn(3, 8), 2, 2)[0].shape == (0, 3)
    assert embed_pictures(encoder, _DrawnAtOnce(3, 8), 2, 2)[0].shape == (0, 3)


def test_a_grey_picture_counts_as_one_in_colour(tmp_path: Path) -> None:
    encoder = load_encoder(python(tmp_path, "mean"), device="cpu")

    grey = encoder.preprocess(Image.new("L", (8, 8), 51))

    assert grey.shape == (3, 8, 8)
    assert encoder.encode(grey[None]).tolist() == [pytest.approx([0.6] * 3)]  # 3 × 51/255


def test_bfloat16_is_near_and_not_the_same(checkpoint: Path) -> None:
    single = load_encoder(local(checkpoint.parent), device="cpu")
    half = load_encoder(local(checkpoint.parent), device="cpu", autocast=True)
    pictures = torch.rand(2, 3, 96, 96)

    rows, expected = half.encode(pictures), single.encode(pictures)

    assert rows.dtype == torch.float32
    assert not torch.equal(rows, expected)
    assert torch.cosine_similarity(rows, expected).min() > 0.99


def test_threads_are_as_many_as_before_afterwards(tmp_path: Path) -> None:
    seen: list[int] = []
    encoder = load_encoder(python(tmp_path, "mean"), device="cpu", n_threads=2)
    encoder.network.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    assert before != 2

    encoder.encode(torch.zeros(1, 3, 8, 8))

    assert seen == [2]
    assert torch.get_num_threads() == before


def test_accelerate_chooses_the_device_when_nobody_else_does(tmp_path: Path) -> None:
    expected = "cuda" if torch.cuda.is_available() else "cpu"

    assert load_encoder(python(tmp_path, "mean")).device.type == expected


def test_latency_is_a_median_of_milliseconds(tmp_path: Path) -> None:
    encoder = load_encoder(python(tmp_path, "mean"), device="cpu")

    assert 0 < measure_latency(encoder) < 1000


def test_a_convolution_costs_two_flops_a_multiply_add(tmp_path: Path) -> None:
    facts = load_encoder(python(tmp_path, "convolution"), device="cpu").facts

    assert facts.gflops == 2 * 8 * 8 * 3 * 4 / 1e9
    assert facts.n_params == 12
    assert facts.embed_dim == 4


def test_a_picture_encoder_embeds_no_captions(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="embeds pictures, not captions"):
        embed_captions(load_encoder(python(tmp_path, "mean"), device="cpu"), ["a"])


def test_ready_rows_are_opened_by_split(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    np.save(tmp_path / "rows" / "val.npy", np.ones((4, 3), np.float16))
    spec = EncoderSpec(
        name="ready", modality="image", loader="rows", checkpoint="rows/{split}.npy", n_params=0, folder=tmp_path
    )

    assert open_rows(spec, "val").shape == (4, 3)
    with pytest.raises(FileNotFoundError, match=r"encoder 'ready': no embeddings .*test.npy for split 'test'"):
        open_rows(spec, "test")
    np.save(tmp_path / "rows" / "val.npy", np.ones(4, np.int64))
    with pytest.raises(ValueError, match=r"must hold \(n, D\) floats, got \(4,\) int64"):
        open_rows(spec, "val")
    (tmp_path / "rows" / "val.npy").write_bytes(b"")
    with pytest.raises(ValueError, match=r"val.npy is no whole .npy of numbers"):
        open_rows(spec, "val")


@pytest.mark.bench
def test_every_encoder_of_the_benchmark_embeds_as_an_independent_reading_of_it() -> None:
    folder = Path(os.environ["HYPERALIGN_BENCH"])
    pictures = _Photographs(folder, 24)
    for spec in load_zoo(folder / "zoo.toml"):
        encoder = load_encoder(spec, device="cpu")
        if spec.modality == "image":
            rows, bad = embed_pictures(encoder, pictures, 0, len(pictures), batch_size=8)
            assert not bad
            assert np.allclose(rows, independent_rows(encoder, pictures), rtol=1e-3, atol=1e-3), spec.name
        else:
            rows = embed_captions(encoder, ["a dog runs", "qqq", "two children play"])
        assert np.isfinite(rows).all()
        assert rows.std() > 0


class _Photographs:
    """The first validation pictures of the benchmark."""

    def __init__(self, folder: Path, n: int) -> None:
        with tarfile.open(min((folder / "flickr8k").glob("val-*.tar"))) as tar:
            members = [member for member in tar if member.name.endswith(".jpg")][:n]
            self.files = [tar.extractfile(member).read() for member in members]  # type: ignore[union-attr]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Image.Image:
        return Image.open(BytesIO(self.files[index])).convert("RGB")


def independent_rows(encoder: Encoder, pictures: _Photographs) -> NDArray[np.float32]:
    """Preprocessing by hand, from the numbers of the zoo file; the network in its usual memory format."""
    spec = encoder.spec
    assert spec.input_size is not None
    assert spec.crop_pct is not None
    side = int(spec.input_size / spec.crop_pct)
    rows = []
    for index in range(len(pictures)):
        picture = pictures[index].resize((side, side), Image.Resampling.BILINEAR)
        edge = round((side - spec.input_size) / 2)
        picture = picture.crop((edge, edge, edge + spec.input_size, edge + spec.input_size))
        pixels = (np.asarray(picture) / 255 - np.array(spec.mean)) / np.array(spec.std)
        rows.append(torch.from_numpy(pixels.transpose(2, 0, 1).copy()).float())
    network = encoder.network.to(memory_format=torch.contiguous_format)
    with torch.inference_mode():
        return np.asarray(network(torch.stack(rows)).numpy())
