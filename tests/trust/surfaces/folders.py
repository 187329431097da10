"""Folders that this program writes, and others may have written too: cache, runs, indexes, exported pairs."""

import io
import json
import random
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from colours import colour_model, write_colours
from made_up_grid import made_up_grid
from rich.console import Console
from safetensors.numpy import save
from small_zoo import small_search, write_world

from hyperalign.cli.asking import from_record
from hyperalign.embed.cache import CacheKey, fill, fill_some, find_entries, is_whole, n_missing, open_folder, verify
from hyperalign.embed.upkeep import prune
from hyperalign.embed.zoo import Limits, Range, load_zoo, read_spec
from hyperalign.relimit import open_run
from hyperalign.run import earlier_seconds, find_finished, finished_stages, load_run, load_stage, read_log
from hyperalign.show.page import render_page
from hyperalign.show.table import render_run
from hyperalign.use.chosen import choose_pair
from hyperalign.use.folder import encoder_record, read_folder, write_joint
from hyperalign.use.gallery import open_gallery, search_gallery
from hyperalign.use.index import IndexConfig
from hyperalign.use.joint import Joint, join_images
from hyperalign.use.opened import trained_on
from hyperalign.use.update import update_gallery
from trust.hostile import Case
from trust.mutate import broken, mutated, rewritten

__all__ = ["Kept", "lying_tensors", "open_caches", "open_galleries", "open_pairs", "open_runs", "sealed"]


def sealed(rng: random.Random, data: bytes) -> bytes:
    """A record made hostile; mostly its seal is right again, as of someone who means it."""
    record = json.loads(data)
    record.pop("seal")
    changed = rewritten(rng, record)
    if rng.random() < 0.1 or not isinstance(changed, dict):
        return mutated(rng, data)
    try:
        seal = zlib.crc32(json.dumps(changed, sort_keys=True).encode())
    except ValueError:
        seal = 0
    return json.dumps({**changed, "seal": seal}).encode()


def lying_tensors(rng: random.Random, data: bytes) -> bytes:
    """A safetensors file whose header says something else, or whose bytes are others."""
    if rng.random() < 0.3:
        return mutated(rng, data)
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header = _plausible(rng, header) if rng.random() < 0.5 else rewritten(rng, header)
    text = json.dumps(header).encode()
    length = len(text) if rng.random() < 0.95 else rng.choice((0, 2**31, 2**63, 2**64 - 1))
    return length.to_bytes(8, "little") + text + data[8 + size :]


_ALIKE = (
    ("F32", "I32", "U32"),
    ("F16", "BF16", "I16", "U16"),
    ("U8", "I8", "BOOL", "F8_E5M2"),
    ("F64", "I64", "U64", "C64"),
)


def _plausible(rng: random.Random, header: dict[str, Any]) -> dict[str, Any]:
    """A header that a reader takes: other types of the same size, other shapes, names that have changed places."""
    names = [name for name in header if name != "__metadata__"]
    for name in rng.sample(names, min(len(names), rng.choice((1, 1, 2, 5)))):
        facts, other = header[name], rng.choice(names)
        kind = rng.randrange(4)
        if kind == 0:
            facts["dtype"] = rng.choice(next(alike for alike in _ALIKE if facts["dtype"] in alike))
        elif kind == 1:
            facts["shape"] = rng.choice((facts["shape"][::-1], [*facts["shape"], 1], [int(np.prod(facts["shape"]))]))
        elif kind == 2:
            header[name], header[other] = header[other], header[name]
        else:
            header[rng.choice((f"{name}/x", name[:-1], "pair/0/0/weight", "image/0/mean"))] = header.pop(name)
            break
    return header


class Kept:
    """Files of a folder as they were, and the folder brought back to that."""

    def __init__(self, folder: Path) -> None:
        """Remember what every file of a folder holds."""
        self.folder = folder
        self.files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in _files(folder)}

    def write(self, name: str, data: bytes) -> None:
        """Write one file."""
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_bytes(data)

    def restore(self) -> None:
        """Bring every file back."""
        for path in _files(self.folder):
            if path.relative_to(self.folder).as_posix() not in self.files:
                path.unlink()
        for name, data in self.files.items():
            path = self.folder / name
            if not path.is_file() or path.read_bytes() != data:
                self.write(name, data)


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.parent.name != ".locks"]


def _key() -> CacheKey:
    return CacheKey(
        **{"encoder": "eye", "weights": "w", "revision": "", "preprocess": "", "pooling": "", "prompt": ""},
        **{"dataset": "d", "content": "c", "split": "train"},
    )


