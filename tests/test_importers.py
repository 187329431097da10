"""Embeddings and connectors that others have made."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_zoo import small_config, small_search

import hyperalign
from hyperalign.cli import main
from hyperalign.embed.data import open_dataset
from hyperalign.embed.encoders import open_rows
from hyperalign.embed.zoo import load_zoo
from hyperalign.use.importers import import_connector, import_rows

N = 160  # of so many pictures, every split gets some whatever the folder is called
CAPTIONS = [f"picture {number // 2}, said {('one', 'the other')[number % 2]} way" for number in range(N)]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Eighty pictures, two rows each, in an order that is not that of any split."""
    order = np.random.default_rng(1).permutation(N)
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("image", "caption"))
        for number in order:
            path = tmp_path / f"{number // 2}.png"
            Image.new("RGB", (4, 4), (int(number) // 2 * 3, 0, 0)).save(path)
            writer.writerow((path.name, CAPTIONS[number]))
    np.save(tmp_path / "order.npy", order)
    return tmp_path / "pairs.csv"


def _embedded(order: Any, side: str, width: int = 6) -> Any:
    """Row i tells which picture or which caption row i of the table is."""
    rows = np.zeros((N, width), np.float32)
    rows[:, 0] = 1 + (order // 2 if side == "image" else order)
    rows[:, 1:] = np.random.default_rng(0).standard_normal((N, width - 1))
    return rows


def _check(folder: Path, names: dict[str, str]) -> None:
    """Every row belongs to its picture or caption."""
    specs = {spec.name: spec for spec in load_zoo(folder / "zoo.toml")}
    data = open_dataset(str(folder / "pairs.jsonl"))
    assert sum(len(split.captions) for split in data.splits.values()) == N
    for side, name in names.items():
        for split in data.splits.values():
            rows = open_rows(specs[name], split.name)
            if side == "image":
                assert [int(row[0]) - 1 for row in rows] == [int(Path(one).stem) for one in split.image_ids]
            else:
                assert [CAPTIONS[int(row[0]) - 1] for row in rows] == list(split.captions)


def test_rows_of_a_pt_file_nested_by_width_and_encoder_belong_to_their_captions(table: Path, tmp_path: Path) -> None:
    order = np.load(tmp_path / "order.npy")
    rows = {6: {"one/model": torch.from_numpy(_embedded(order, "text"))}, 8: {"two": torch.rand(N, 8)}}
    torch.save(rows, tmp_path / "text.pt")

    folder = import_rows(tmp_path / "text.pt", tmp_path / "new", modality="text", table=table, n_params=1000)

    assert [spec.name for spec in load_zoo(folder / "zoo.toml")] == ["one-model", "two"]
    _check(folder, {"text": "one-model"})


def test_clip_retrieval_output_becomes_a_search(table: Path, tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    order, out = np.load(tmp_path / "order.npy"), tmp_path / "out"
    for side, folder in (("image", "img_emb"), ("text", "text_emb")):
        (out / folder).mkdir(parents=True)
        for part, rows in enumerate(np.array_split(_embedded(order, side).astype(np.float16), 3)):
            np.save(out / folder / f"{folder}_{part}.npy", rows)
    (out / "metadata").mkdir()
    paths = [str(tmp_path / f"{number // 2}.png") for number in order]
    facts = pyarrow.table({"image_path": paths, "caption": [CAPTIONS[number] for number in order]})
    pyarrow.parquet.write_table(facts, out / "metadata/metadata_0.parquet")

    with pytest.raises(SystemExit) as stop:
        main(["import", str(out), "--to", str(tmp_path / "new"), "--params", "5k"])

    assert stop.value.code == 0
    _check(tmp_path / "new", {"image": "out-image", "text": "out-text"})
    config = small_config(tmp_path / "new", data=str(tmp_path / "new/pairs.jsonl"), scores=False)
    found = hyperalign.open_result(small_search(tmp_path / "new", config=config))
    assert found.winner.name == "out-image+out-text"


def test_a_folder_of_encoders_is_imported_whole(table: Path, tmp_path: Path) -> None:
    order = np.load(tmp_path / "order.npy")
    (tmp_path / "results/dim_6/mine").mkdir(parents=True)
    np.save(tmp_path / "results/dim_6/mine/embeddings.npy", _embedded(order, "image"))

    folder = import_rows(tmp_path / "results", tmp_path / "new", modality="image", table=table, n_params=7)

    _check(folder, {"image": "mine"})
    assert load_zoo(folder / "zoo.toml")[0].n_params == 7


class _Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("ran"),))


def test_a_file_that_could_run_code_is_refused(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"rows": torch.rand(N, 4), "and": _Evil()}, tmp_path / "evil.pt")

    with pytest.raises(ValueError, match="cannot be read as tensors alone"):
        import_rows(tmp_path / "evil.pt", tmp_path / "new", modality="image", table=table, n_params=1)
    with pytest.raises(ValueError, match="cannot be read as tensors alone"):
        import_connector(tmp_path / "evil.pt", tmp_path / "new", image="a", text="b", zoo=["embedded"])

    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("rows", "given", "message"),
    [
        (np.zeros((N - 1, 3), np.float32), {}, "has 159 rows for 160"),
        (np.zeros((N, 3), np.int64), {}, "must hold"),
        (np.ones((N, 3), np.float32), {"n_params": None}, "give --params, such as 22M"),
        (np.ones((N, 3), np.float32), {"modality": None}, "give --modality"),
        (np.ones((N, 3), np.float32), {"table": None}, "give --data"),
    ],
)
def test_what_does_not_fit_is_one_sentence_and_writes_nothing(
    table: Path, tmp_path: Path, rows: Any, given: dict[str, Any], message: str
) -> None:
    np.save(tmp_path / "mine.npy", rows)
    options: dict[str, Any] = {"modality": "image", "table": table, "n_params": 3, **given}

    with pytest.raises(ValueError, match=message):
        import_rows(tmp_path / "mine.npy", tmp_path / "new", **options)

    assert not [path for path in tmp_path.iterdir() if "new" in path.name]


