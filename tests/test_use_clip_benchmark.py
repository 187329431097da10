"""A pair inside CLIP_benchmark."""

import json
from pathlib import Path

import pytest
import torch
from colours import colour_model, write_colour
from PIL import Image

from hyperalign.use.clip_benchmark import Captions, as_benchmark_model, load_pair, main, register
from hyperalign.use.evaluate import evaluate

NAMES = ("blue", "green", "red", "white", "yellow")


def pictures(folder: Path) -> Path:
    """Five classes of four pictures, one of each in the colour of the next class."""
    for c, name in enumerate(NAMES):
        for k in range(4):
            shown = NAMES[(c + (k == 0)) % len(NAMES)]
            colour = {"red": (250, 9, 9), "green": (9, 250, 9), "blue": (9, 9, 250), "white": (250, 250, 250)}
            write_colour(folder / "set" / name / f"{k}.png", colour.get(shown, (250, 250, 9)))
    return folder / "set"


def test_the_adapter_gives_the_rows_of_the_pair(tmp_path: Path) -> None:
    model = colour_model()[0]
    files = sorted(pictures(tmp_path).rglob("*.png"))
    loaded = as_benchmark_model(model)

    rows = loaded.model.encode_image(torch.stack([loaded.transform(Image.open(file)) for file in files]))
    words = loaded.model.encode_text(loaded.tokenizer(["red", "zygote"]).to("cpu"))

    torch.testing.assert_close(rows, model.encode_image(files), atol=1e-6, rtol=0)
    assert torch.equal(words, model.encode_text(["red", "zygote"]))


def test_captions_travel_as_tokens_do() -> None:
    assert Captions(["a", "b"]).to("cuda") == ["a", "b"]


def test_the_figures_of_clip_benchmark_are_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peer = pytest.importorskip("clip_benchmark.metrics.zeroshot_classification")
    datasets = pytest.importorskip("torchvision.datasets")
    monkeypatch.setattr(peer, "float", lambda one: one.item(), raising=False)  # NumPy 2.4 refuses float() of (1,)
    folder, model = pictures(tmp_path), colour_model()[0]
    loaded = as_benchmark_model(model)
    data = datasets.ImageFolder(str(folder), transform=loaded.transform)

    theirs = peer.evaluate(
        loaded.model,
        torch.utils.data.DataLoader(data, batch_size=3),
        loaded.tokenizer,
        data.classes,
        ["a photo of a {c}."],
        "cpu",
        amp=False,
    )
    ours = evaluate(model, str(folder))

    assert ours["zero_shot_top_1"] / 100 == pytest.approx(theirs["acc1"], abs=1e-6)
    assert ours["zero_shot_top_5"] / 100 == pytest.approx(theirs["acc5"], abs=1e-6)
    assert ours["mean_per_class"] / 100 == pytest.approx(theirs["mean_per_class_recall"], abs=1e-6)
    assert theirs["acc1"] == pytest.approx(0.75)


@pytest.mark.filterwarnings("ignore:A single label was found:UserWarning")  # its report of a set this small
def test_its_own_command_takes_the_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("clip_benchmark.cli")
    monkeypatch.setattr("hyperalign.use.clip_benchmark.open_model", lambda path, pair: colour_model()[0])
    monkeypatch.chdir(tmp_path)

    main(["eval", "--model", "winner", "--dataset", "dummy", "--no_amp", "--num_workers", "0", "--output", "out.json"])

    assert json.loads((tmp_path / "out.json").read_text())["model"] == "winner"
    assert "zeroshot_classification" in capsys.readouterr().out


def test_without_clip_benchmark_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "clip_benchmark", None)

    with pytest.raises(ImportError, match=r"CLIP_benchmark is not installed whole .*pip install 'hyperalign\[clip-"):
        register()


def test_a_folder_that_holds_no_model_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is no exported pair"):
        load_pair(str(tmp_path))
