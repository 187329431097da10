"""An identity changes with everything that can change an embedding, with nothing else, and costs no import."""

import json
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hyperalign.embed import networks
from hyperalign.embed.identity import facts, identity, pin, settle, weights_digest
from hyperalign.embed.zoo import EncoderSpec, Facts, trusted

FACTS: dict[str, Any] = {"embed_dim": 4, "n_params": 9, "gflops": 0.5}
PICTURE: dict[str, Any] = {"input_size": 8, "mean": (0, 0, 0), "std": (1, 1, 1), "interpolation": "box", "crop_pct": 1}
FREE = {"name", "license", "folder", *FACTS}  # fields that no embedding depends on
OTHER: dict[str, Any] = {
    "architecture": "resnet18", "checkpoint": "other", "revision": "abc", "factory": "other.py:mean",
    "kwargs": {"depth": 2}, "input_size": 16, "mean": (0, 0, 1), "std": (1, 1, 2), "interpolation": "bicubic",
    "crop_pct": 0.5, "pooling": "max", "prompt": "", "truncate_dim": 2, "name": "other", "license": "MIT",
    "embed_dim": 5, "n_params": 10, "gflops": 0.6,
}  # fmt: skip
CODE = """
from pathlib import Path
import torch
from safetensors.torch import load_file
from torch import nn

class Mean(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 4, bias=False)
    def forward(self, pictures):
        return self.linear(pictures.mean((2, 3)))

def mean():
    network = Mean()
    network.load_state_dict(load_file(Path(__file__).parent / "weights.safetensors"))
    return network
"""


def of_timm(folder: Path, **changes: Any) -> EncoderSpec:
    for name in ("weights", "other"):
        (folder / name).write_text(name)
    given = {"architecture": "resnet10t", "checkpoint": "weights", **PICTURE, **FACTS, **changes}
    return EncoderSpec(name="e", modality="image", loader="timm", folder=folder, **given)


def of_sentences(folder: Path, **changes: Any) -> EncoderSpec:
    for name in ("text", "other"):
        (folder / name).mkdir(exist_ok=True)
        for file in ("model.safetensors", "tokenizer.json", "README.md", "pytorch_model.bin"):
            (folder / name / file).write_text(f"{name} {file}")
    given = {"checkpoint": "text", **FACTS, **changes}
    return EncoderSpec(name="e", modality="text", loader="sentence-transformers", folder=folder, **given)


def of_python(folder: Path, **changes: Any) -> EncoderSpec:
    (folder / "factory.py").write_text(CODE)
    (folder / "other.py").write_text(CODE)
    save_file({"linear.weight": torch.ones(4, 3)}, folder / "weights.safetensors")
    given = {"factory": "factory.py:mean", **PICTURE, **changes}
    return trusted(EncoderSpec(name="e", modality="image", loader="python", folder=folder, **given))


def cases() -> list[Any]:
    known = {"timm": of_timm, "sentence-transformers": of_sentences}
    ignored = {
        "timm": {"prompt", "factory"},
        "sentence-transformers": {"architecture", "factory", *PICTURE},
    }
    return [
        pytest.param(make, field.name, id=f"{loader}-{field.name}")
        for loader, make in known.items()
        for field in fields(EncoderSpec)
        if field.name not in {"modality", "loader", "folder"} | ignored[loader]
    ]


@pytest.mark.parametrize(("make", "field"), cases())
def test_the_identity_changes_with_every_field_that_can_change_an_embedding(
    tmp_path: Path, make: Any, field: str
) -> None:
    spec = make(tmp_path)

    same = identity(replace(spec, **{field: OTHER[field]}), memory=None) == identity(spec, memory=None)

    assert same == (field in FREE)


def test_computing_in_bfloat16_is_another_identity(tmp_path: Path) -> None:
    spec = of_timm(tmp_path)

    assert identity(spec, memory=None, autocast=True) != identity(spec, memory=None)


def test_where_the_zoo_lies_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()

    assert identity(of_timm(tmp_path / "a"), memory=None) == identity(of_timm(tmp_path / "b"), memory=None)


def test_a_flipped_byte_is_another_identity_even_where_the_old_one_is_remembered(tmp_path: Path) -> None:
    spec = of_timm(tmp_path)
    before = identity(spec, memory=tmp_path / "cache")
    (tmp_path / "weights").write_text("weightz")

    assert identity(spec, memory=tmp_path / "cache") != before


@pytest.mark.parametrize(
    ("file", "matters"),
    [("tokenizer.json", True), ("model.safetensors", True), ("README.md", False), ("pytorch_model.bin", False)],
)
def test_of_a_text_folder_only_what_is_read_matters(tmp_path: Path, file: str, matters: bool) -> None:
    spec = of_sentences(tmp_path)
    before = identity(spec, memory=None)
    (tmp_path / "text" / file).write_text("changed")

    assert (identity(spec, memory=None) != before) == matters


def test_code_and_weights_of_a_factory_are_part_of_its_identity(tmp_path: Path) -> None:
    spec, memory = of_python(tmp_path), tmp_path / "cache"
    first = identity(spec, memory=memory)
    (tmp_path / "factory.py").write_text(CODE.replace(".mean(", ".amax("))
    second = identity(spec, memory=memory)
    save_file({"linear.weight": torch.zeros(4, 3)}, tmp_path / "weights.safetensors")
    third = identity(spec, memory=memory)

    assert len({first, second, third}) == 3


