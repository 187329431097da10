"""Searches from Python: what goes in, what comes out, and that five lines lead from a data frame to a model."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from small_zoo import small_config, small_search, write_world

import hyperalign
from hyperalign.embed.frames import write_frame
from hyperalign.embed.zoo import load_zoo

LITTLE: dict[str, Any] = {"scores": False, "verify": 0, "steps": 3, "batch_size": 16, "pairs_per_step": 2}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Forty pictures of two colours with a caption each, and their splits."""
    folder, rng, rows = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0), []
    for number in range(40):
        colour = ("red", "blue")[number % 2]
        path = folder / f"{number}.png"
        noise = rng.integers(0, 60, (24, 24, 3), dtype=np.uint8)
        noise[..., 0 if colour == "red" else 2] += 180
        Image.fromarray(noise).save(path)
        split = "train" if number < 24 else "val" if number < 32 else "test"
        rows.append({"image": str(path), "caption": f"a {colour} square", "split": split})
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One image and one text encoder of the embedded zoo."""
    tables = []
    for spec in load_zoo("embedded"):
        if spec.name in ("resnet10-128", "static-256"):
            lines = [f"name = {spec.name!r}", f"modality = {spec.modality!r}", f"loader = {spec.loader!r}"]
            lines.append(f"checkpoint = {str(spec.local_checkpoint())!r}")
            if spec.modality == "image":
                kwargs = ", ".join(f"{key} = {value!r}" for key, value in spec.kwargs.items())
                lines += [f"architecture = {spec.architecture!r}", f"kwargs = {{ {kwargs} }}", "input_size = 64"]
            tables.append("\n".join(["[[encoder]]", *lines]))
    path = tmp_path_factory.mktemp("zoo") / "zoo.toml"
    path.write_text("\n\n".join(tables))
    return path


def test_five_lines_lead_from_a_data_frame_to_a_model(
    pairs: pd.DataFrame, zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    found = hyperalign.search(pairs, zoo=zoo, budget="30M", quiet=True, **LITTLE)
    model = hyperalign.load(found.export("winner"), device="cpu")
    cosines = model.similarity(model.encode_image(list(pairs["image"][-2:])), model.encode_text(["a red square"]))

    assert cosines.shape == (2, 1)
    assert found.winner.name == model.name == "resnet10-128+static-256"
    assert found.leaderboard["score"].notna().all()
    assert (found.ledger["stage"] == "training").any()
    assert found.path.parent == Path("reports")
    assert (found.path / "report.html").is_file()


def test_a_result_shows_names_as_text(tmp_path: Path) -> None:
    run = small_search(write_world(tmp_path / "world"))
    board = (run / "leaderboard.csv").read_text()
    (run / "leaderboard.csv").write_text(board.replace("sharp", "<script>alert(1)</script>"))

    found = hyperalign.open_result(run)

    assert "<script>" not in found._repr_html_()
    assert "&lt;script&gt;" in found._repr_html_()
    assert str(run) in repr(found)
    assert "image_encoder" in repr(found)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"budgget": "30M"}, "did you mean budget|unknown"),
        ({"budget": "many"}, "is not a limit such as 30M"),
        ({"steps": 3, "epochs": 2}, "not both"),
        ({"data": "nothing.csv"}, "nothing.csv"),
        ({"zoo": "nowhere.toml"}, "no zoo file nowhere.toml"),
    ],
)
def test_a_slip_is_one_sentence(tmp_path: Path, words: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        hyperalign.search(**{"cache_dir": tmp_path / "cache", "out": tmp_path / "out", "quiet": True, **words})

    assert not (tmp_path / "out").exists()


def test_a_number_is_as_good_a_limit_as_a_text(tmp_path: Path) -> None:
    world = write_world(tmp_path / "world")
    given: dict[str, Any] = {
        "data": world / "pairs.csv",
        "zoo": world / "zoo.toml",
        "quiet": True,
        "out": tmp_path / "out",
    }

    found = hyperalign.search(**given, cache_dir=tmp_path / "cache", budget=2_500_000, **LITTLE)

    assert set(found.leaderboard["image_encoder"]) == {"dull", "wide"}


@pytest.mark.parametrize("form", ["path", "Path", "bytes", "picture", "record"])
def test_a_picture_in_a_frame_may_be_a_path_or_be_there(tmp_path: Path, form: str) -> None:
    path = tmp_path / "one.png"
    Image.new("RGB", (3, 3), "red").save(path)
    forms: dict[str, Any] = {"path": str(path), "Path": path, "bytes": path.read_bytes()}
    forms |= {"picture": Image.new("RGB", (3, 3), "red"), "record": {"bytes": path.read_bytes(), "path": None}}
    frame = pd.DataFrame({"image": [forms[form]], "caption": [["a square", "red"]]})

    table = write_frame(frame, tmp_path / "frames")

    from hyperalign.embed.tables import read_tables

    source = read_tables([table], name="frame", memory=None, progress=lambda *_: None)
    assert source.pictures[0].getpixel((1, 1)) == (255, 0, 0)
    assert source.samples[0].captions == ["a square", "red"]
    assert write_frame(frame, tmp_path / "frames") == table


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (pd.DataFrame({"image": [3], "caption": ["x"]}), "row 0 of the data frame has int"),
        (pd.DataFrame({"image": ["a.png"], "caption": [3.5]}), "a caption is text or a list of texts"),
        (pd.DataFrame({"image": ["a.png"], "caption": [["x", None]]}), "something else in it"),
        (pd.DataFrame({"image": ["a.png"]}), "caption"),
        (pd.DataFrame({"image": [], "caption": []}), "has no rows"),
    ],
)
def test_a_frame_of_something_else_is_refused(tmp_path: Path, frame: pd.DataFrame, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_frame(frame, tmp_path)


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, hyperalign; dir(hyperalign); sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_the_package_offers_is_there() -> None:
    for name in ("DualEncoder", "SearchResult", "export", "load", "open_pair", "open_result", "search"):
        assert callable(getattr(hyperalign, name))
        assert name in dir(hyperalign)
    with pytest.raises(AttributeError, match="no attribute 'serach'"):
        _ = hyperalign.serach


def test_importing_the_pipeline_does_not_hide_the_search(tmp_path: Path) -> None:
    assert small_config(tmp_path)

    assert callable(hyperalign.search)