def open_caches(folder: Path) -> Case:
    """Entries of the cache: manifests, records and shards, sealed by someone who means harm."""
    root, key = folder / "cache", _key()
    rows = np.random.default_rng(0).standard_normal((20, 4)).astype(np.float16)
    fill(root, key, n_rows=20, embed=lambda a, b: (rows[a:b], [(a, "broken")]), shard_rows=8)
    entry = Kept(root / key.folder)
    part = root / "e--d--0123456789abcdef"
    sample = CacheKey(**{**{name: getattr(key, name) for name in key.__slots__}, "split": "val"})
    fill_some(root, sample, n_rows=20, items=np.array([3, 5]), embed_some=lambda i: (rows[i], []))
    some = Kept(root / sample.folder)
    assert not part.exists()

    def case(rng: random.Random) -> None:
        kept, own = rng.choice(((entry, key), (some, sample)))
        name = rng.choice(sorted(kept.files))
        data = kept.files[name]
        kept.write(name, sealed(rng, data) if name.endswith(".json") else _lying_rows(rng, kept, name))
        try:
            _use_cache(rng, root, own, rows)
        finally:
            kept.restore()

    return case


def _use_cache(rng: random.Random, root: Path, key: CacheKey, rows: Any) -> None:
    kind = rng.randrange(8)
    if kind < 2:
        open_folder(root / key.folder).rows[:]
    elif kind == 2:
        fill(root, key, n_rows=20, embed=lambda a, b: (rows[a:b], []), embed_some=lambda i: (rows[i], []), shard_rows=8)
    elif kind == 3:
        fill_some(root, key, n_rows=20, items=np.array([1, 5]), embed_some=lambda i: (rows[i], []))
    elif kind == 4:
        verify(root)
    elif kind == 5:
        n_missing(root, key, n_rows=20)
        is_whole(root, key)
    elif kind == 6:
        find_entries(root)
    else:
        prune(root, 10**9)


def _lying_rows(rng: random.Random, kept: Kept, name: str) -> bytes:
    """An array file with another header or other bytes, and now and then the checksum that goes with it."""
    data = mutated(rng, kept.files[name][:128]) + kept.files[name][128:]
    record = json.loads(kept.files[name.replace(".npy", ".json")])
    record.pop("seal")
    if rng.random() < 0.8:
        record |= {"crc32": zlib.crc32(data), "n_bytes": len(data)}
        seal = zlib.crc32(json.dumps(record, sort_keys=True).encode())
        kept.write(name.replace(".npy", ".json"), json.dumps({**record, "seal": seal}).encode())
        manifest = json.loads(kept.files.get("manifest.json", b"{}"))
        if manifest:
            manifest.pop("seal")
            manifest["parts"] = [record if part["file"] == name else part for part in manifest["parts"]]
            seal = zlib.crc32(json.dumps(manifest, sort_keys=True).encode())
            kept.write("manifest.json", json.dumps({**manifest, "seal": seal}).encode())
    return data


def open_runs(folder: Path) -> Case:
    """Folders of runs: `result.json`, the tables, the log, hits and connectors, loaded, limited, shown, chosen from."""
    world = write_world(folder / "world")
    whole = small_search(world)
    grid = made_up_grid(folder / "reports", 3, 2, n_test=12).path
    stages = whole / "stages"
    stages.mkdir()
    (stages / "one.json").write_text("{}")
    shutil.copyfile(whole / "kept.safetensors", stages / "one.safetensors")
    shutil.rmtree(world / "cache")
    runs = [Kept(path) for path in (whole, grid)]
    for run in runs:
        run.files = {name: data for name, data in run.files.items() if not name.endswith(".html")}
    readers: dict[str, Callable[[random.Random, bytes], bytes]] = {
        "json": lambda rng, data: broken(rng, json.loads(data)),
        "csv": mutated,
        "jsonl": _lying_log,
        "safetensors": lying_tensors,
    }

    evil = _evil_zoo(world)

    def case(rng: random.Random) -> None:
        run = rng.choice(runs)
        name = rng.choice(("result.json", "leaderboard.csv", rng.choice(sorted(run.files))))
        if rng.random() < 0.1:  # a record that is whole, of a zoo that would run code
            run.write("result.json", run.files["result.json"].replace(str(world / "zoo.toml").encode(), evil))
        else:
            run.write(name, readers[name.rpartition(".")[2]](rng, run.files[name]))
        try:
            _use_run(rng, run.folder)
        finally:
            run.restore()

    return case


def _evil_zoo(world: Path) -> bytes:
    """A zoo whose image encoders, called as those of the world, are built by code that leaves a file behind."""
    (world / "evil.py").write_text("from pathlib import Path\n\ndef run():\n    Path('../ran').touch()\n")
    tables = (world / "zoo.toml").read_text().split("\n\n")
    own = "loader = 'python'\nfactory = 'evil.py:run'\ninput_size = 8\nmean = [0, 0, 0]\nstd = [1, 1, 1]"
    images = ["\n".join([*table.splitlines()[:3], own]) for table in tables if "'image'" in table]
    (world / "evil.toml").write_text("\n\n".join([*images, *(table for table in tables if "'text'" in table)]))
    return str(world / "evil.toml").encode()