def test_a_connector_of_the_authors_checkpoints_joins_its_encoders(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = {
        "logit_scale": torch.tensor(2.0),
        "layers.0.weight": torch.randn(64, 256),
        "layers.0.bias": torch.randn(64),
    }
    torch.save({"model": state, "logs": {"epoch_1": {"loss": 0.5}}}, tmp_path / "ckpt_1.pt")
    names = {"image": "resnet10-64", "text": "static-256"}

    folder = import_connector(tmp_path / "ckpt_1.pt", tmp_path / "pair", **names, zoo=["embedded"])

    model = hyperalign.load(folder, device="cpu")
    captions = ["a red circle", "a blue square"]
    mapped = model.text.encode(captions).float() @ state["layers.0.weight"].T + state["layers.0.bias"]
    expected = torch.nn.functional.normalize(mapped, dim=1)
    torch.testing.assert_close(model.encode_text(captions), expected, rtol=0, atol=1e-6)
    assert model.logit_scale == pytest.approx(float(torch.tensor(2.0).exp()))
    picture = Image.new("RGB", (64, 64), "red")
    row = model.image.encode(model.image.preprocess(picture).unsqueeze(0))
    torch.testing.assert_close(model.encode_image(picture), torch.nn.functional.normalize(row, dim=1))


def test_a_connector_of_other_widths_or_of_more_than_a_map_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.rand(3, 256)}, tmp_path / "narrow.pt")
    torch.save({"0.weight": torch.rand(3, 4), "2.weight": torch.rand(5, 3)}, tmp_path / "deep.pt")
    names: dict[str, Any] = {"image": "resnet10-64", "text": "static-256", "zoo": ["embedded"]}

    with pytest.raises(ValueError, match="has 3 rows, and encoder 'resnet10-64' gives 64 numbers"):
        import_connector(tmp_path / "narrow.pt", tmp_path / "pair", **names)
    with pytest.raises(ValueError, match="holds 2 matrices"):
        import_connector(tmp_path / "deep.pt", tmp_path / "pair", **names)
    with pytest.raises(KeyError, match="did you mean resnet10-64"):
        import_connector(tmp_path / "narrow.pt", tmp_path / "pair", **{**names, "image": "resnet10-65"})