def test_a_factory_is_built_once_though_caches_and_runs_grow_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, memory = of_python(tmp_path), tmp_path / "cache"
    before = identity(spec, memory=memory), facts(spec, memory=memory)
    (memory / "rows").mkdir()
    np.save(memory / "rows" / "part-00000.npy", np.ones(3))
    run = tmp_path / "reports" / "first"
    run.mkdir(parents=True)
    (run / "result.json").write_text("{}")
    (run / "connectors.safetensors").write_bytes(b"")
    monkeypatch.setattr(networks, "build_network", None)

    assert (identity(spec, memory=memory), facts(spec, memory=memory)) == before
    assert before[1] == Facts(4, 12, 2 * 3 * 4 / 1e9)


def test_facts_are_measured_once_and_declared_ones_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = EncoderSpec(name="e", modality="image", loader="timm", architecture="test_efficientnet", n_params=7)
    measured = facts(spec, memory=tmp_path)
    monkeypatch.setattr(networks, "build_network", None)

    again = settle(replace(spec, name="renamed"), memory=tmp_path)

    assert measured.n_params == 7
    assert (again.embed_dim, again.n_params, again.gflops) == measured
    assert facts(replace(spec, embed_dim=5, gflops=1.0), memory=None) == Facts(5, 7, 1.0)


def test_an_undeclared_preprocessing_is_the_networks_own(tmp_path: Path) -> None:
    own = of_timm(tmp_path, **dict.fromkeys(PICTURE), architecture="test_efficientnet")

    described = json.loads(identity(own, memory=None).preprocess)

    assert described["size"] == [160, 160]
    assert described["interpolation"] == "bicubic"


def test_asking_for_facts_downloads_no_text_encoder() -> None:
    spec = EncoderSpec(
        name="e", modality="text", loader="sentence-transformers", architecture="a/b", embed_dim=3, n_params=4
    )

    assert facts(spec, memory=None) == Facts(3, 4, None)


def test_the_commit_of_a_hub_is_asked_once_and_then_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def download(repository: str, file: str) -> str:
        asked.append((repository, file))
        return f"/hub/snapshots/{'c' * 40}/{file}"

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    image = EncoderSpec(name="i", modality="image", loader="timm", architecture="test_efficientnet.r160_in1k")
    text = EncoderSpec(name="t", modality="text", loader="sentence-transformers", architecture="all-MiniLM-L6-v2")

    pinned = [pin(spec, memory=tmp_path) for spec in (image, text, image, text)]

    assert {spec.revision for spec in pinned} == {"c" * 40}
    assert asked == [
        ("timm/test_efficientnet.r160_in1k", "config.json"),
        ("sentence-transformers/all-MiniLM-L6-v2", "modules.json"),
    ]
    assert pin(replace(image, revision="abc"), memory=None).revision == "abc"
    assert identity(pinned[0], memory=tmp_path) != identity(replace(image, revision="abc"), memory=tmp_path)


def test_a_hub_that_cannot_be_asked_is_one_sentence() -> None:
    spec = EncoderSpec(name="t", modality="text", loader="sentence-transformers", architecture="a/b")

    with pytest.raises(FileNotFoundError, match=r"encoder 't': a/b is not in the hub's local cache .*'revision'$"):
        identity(spec, memory=None)


@pytest.mark.parametrize("make", [of_timm, of_sentences])
def test_missing_weights_are_named(tmp_path: Path, make: Any) -> None:
    with pytest.raises(FileNotFoundError, match=r"encoder 'e': no checkpoint .*nowhere"):
        weights_digest(make(tmp_path, checkpoint="nowhere"), memory=None)


def test_ready_rows_are_known_by_the_bytes_of_every_split(tmp_path: Path) -> None:
    for split in ("train", "val"):
        np.save(tmp_path / f"{split}.npy", np.ones((2, 3), np.float32))
    spec = EncoderSpec(name="e", modality="text", loader="rows", checkpoint="{split}.npy", n_params=5, folder=tmp_path)
    before = identity(spec, memory=None)
    np.save(tmp_path / "val.npy", np.zeros((2, 3), np.float32))

    assert identity(spec, memory=None) != before
    assert facts(spec, memory=None) == Facts(3, 5, None)


def test_a_warm_start_imports_no_heavy_library(tmp_path: Path) -> None:
    """Whatever had to be built the first time; half of these facts are not declared."""
    zoo = tmp_path / "zoo"
    zoo.mkdir()
    of_python(zoo)
    save_file({"x": torch.ones(2)}, zoo / "weights")
    (zoo / "zoo.toml").write_text(
        '[[encoder]]\nname = "own"\nmodality = "image"\nloader = "timm"\narchitecture = "test_efficientnet"\n'
        'checkpoint = "weights"\n'
        '[[encoder]]\nname = "factory"\nmodality = "image"\nloader = "python"\nfactory = "factory.py:mean"\n'
        "input_size = 8\nmean = [0, 0, 0]\nstd = [1, 1, 1]\n"
    )
    code = (
        "import sys; from pathlib import Path; from hyperalign.embed.consent import Written;"
        "from hyperalign.embed.zoo import load_zoo;"
        "from hyperalign.embed.identity import identity, settle;"
        f"zoo, memory = load_zoo(Written({str(zoo / 'zoo.toml')!r})), Path({str(tmp_path / 'cache')!r});"
        "print([settle(s, memory=memory) for s in zoo], [identity(s, memory=memory) for s in zoo]);"
        "print([m for m in ('torch', 'timm', 'sentence_transformers', 'transformers') if m in sys.modules])"
    )

    cold, warm = (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
        for _ in range(2)
    )

    assert cold[0] == warm[0]
    assert "timm" in cold[1]
    assert warm[1] == "[]"