def _lying_log(rng: random.Random, data: bytes) -> bytes:
    lines = data.splitlines()
    at = rng.randrange(len(lines))
    lines[at] = broken(rng, json.loads(lines[at]))
    return b"\n".join(lines) + b"\n"


def _use_run(rng: random.Random, path: Path) -> None:
    kind = rng.randrange(12)
    if kind == 0:
        find_finished(path.parent)
    elif kind == 1:
        finished_stages(path)
        earlier_seconds(path)
        list(read_log(path))
        load_stage(path, "one")
    elif kind < 5:
        choose_pair(path, rng.choice((None, 1, "sharp+words", "x")))
    run = load_run(path)
    if kind == 5:
        from_record(run.result["configuration"]).plan_methods()
    elif kind == 6:
        open_run(run).under(Limits(image_params=Range(high=2_500_000)))
    elif kind == 7:
        Console(file=io.StringIO(), width=100).print(render_run(run, width=100))
    elif kind == 8 and rng.random() < 0.1:
        render_page(run)


def open_galleries(folder: Path) -> Case:
    """Indexes of pictures: what they say of themselves, their order, their rows and the bytes that Faiss reads."""
    write_colours(folder / "photos", 12)
    model, by = colour_model()[0], {"path": "/models/eye", "pair": None}
    kept = []
    for name, config in (("flat", IndexConfig()), ("graph", IndexConfig(flat_values=0, links=4))):
        update_gallery(model, [folder / "photos"], folder / name, made_by=by, shard_rows=8, config=config)
        kept.append(Kept(folder / name))
    query = np.eye(3, dtype=np.float32)[:2]

    def case(rng: random.Random) -> None:
        index = rng.choice(kept)
        name = rng.choice(sorted(index.files))
        name = next(one for one in index.files if one.endswith(".faiss")) if rng.random() < 0.3 else name
        data = index.files[name]
        cut = 200 if rng.random() < 0.5 else len(data)
        index.write(name, sealed(rng, data) if name.endswith(".json") else mutated(rng, data[:cut]) + data[cut:])
        try:
            if rng.random() < 0.9:
                search_gallery(open_gallery(index.folder), query, 3)
            else:
                update_gallery(model, [folder / "photos"], index.folder, made_by=by, shard_rows=8)
        finally:
            index.restore()

    return case


def open_pairs(folder: Path) -> Case:
    """Exported pairs: `hyperalign.json`, the connector, and encoders that would run code."""
    treated = {"input_size": 32, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "crop_pct": 1.0}
    treated |= {"embed_dim": 6, "n_params": 100, "gflops": 0.1, "modality": "image"}
    timm = {"name": "eye", "loader": "timm", "architecture": "resnet10t", "checkpoint": "w.safetensors"}
    images = read_spec({**timm, **treated}, folder / "pair" / "encoders")
    text = next(spec for spec in load_zoo("embedded") if spec.modality == "text")
    home = folder / "pair"
    (home / "encoders").mkdir(parents=True)
    (home / "encoders" / "w.safetensors").write_bytes(save({"a": np.zeros(3, np.float32)}))
    (home / "evil.py").write_text("from pathlib import Path\nPath('../ran').touch()\n")
    joint = Joint(torch.ones(6, int(text.embed_dim or 0)), torch.zeros(6), None, None)
    records = {
        "image": encoder_record(images, autocast=False, home="encoders"),
        "text": encoder_record(text, autocast=False),
    }
    about = {"pair": "eye+words", "method": "hypernet", "embed_dim": 6, "logit_scale": 2.0, "data": {"name": "d"}}
    write_joint(home, joint, {**about, "run": {"seeds": [1]}, **records})
    kept = Kept(home)
    config = json.loads(kept.files["hyperalign.json"])
    own = {"name": "own", "loader": "python", "factory": "evil.py:run", **treated}
    evil = {**own, "folder": ".", "weights": "", "preprocess": ""}

    def case(rng: random.Random) -> None:
        if rng.random() < 0.75:
            given = {**config, "image": evil} if rng.random() < 0.2 else config
            kept.write("hyperalign.json", broken(rng, given, others=[kept.files["hyperalign.json"]]))
        else:
            kept.write("connector.safetensors", lying_tensors(rng, kept.files["connector.safetensors"]))
        try:
            trained_on(home)
            found = read_folder(home)
            join_images(found.joint, torch.ones(2, 6))
        finally:
            kept.restore()

    return case
