"""Arrays and weights that others have made: safetensors, .npy, .pt, folders of clip-retrieval."""

import io
import json
import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.numpy import save
from torch import nn

from hyperalign.embed.clip_retrieval import import_clip_retrieval
from hyperalign.embed.encoders import open_rows
from hyperalign.embed.networks import _read_weights, checkpoint_misfit
from hyperalign.embed.zoo import EncoderSpec
from hyperalign.hyperclip.stored import load_model
from hyperalign.run import load_tensors
from hyperalign.use.importers import _read_connector, import_rows
from trust.hostile import Case
from trust.mutate import broken, mutated
from trust.surfaces.folders import lying_tensors

__all__ = ["open_imports", "open_safetensors"]


def _spec(folder: Path, **given: Any) -> EncoderSpec:
    values = {"name": "net", "modality": "image", "loader": "timm", "architecture": "resnet10t"}
    return EncoderSpec(**{**values, **given}, folder=folder)


def open_safetensors(folder: Path) -> Case:
    """Safetensors as tensors of a run, as weights of an encoder or of a model: headers that lie, bytes cut."""
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    arrays = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    odd = {f"{kind}/x": np.zeros((2, 3), kind) for kind in ("f2", "f4", "f8", "u1", "i8", "?")}
    valid = [save(arrays), save({**odd, "owner": np.arange(4)}), save({"a": np.zeros((0, 4), "f4")})]
    path, spec = folder / "hits.safetensors", _spec(folder, checkpoint="hits.safetensors")
    (folder / "model").mkdir()
    record = json.loads((folder / "model.json").read_text()) if (folder / "model.json").is_file() else _model_record()

    def case(rng: random.Random) -> None:
        data = rng.choice(valid)
        path.write_bytes(lying_tensors(rng, data))
        kind = rng.randrange(4)
        if kind == 0:
            load_tensors(path)
        elif kind == 1:
            checkpoint_misfit(spec, network)
        elif kind == 2:
            _read_weights(spec, path)
        else:
            (folder / "model" / "model.json").write_bytes(broken(rng, record))
            (folder / "model" / "model.safetensors").write_bytes(b"")
            load_model(folder / "model")

    return case


def _model_record() -> dict[str, Any]:
    """`model.json` of a model whose image encoder timm does not know, so that none is built."""
    image = {"name": "net", "modality": "image", "loader": "timm", "architecture": "nosuchnet", "folder": "."}
    hyper = {"width": 8, "depth": 1, "heads": 1, "feed_forward": 8, "bottleneck": 4}
    return {
        "format": 1,
        "image": image,
        "embed_dim": 4,
        "head": True,
        "hyper": hyper,
        "text": None,
        "text_dim": 3,
        "text_config": None,
        "unit_rows": False,
    }


class _Evil:
    """What runs code where it is unpickled."""

    def __reduce__(self) -> Any:
        return (exec, ("from pathlib import Path; Path('../ran').touch()",))


def open_imports(folder: Path) -> Case:
    """Embeddings and connectors that others have made: .npy, .pt, clip-retrieval's folders, tables beside them."""
    (folder / "p").mkdir()
    for k in range(6):
        Image.new("RGB", (2, 2), (k, 0, 0)).save(folder / "p" / f"{k}.png")
    lines = [
        {"image": f"p/{k}.png", "caption": f"picture {k}", "split": ("train", "val", "test")[k % 3]} for k in range(6)
    ]
    table = "".join(json.dumps(line) + "\n" for line in lines).encode()
    rows = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    arrays, checkpoints = _arrays(rows), _checkpoints(rows)
    meta = io.BytesIO()
    pq.write_table(
        pa.table({"image_path": [f"p/{k}.png" for k in range(6)], "caption": [f"c{k}" for k in range(6)]}), meta
    )
    for name in ("img_emb", "text_emb", "metadata"):
        (folder / "cr" / name).mkdir(parents=True)
    (folder / "table.jsonl").write_bytes(table)

    def case(rng: random.Random) -> None:
        kind = rng.randrange(10)
        array = mutated(rng, rng.choice(arrays)[:200], arrays) + rows.tobytes()
        if kind < 3:
            (folder / "a.npy").write_bytes(array)
            open_rows(_spec(folder, loader="rows", architecture=None, checkpoint="a.npy", n_params=1), "train")
        elif kind < 5:
            (folder / "cr/img_emb/img_emb_0.npy").write_bytes(array if rng.random() < 0.7 else arrays[0])
            (folder / "cr/text_emb/text_emb_0.npy").write_bytes(arrays[0])
            (folder / "cr/metadata/metadata_0.parquet").write_bytes(mutated(rng, meta.getvalue()))
            import_clip_retrieval(folder / "cr")
        elif kind < 9:
            (folder / "x.pt").write_bytes(_lying_zip(rng, rng.choice(checkpoints)))
            if kind < 7:
                _read_connector(folder / "x.pt")
            else:
                _read_weights(_spec(folder, checkpoint="x.pt"), folder / "x.pt")
        else:
            (folder / "b.npy").write_bytes(array if rng.random() < 0.5 else arrays[0])
            (folder / "table.jsonl").write_bytes(mutated(rng, table) if rng.random() < 0.5 else table)
            import_rows(folder / "b.npy", folder / "made", modality="image", table=folder / "table.jsonl", n_params=1)
        if kind == 9 and (folder / "made").exists():
            for path in sorted((folder / "made").rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()

    return case


def _arrays(rows: Any) -> list[bytes]:
    found = []
    for value in (rows, rows.astype("f2"), np.zeros((2, 2), ">f4"), np.zeros(3, "U4"), np.array([{"a": 1}], object)):
        out = io.BytesIO()
        np.save(out, value, allow_pickle=True)
        found.append(out.getvalue())
    return found


def _checkpoints(rows: Any) -> list[bytes]:
    """Files of torch, two of which would run code; and a bare pickle."""
    found = [pickle.dumps(_Evil())]
    tensor = torch.from_numpy(rows)
    values: list[Any] = [
        {"weight": tensor, "bias": tensor[:, 0]},
        {"model": {"w": tensor}},
        {"a": {"b": tensor}},
        _Evil(),
    ]
    for value in (*values, {"weight": tensor, "extra": _Evil()}):
        out = io.BytesIO()
        torch.save(value, out)
        found.append(out.getvalue())
    return found


def _lying_zip(rng: random.Random, data: bytes) -> bytes:
    """A file of torch with other bytes, or with another pickle or other bytes in it and checksums that are right."""
    if rng.random() < 0.4 or data[:2] != b"PK":
        return mutated(rng, data)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        names = old.namelist()
        victim = rng.choice([name for name in names if name.endswith("data.pkl")] * 4 + names)
        for name in names:
            content = old.read(name)
            new.writestr(name, mutated(rng, content) if name == victim else content)
    return out.getvalue()
