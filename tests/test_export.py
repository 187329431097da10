"""A pair of a finished run as one model, and as a folder that runs by itself."""

import errno
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from small_zoo import small_search, write_world

import hyperalign
from hyperalign.cli import main
from hyperalign.embed.cache import find_entries, open_folder
from hyperalign.embed.consent import Written
from hyperalign.embed.data import open_dataset
from hyperalign.embed.encoders import embed_captions, embed_pictures
from hyperalign.embed.zoo import Limits, Range, load_zoo
from hyperalign.pipeline import SearchConfig, search
from hyperalign.run import load_run
from hyperalign.use.chosen import choose_pair
from hyperalign.use.dual import DualEncoder
from hyperalign.use.export import export
from hyperalign.use.folder import drafted_folder
from hyperalign.use.joint import join_images, join_texts
from hyperalign.use.opened import trained_on

FACTORY = """
from pathlib import Path

import torch
from safetensors.torch import load_file


def tiny(width):
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, width, 8, 8), torch.nn.GELU(), torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten()
    )
    network.load_state_dict(load_file(Path(__file__).parent / "numbers" / "tiny.safetensors"))
    return network
"""
MADE = """
[[encoder]]
name = "tiny"
modality = "image"
loader = "python"
factory = "nets.py:tiny"
kwargs = { width = 6 }
input_size = 32
mean = [0.5, 0.4, 0.3]
std = [0.2, 0.3, 0.4]
license = "CC-BY-4.0"
"""
EMBEDDED = ("resnet10-64", "static-256", "bert-128", "counts-128", "lstm-192")
CAPTIONS = ["a red circle above a blue square", "two green stars", "a small yellow triangle on the left"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zoo of embedded encoders and one of a factory, and a run over some scenes in which each pair keeps its row."""
    folder = tmp_path_factory.mktemp("export")
    torch.manual_seed(0)
    (folder / "numbers").mkdir()
    save_file({"0.weight": torch.randn(6, 3, 8, 8) / 14, "0.bias": torch.zeros(6)}, folder / "numbers/tiny.safetensors")
    (folder / "nets.py").write_text(FACTORY)
    tables = [MADE]
    for spec in load_zoo("embedded"):
        if spec.name in EMBEDDED:
            kept = ("name", "modality", "loader", "architecture", "kwargs", "input_size", "mean", "std", "license")
            facts: dict[str, Any] = {key: getattr(spec, key) for key in kept if getattr(spec, key) not in (None, {})}
            facts |= {"checkpoint": str(spec.local_checkpoint())}
            if spec.modality == "text":
                facts = {key: facts[key] for key in facts if key not in ("kwargs",)}
            tables.append("[[encoder]]\n" + "\n".join(f"{key} = {_toml(value)}" for key, value in facts.items()))
    (folder / "zoo.toml").write_text("\n\n".join(tables))
    config = SearchConfig(
        zoo=(Written(folder / "zoo.toml"),),
        limit=60,
        methods=("hypernet", "ape"),
        sides="text",
        baseline_seeds=1,
        scores=False,
        train={"n_steps": 5, "batch_size": 32, "pairs_per_step": 4},
        baseline={"n_epochs": 1.0, "batch_size": 32},
    )
    search(config, cache_dir=folder / "cache", out=folder / "reports", progress=_silent, say=lambda sentence: None)
    return folder


@pytest.fixture(scope="module")
def run(home: Path) -> Path:
    return next((home / "reports").iterdir())


@pytest.fixture(scope="module")
def pictures(home: Path) -> list[Image.Image]:
    split = open_dataset("scenes", strict=False, seed=0, limit=60, memory=home / "cache", progress=_silent).splits[
        "test"
    ]
    return [split.pictures[index] for index in range(len(split.pictures))]


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(one)}" for key, one in value.items()) + " }"
    return json.dumps(list(value) if isinstance(value, tuple) else value)


def _silent(stage: str, done: int, total: int) -> None:
    pass


def _row(run: Path, image: str, text: str, method: str = "hypernet") -> dict[str, Any]:
    return choose_pair(run, f"{image}+{text}", method=method).row


def _same(one: DualEncoder, other: DualEncoder, pictures: list[Image.Image], tolerance: float) -> None:
    for first, second in (
        (one.encode_image(pictures), other.encode_image(pictures)),
        (one.encode_text(CAPTIONS), other.encode_text(CAPTIONS)),
    ):
        torch.testing.assert_close(first, second, rtol=0, atol=tolerance)


@pytest.mark.parametrize("method", ["hypernet", "ape", "polished"])
def test_a_pair_scores_what_the_table_says(home: Path, run: Path, pictures: list[Image.Image], method: str) -> None:
    pair = "resnet10-64+static-256"
    if method == "polished":  # the first alone is
        rows = load_run(run).leaderboard.query("method == 'polished'")
        pair = "+".join(rows[["image_encoder", "text_encoder"]].iloc[0])
    split = open_dataset("scenes", strict=False, seed=0, limit=60, memory=home / "cache", progress=_silent).splits[
        "test"
    ]
    model = hyperalign.open_pair(run, pair, method=method, device="cpu")

    cosines = model.similarity(model.encode_image(pictures), model.encode_text(split.captions))

    owner = torch.from_numpy(split.owner)
    t2i = (cosines.argmax(0) == owner).double().mean()
    i2t = (owner[cosines.argmax(1)] == torch.arange(len(pictures))).double().mean()
    image, text = pair.split("+")
    row = _row(run, image, text, method)
    assert model.logit_scale == (None if method == "ape" else 10)
    assert 100 * float(t2i) == pytest.approx(row["t2i_recall_at_1"], abs=1e-4)
    assert 100 * float(i2t) == pytest.approx(row["i2t_recall_at_1"], abs=1e-4)
    assert row["score"] > 100 / len(pictures)  # chance


@pytest.mark.parametrize("with_weights", [False, True])
@pytest.mark.parametrize("pair", ["resnet10-64+bert-128", "tiny+counts-128"])
def test_an_exported_pair_encodes_as_a_float32_re_encoding_and_as_the_cached_rows(
    home: Path, run: Path, tmp_path: Path, pictures: list[Image.Image], pair: str, with_weights: bool
) -> None:
    folder = export(run, tmp_path / "model", pair, with_weights=with_weights)

    model = hyperalign.load(folder, device="cpu", trust_code=True)

    chosen, rows = choose_pair(run, pair), model.encode_image(pictures)
    raw, bad = embed_pictures(model.image, _Listed(pictures), 0, len(pictures))
    assert not bad
    torch.testing.assert_close(rows, join_images(chosen.joint, torch.from_numpy(raw)), rtol=0, atol=1e-5)
    cached = _cached(home, chosen.image.name, len(pictures), raw)
    np.testing.assert_allclose(cached.astype(np.float32), raw, rtol=2**-11, atol=2**-24)
    assert (join_images(chosen.joint, torch.from_numpy(cached.astype(np.float32))) - rows).abs().max() < 2e-3
    captions = embed_captions(model.text, CAPTIONS)
    expected = join_texts(chosen.joint, torch.from_numpy(captions))
    torch.testing.assert_close(model.encode_text(CAPTIONS), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(len(rows)), rtol=0, atol=1e-5)
    assert (folder / "encoders").exists() == with_weights


class _Listed:
    """Pictures that are at hand."""

    def __init__(self, pictures: list[Image.Image]) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Image.Image:
        return self.pictures[index]


def _cached(home: Path, name: str, n_rows: int, like: Any) -> Any:
    """The cached rows of the split that `like` belongs to."""
    entries = [one for one in find_entries(home / "cache") if one.folder.name.startswith(f"{name}--")]
    tables = [open_folder(one.folder).rows[:] for one in entries if one.shape and one.shape[0] == n_rows]
    return min(tables, key=lambda table: np.abs(table.astype(np.float32) - like).max())


def test_what_runs_by_itself_needs_nothing_of_the_zoo(home: Path, run: Path, tmp_path: Path) -> None:
    folder = export(run, tmp_path / "model", "tiny+static-256", with_weights=True)
    before = hyperalign.load(folder, device="cpu", trust_code=True).encode_text(CAPTIONS)
    moved = folder.rename(tmp_path / "elsewhere")
    (home / "nets.py").rename(home / "gone.py")

    try:
        model = hyperalign.load(moved, device="cpu", trust_code=True)
    finally:
        (home / "gone.py").rename(home / "nets.py")

    assert torch.equal(model.encode_text(CAPTIONS), before)
    assert (moved / "encoders/image/numbers/tiny.safetensors").is_file()
    assert not list(moved.rglob("__pycache__"))


def test_code_that_a_folder_names_is_not_run_unasked(run: Path, tmp_path: Path) -> None:
    folder = export(run, tmp_path / "model", "tiny+static-256", with_weights=True)
    ran = tmp_path / "ran"
    code = folder / "encoders/image/nets.py"
    code.write_text(f"open({str(ran)!r}, 'w')\n{code.read_text()}")

    with pytest.raises(ValueError, match=r"nets\.py; read that file, then load with trust_code=True"):
        hyperalign.load(folder)

    assert not ran.exists()


def test_weights_that_have_changed_since_are_refused(home: Path, run: Path, tmp_path: Path) -> None:
    folder = export(run, tmp_path / "model", "resnet10-64+static-256", with_weights=True)
    weights = next((folder / "encoders/image").iterdir())
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)

    with pytest.raises(ValueError, match="'resnet10-64' is not what it was when"):
        hyperalign.load(folder)


def test_an_encoder_that_has_changed_since_the_run_is_refused(home: Path, run: Path) -> None:
    numbers = home / "numbers/tiny.safetensors"
    before = numbers.read_bytes()
    save_file({"0.weight": torch.zeros(6, 3, 8, 8), "0.bias": torch.ones(6)}, numbers)

    try:
        with pytest.raises(ValueError, match="'tiny' has changed since"):
            choose_pair(run, "tiny+static-256")
    finally:
        numbers.write_bytes(before)


def test_one_picture_and_one_caption_are_lists_of_one_in_whatever_form(run: Path, tmp_path: Path) -> None:
    model = hyperalign.open_pair(run, "resnet10-64+static-256", device="cpu")
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(path)

    rows = [model.encode_image(one) for one in (path, str(path), path.read_bytes(), Image.open(path))]
    together = model.encode_image([path, Image.open(path)])

    assert all(torch.equal(one, rows[0]) and one.shape == (1, model.embed_dim) for one in rows)
    torch.testing.assert_close(together[1:], rows[0])
    assert torch.equal(model.encode_text(CAPTIONS[0]), model.encode_text(CAPTIONS[:1]))
    assert model.encode_text([]).shape == (0, model.embed_dim)
    assert model.encode_image([]).shape == (0, model.embed_dim)


def test_a_picture_that_cannot_be_read_is_named_or_left_out(run: Path, tmp_path: Path) -> None:
    model = hyperalign.open_pair(run, "resnet10-64+static-256", device="cpu")
    good, broken = Image.new("RGB", (8, 8), "red"), tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff\xe0 no picture")

    with pytest.raises(ValueError, match=r"broken\.jpg cannot be read"):
        model.encode_image([good, broken, good])
    found = model.encode_pictures(_Listed([good, broken, good]))  # type: ignore[list-item]

    assert [index for index, _ in found.bad] == [1]
    assert found.rows.isnan().all(1).tolist() == [False, True, False]


def test_a_caption_of_unknown_words_is_a_row_of_zeros(run: Path) -> None:
    model = hyperalign.open_pair(run, "resnet10-64+counts-128", device="cpu")

    rows = model.encode_text(["zyzzyva quetzal", CAPTIONS[0]])

    assert rows.norm(dim=1).round(decimals=5).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("pair", ["resnet10-64+static-256", "resnet10-64+bert-128", "resnet10-64+counts-128"])
def test_sentence_transformers_alone_loads_a_pair_and_encodes_both_sides(
    run: Path, tmp_path: Path, pictures: list[Image.Image], pair: str
) -> None:
    pytest.importorskip("sentence_transformers", minversion="6")  # older ones are refused with a sentence
    from sentence_transformers import SentenceTransformer

    folder = export(run, tmp_path / "model", pair, format="sentence-transformers")

    model: Any = SentenceTransformer(str(folder), device="cpu")

    ours = hyperalign.load(folder, device="cpu")
    image, text = model.encode(pictures[:5], convert_to_tensor=True), model.encode(CAPTIONS, convert_to_tensor=True)
    torch.testing.assert_close(image, ours.encode_image(pictures[:5]), rtol=0, atol=1e-5)
    torch.testing.assert_close(text, ours.encode_text(CAPTIONS), rtol=0, atol=1e-5)
    torch.testing.assert_close(model.similarity(image, text), ours.similarity(image, text), rtol=0, atol=1e-4)
    assert '"hyperalign' not in (folder / "router_config.json").read_text()


def test_an_encoder_of_a_factory_needs_leave_in_sentence_transformers_too(
    run: Path, tmp_path: Path, pictures: list[Image.Image]
) -> None:
    pytest.importorskip("sentence_transformers", minversion="6")  # older ones are refused with a sentence
    from sentence_transformers import SentenceTransformer

    folder = export(run, tmp_path / "model", "tiny+static-256", format="sentence-transformers")

    with pytest.raises(ValueError, match="trust_remote_code"):
        SentenceTransformer(str(folder), device="cpu")
    model: Any = SentenceTransformer(str(folder), device="cpu", trust_remote_code=True)

    ours = hyperalign.load(folder, device="cpu", trust_code=True).encode_image(pictures[:3])
    torch.testing.assert_close(model.encode(pictures[:3], convert_to_tensor=True), ours, rtol=0, atol=1e-5)


@pytest.mark.parametrize("pair", ["tiny+static-256", "resnet10-64+counts-128", "tiny+lstm-192"])
def test_onnxruntime_gives_the_same_rows(run: Path, tmp_path: Path, pair: str) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")

    folder = export(run, tmp_path / "model", pair, format="onnx")

    model = hyperalign.load(folder, device="cpu", trust_code=True)
    session = onnxruntime.InferenceSession(str(folder / "image.onnx"))
    picture = Image.new("RGB", (50, 70), "orange")
    pixels = model.image.preprocess(picture).unsqueeze(0).repeat(3, 1, 1, 1).numpy()
    (rows,) = session.run(None, {"pixels": pixels})
    np.testing.assert_allclose(rows, model.encode_image([picture] * 3).numpy(), atol=1e-4)
    assert (folder / "text.onnx").is_file()
    assert list((folder / "tokenizer").iterdir())


@pytest.mark.parametrize("n_layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_an_lstm_on_padded_captions_gives_what_it_gives_on_packed_ones(n_layers: int, bidirectional: bool) -> None:
    pytest.importorskip("onnxscript")
    from sentence_transformers.sentence_transformer.modules import LSTM

    from hyperalign.use.as_onnx import Recurrent

    torch.manual_seed(0)
    lengths = torch.tensor([5, 1, 3, 9])
    mask = (torch.arange(9) < lengths.unsqueeze(1)).long()
    given = {"token_embeddings": torch.randn(4, 9, 6), "attention_mask": mask, "sentence_lengths": lengths}
    step = LSTM(6, 4, num_layers=n_layers, bidirectional=bidirectional)

    with torch.no_grad():
        own, packed = (one(dict(given))["token_embeddings"] for one in (Recurrent(step), step))

    torch.testing.assert_close(own * mask.unsqueeze(2), packed * mask.unsqueeze(2), rtol=0, atol=1e-6)


@pytest.mark.parametrize("format", ["hyperalign", "sentence-transformers", "onnx"])
def test_the_examples_of_the_card_run(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], format: str
) -> None:
    if format == "onnx":
        pytest.importorskip("onnxscript")
    if format == "sentence-transformers":
        pytest.importorskip("sentence_transformers", minversion="6")
    folder = export(run, tmp_path / "model", "resnet10-64+static-256", format=format)
    Image.new("RGB", (90, 60), "green").save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL)

    for example in examples:
        exec(compile(example, "README.md", "exec"), {})

    assert len(examples) == (1 if format == "hyperalign" else 2)
    assert capsys.readouterr().out.count("[[") == len(examples)


def test_an_exported_pair_is_scored_on_the_splits_of_its_training(run: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(run, tmp_path / "moved")
    result = json.loads((moved / "result.json").read_text())
    (moved / "result.json").write_text(json.dumps({**result, "seeds": [7, 8]}))

    exported = export(moved, tmp_path / "model", "tiny+static-256")

    known = trained_on(exported)
    assert known is not None
    assert known.seed == 7
    assert known == trained_on(moved)


def test_the_card_says_what_was_measured_and_whose_terms_hold(run: Path, tmp_path: Path) -> None:
    folder = export(run, tmp_path / "model", "tiny+static-256")

    card, row = (folder / "README.md").read_text(), _row(run, "tiny", "static-256")
    assert f"{row['score']:.2f} (95 % interval {row['score_low']:.2f} to {row['score_high']:.2f})" in card
    assert "The encoder tiny is under CC-BY-4.0." in card
    assert 'license: "other"' in card
    assert "hyperalign export" in card
    assert "--pair tiny+static-256" in card
    assert "| train | 60 |" in card


def test_names_in_a_card_are_text_and_nothing_else() -> None:
    from hyperalign.use.card import escape

    assert escape("<script>x</script>\n# [a](b) `c`") == "&lt;script\\>x&lt;/script\\>u000a\\# \\[a\\](b) \\`c\\`"


def test_an_export_never_writes_over_anything(run: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "empty").mkdir()

    for name in ("full", "file"):
        with pytest.raises(FileExistsError, match="give another with --to"):
            export(run, tmp_path / name)
    export(run, tmp_path / "empty", "resnet10-64+static-256")

    assert (tmp_path / "full/mine").read_text() == "mine"
    assert (tmp_path / "empty/hyperalign.json").is_file()


def test_a_place_that_cannot_hold_an_export_is_named_with_the_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: object, *_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    with pytest.raises(OSError, match=f"^could not write into {tmp_path}: .*; choose another folder with --to$"):
        drafted_folder(Path("model")).__enter__()
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(OSError, match=r"^could not make deep/down: .*; choose another folder with --to$"):
        drafted_folder(Path("deep/down/model")).__enter__()


def test_an_export_that_is_cut_short_leaves_nothing(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def power_cut(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hyperalign.use.export.render_card", power_cut)

    with pytest.raises(KeyboardInterrupt):
        export(run, tmp_path / "model", "resnet10-64+static-256")

    assert not list(tmp_path.iterdir())


@pytest.fixture
def spoiled(run: Path, tmp_path: Path) -> Path:
    return export(run, tmp_path / "model", "resnet10-64+static-256")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("hyperalign.json", '{"format": 99, "written_by": "hyperalign 7.0"}', "written by a newer release"),
        ("hyperalign.json", "{", "cannot be read as JSON"),
        ("hyperalign.json", "[]", "it has no format"),
        ("hyperalign.json", '{"format": 1}', "lacks pair, image, text, connector"),
        ("connector.safetensors", "no tensors", "cannot be read"),
    ],
)
def test_a_folder_that_is_not_what_it_should_be_is_one_sentence(
    spoiled: Path, name: str, content: str, message: str
) -> None:
    (spoiled / name).write_text(content)

    with pytest.raises(ValueError, match=message):
        hyperalign.load(spoiled)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--pair", "resnet10+static-256"], "did you mean resnet10-64+static-256"),
        (["--pair", "500"], "no pair at position 500"),
        (["--method", "magic"], "has no method 'magic'"),
        (["--format", "pickle"], "a format is one of"),
        (["--zoo", "nowhere.toml"], "no zoo file nowhere.toml"),
    ],
)
def test_a_slip_in_the_command_is_one_sentence_and_writes_nothing(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["export", str(run), "--to", str(tmp_path / "model"), *words])

    said = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2
    assert message in said[-1]
    assert "Traceback" not in "".join(said)
    assert not (tmp_path / "model").exists()


def test_a_folder_that_is_no_run_and_a_run_cut_short_are_refused(run: Path, tmp_path: Path) -> None:
    result = json.loads((run / "result.json").read_text())
    (tmp_path / "short").mkdir()
    (tmp_path / "short/result.json").write_text(json.dumps({**result, "status": "running"}))

    with pytest.raises(FileNotFoundError, match="is not a run"):
        export(tmp_path, tmp_path / "model")
    with pytest.raises(ValueError, match="was cut short"):
        export(tmp_path / "short", tmp_path / "model")


def test_ready_rows_make_no_model(tmp_path: Path) -> None:
    run = small_search(write_world(tmp_path / "world"))

    with pytest.raises(ValueError, match="is a file of ready embeddings and embeds nothing new"):
        export(run, tmp_path / "model")


def test_the_command_prints_the_folder_and_the_card_repeats_it(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["export", str(run), "--to", str(tmp_path / "model"), "--pair", "resnet10-64+static-256", "--json"])

    assert stop.value.code == 0
    assert json.loads(capsys.readouterr().out) == {"folder": str(tmp_path / "model")}


def test_a_run_in_bfloat16_is_written_for_others_in_float32(run: Path, tmp_path: Path) -> None:
    model = hyperalign.open_pair(run, "resnet10-64+static-256", device="cpu")
    from hyperalign.use.probes import hold_against, in_float32

    half = replace(model, image=replace(model.image, autocast=True))
    picture = Image.new("RGB", (30, 30), "blue")

    assert torch.equal(in_float32(half).encode_image(picture), model.encode_image(picture))
    with pytest.raises(ValueError, match="gives other rows of pictures"):
        hold_against("another", "pictures", torch.ones(1, 2), torch.tensor([[1.0, 0.9]]))


@pytest.mark.bench
def test_real_encoders_are_exported_exactly_in_every_format(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    bench = Path(os.environ["HYPERALIGN_BENCH"])
    wanted = ("mobilenetv1_025_128", "mobilenetv1_100_224", "resnet20_cifar10_32", "glove_6b_50d_5k")
    config = SearchConfig(
        zoo=(str(bench / "zoo.toml"),),
        data=str(bench / "flickr8k"),
        limits=Limits(image_params=Range(high=5e6)),
        limit=24,
        scores=False,
        train={"n_steps": 2, "batch_size": 16, "pairs_per_step": 2},
    )
    run = search(
        config, cache_dir=tmp_path / "cache", out=tmp_path / "out", progress=_silent, say=lambda sentence: None
    )
    split = open_dataset(str(bench / "flickr8k"), limit=24, memory=tmp_path / "cache").splits["test"]
    photographs = [split.pictures[index] for index in range(len(split.pictures))]

    for number, name in enumerate(wanted[:3]):
        pair = f"{name}+{wanted[3]}"
        opened = hyperalign.open_pair(run, pair, device="cpu")
        for form, weights in (("hyperalign", True), ("sentence-transformers", False), ("onnx", False)):
            folder = export(run, tmp_path / f"{number}-{form}", pair, format=form, with_weights=weights)
            found = hyperalign.load(folder, device="cpu", trust_code=True)
            torch.testing.assert_close(
                found.encode_image(photographs), opened.encode_image(photographs), rtol=0, atol=1e-5
            )
            torch.testing.assert_close(
                found.encode_text(split.captions), opened.encode_text(split.captions), rtol=0, atol=1e-5
            )
            if form == "sentence-transformers":
                other: Any = SentenceTransformer(str(folder), device="cpu", trust_remote_code=True)
                rows = other.encode(photographs, convert_to_tensor=True)
                torch.testing.assert_close(rows, opened.encode_image(photographs), rtol=0, atol=1e-4)


def test_what_a_killed_export_has_left_is_swept_where_open_files_cannot_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows."""
    (tmp_path / ".pair.1.tmp").mkdir()
    (tmp_path / ".pair.1.lock").touch()

    def refused(path: Path, *, missing_ok: bool = False) -> None:
        raise PermissionError(f"{path} is being used")

    monkeypatch.setattr(Path, "unlink", refused)
    with drafted_folder(tmp_path / "pair") as draft:
        (draft / "file").touch()

    assert (tmp_path / "pair" / "file").is_file()
    assert not (tmp_path / ".pair.1.tmp").exists()
