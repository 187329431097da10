"""What others have embedded or trained: rows become encoders of a zoo, a connector becomes a pair.

Rows are taken from `.npy` files, from `.pt` files of tensors (as the method's authors keep them, nested by width and
encoder), from folders of `ENCODER/embeddings.npy`, and from clip-retrieval's output. Row i belongs to row i of a table
of pictures and captions. Nothing is unpickled: a `.pt` that holds more than tensors and plain values is refused.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from hyperalign.embed.clip_retrieval import import_clip_retrieval
from hyperalign.embed.data import open_dataset
from hyperalign.embed.encoders import load_encoder
from hyperalign.embed.identity import pin, settle
from hyperalign.embed.networks import first_line
from hyperalign.embed.samples import clean
from hyperalign.embed.shards import read_array
from hyperalign.embed.splits import Split
from hyperalign.embed.tables import find_columns, rows_of
from hyperalign.embed.zoo import EncoderSpec, Modality, find_encoder, load_zoo, load_zoos, zoo_folder
from hyperalign.run import write_whole
from hyperalign.use.folder import drafted_folder, encoder_record, write_joint
from hyperalign.use.joint import Joint

__all__ = ["import_connector", "import_rows"]

Progress = Callable[[str, int, int], None]
_BLOCK = 8192


class _Pairs(NamedTuple):
    """A table, row by row: where each picture lies, and its caption."""

    pictures: list[str]
    captions: list[str]
    splits: list[str | None]


def import_rows(
    source: Path,
    to: Path,
    *,
    modality: Modality | None = None,
    table: Path | None = None,
    n_params: int | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Path:
    """Make a zoo, and the data that belongs to it, of embeddings that exist.

    Args:
        source: A .npy, a .pt, a folder of `ENCODER/embeddings.npy`, or clip-retrieval's output.
        to: Folder to write: `zoo.toml`, `pairs.jsonl` and `rows/`; must not be there, or be empty.
        modality: What was embedded; clip-retrieval's folder knows it.
        table: Pictures and captions, row i for row i of the embeddings; clip-retrieval's folder has its own.
        n_params: Parameters of each encoder; None takes those of a shipped zoo.
        progress: Told `(stage, done, total)`.

    Returns:
        The folder; `hyperalign search --zoo DIR/zoo.toml --data DIR/pairs.jsonl` uses it.

    Raises:
        ValueError: If rows and table do not fit, or a file holds something else.
        FileNotFoundError: If something is missing.
    """
    found, pairs = _find_tables(source, modality, table)
    for (name, _), rows in found.items():
        if rows.shape[0] != len(pairs.captions):
            raise ValueError(
                f"row i of the embeddings belongs to row i of the table, and {name} has {rows.shape[0]:,} rows for "
                f"{len(pairs.captions):,}; give the table that they were made of"
            )
    with drafted_folder(to) as draft:
        (draft / "rows").mkdir()
        whole = draft / "all.jsonl"
        write_whole(whole, _lines(zip(pairs.pictures, pairs.captions, pairs.splits, strict=True)))
        splits = open_dataset(str(whole), progress=progress).splits
        whole.unlink()
        places = _places(pairs, splits.values())
        for done, ((name, side), rows) in enumerate(found.items()):
            progress("importing", done, len(found))
            for split, (images, captions) in places.items():
                _write_rows(draft / "rows" / f"{name}-{split}.npy", rows, images if side == "image" else captions)
        write_whole(draft / "pairs.jsonl", _lines(_split_rows(splits.values())))
        tables = [_entry(name, side, rows.shape[1], n_params) for (name, side), rows in found.items()]
        write_whole(draft / "zoo.toml", "\n".join(tables).encode())
        progress("importing", len(found), len(found))
    return to


def import_connector(checkpoint: Path, to: Path, *, image: str, text: str, zoo: Sequence[str]) -> Path:
    """Make a pair of a connector that was trained elsewhere and of the encoders that it was trained on.

    Args:
        checkpoint: A .pt with one linear map of captions into the space of pictures, W (D_img, D_txt) and b.
        to: Folder to write; must not be there, or be empty.
        image: Name of the image encoder.
        text: Name of the text encoder.
        zoo: Zoos that declare both.

    Returns:
        The folder, which `load` reads.

    Raises:
        ValueError: If the file holds something else, or the widths are not those of the encoders.
        KeyError: If an encoder is in none of the zoos; near names are offered.
    """
    joint, scale = _read_connector(checkpoint)
    known = load_zoos(zoo)
    specs = [pin(settle(find_encoder(known, name), memory=None), memory=None) for name in (image, text)]
    for spec, width, what in zip(specs, joint.weight.shape, ("rows", "columns"), strict=True):
        found = load_encoder(spec, device="cpu").facts.embed_dim
        if found != width:
            raise ValueError(
                f"the connector of {checkpoint} has {width} {what}, and encoder {spec.name!r} gives {found} numbers; "
                "name the encoders that it was trained on"
            )
    with drafted_folder(to) as draft:
        sides = dict(zip(("image", "text"), specs, strict=True))
        records: dict[str, Any] = {side: encoder_record(spec, autocast=False) for side, spec in sides.items()}
        digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
        about = {"pair": f"{image}+{text}", "method": "imported", "sides": "text", "embed_dim": joint.embed_dim}
        about |= {"logit_scale": scale, "source": {"file": checkpoint.name, "sha256": digest}}
        write_joint(draft, joint, {**about, **records})
    return to


def _find_tables(
    source: Path, modality: Modality | None, table: Path | None
) -> tuple[dict[tuple[str, Modality], Any], _Pairs]:
    """Embeddings by name and modality, and the table that they belong to."""
    if not source.exists():
        raise FileNotFoundError(f"there is no {source}")
    if (source / "img_emb").is_dir() or (source / "text_emb").is_dir():
        return _from_clip_retrieval(source, table)
    if modality is None:
        raise ValueError(f"{source} does not say what was embedded; give --modality image or text")
    if table is None:
        raise ValueError(
            f"{source} does not say what belongs to each row; give --data, a table of pictures and captions"
        )
    named = _from_folder(source) if source.is_dir() else _from_file(source)
    return {(name, modality): rows for name, rows in named.items()}, _read_table(table)


def _from_clip_retrieval(source: Path, table: Path | None) -> tuple[dict[tuple[str, Modality], Any], _Pairs]:
    """Both sides of clip-retrieval's output."""
    imported = import_clip_retrieval(source)
    found: dict[tuple[str, Modality], Any] = {}
    name = _file_safe(source.resolve().name)
    if imported.images is not None:
        found[f"{name}-image", "image"] = imported.images
    if imported.texts is not None:
        found[f"{name}-text", "text"] = imported.texts
    if table is not None:
        return found, _read_table(table)
    if not imported.image_paths or not imported.captions:
        raise ValueError(f"the metadata of {source} names no pictures or no captions; give --data, a table of them")
    pictures = [str((source / path).resolve()) for path in imported.image_paths]
    return found, _Pairs(pictures, list(imported.captions), [None] * len(pictures))


def _from_folder(folder: Path) -> dict[str, NDArray[Any]]:
    """`ENCODER/embeddings.npy`, however deep."""
    files = sorted(folder.rglob("embeddings.npy"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no ENCODER/embeddings.npy and no output of clip-retrieval")
    return _unique((file.parent.name, _read_npy(file)) for file in files)


def _from_file(file: Path) -> dict[str, NDArray[Any]]:
    """A .npy of one encoder, or a .pt of one or many."""
    if file.suffix == ".npy":
        return {_file_safe(file.stem): _read_npy(file)}
    if file.suffix not in (".pt", ".pth", ".bin"):
        raise ValueError(f"embeddings are a .npy, a .pt or a folder of them, got {file}")
    tables = _unique(_tensors(_read_pt(file), _file_safe(file.stem)))
    if not tables:
        raise ValueError(f"{file} holds no table of floats (n, D)")
    return tables


def _tensors(value: Any, name: str) -> Iterator[tuple[str, NDArray[Any]]]:
    """Tables of floats by the name of their encoder, of tensors nested in mappings."""
    if isinstance(value, torch.Tensor):
        if value.ndim == 2 and value.is_floating_point():
            yield name, value.to(torch.float32 if value.dtype == torch.bfloat16 else value.dtype).numpy()
    elif isinstance(value, Mapping):
        for key, inside in value.items():
            yield from _tensors(inside, str(key))


def _unique(tables: Any) -> dict[str, NDArray[Any]]:
    """By names that can be file names; two of one name are an error."""
    named: dict[str, NDArray[Any]] = {}
    for name, rows in tables:
        safe = _file_safe(name)
        if safe in named:
            raise ValueError(f"two tables of embeddings are called {safe!r}; import them one by one")
        named[safe] = rows
    return named


def _read_npy(path: Path) -> NDArray[Any]:
    """Rows by memory map; a raw dump, which says nothing of its shape, is refused."""
    rows = read_array(path)
    if rows.ndim != 2 or rows.dtype.kind != "f":
        raise ValueError(f"{path} must hold (n, D) floats, got {rows.shape} {rows.dtype}")
    return rows


def _read_pt(path: Path) -> Any:
    """Tensors and plain values of a file, without running anything in it."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # pickle, zip and torch each have errors of their own
        raise ValueError(
            f"{path} cannot be read as tensors alone, and a file that holds more could run code when it is loaded "
            f"({first_line(error)}); ask its makers for .npy or .safetensors"
        ) from None


def _read_connector(path: Path) -> tuple[Joint, float | None]:
    """One linear map from a checkpoint, and the inverse temperature where it has one."""
    state = _read_pt(path)
    for key in ("model", "state_dict", "mapper"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    tensors = {k: v for k, v in state.items() if isinstance(v, torch.Tensor)} if isinstance(state, Mapping) else {}
    matrices = [value for value in tensors.values() if value.ndim == 2]
    if len(matrices) != 1:
        raise ValueError(f"a connector is one matrix and a bias, and {path} holds {len(matrices)} matrices")
    weight = matrices[0].float()
    biases = [value for value in tensors.values() if value.shape == weight.shape[:1]]
    bias = biases[0].float() if biases else torch.zeros(len(weight))
    scale = next((float(v.exp()) for k, v in tensors.items() if k.endswith("logit_scale") and v.numel() == 1), None)
    return Joint(weight, bias, None, None), scale


def _read_table(path: Path) -> _Pairs:
    """A table row by row, one caption each."""
    pairs = _Pairs([], [], [])
    folder = path.resolve().parent
    for number, row in rows_of(path):
        image, caption, split = find_columns(list(row), f"{path}, line {number},")
        if not isinstance(row[caption], str) or not isinstance(row[image], str):
            raise ValueError(f"{path}, line {number}: beside embeddings a row has one picture and one caption")
        if "\0" in row[image]:
            raise ValueError(f"{path}, line {number}: no file can have the name {row[image]!r}")
        pairs.pictures.append(str((folder / row[image].strip()).resolve()))
        pairs.captions.append(clean(row[caption]))
        pairs.splits.append(str(row[split]) if split is not None and row[split] else None)
    return pairs


def _places(pairs: _Pairs, splits: Any) -> dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Of each split which rows of the embeddings its pictures and its captions are."""
    first: dict[str, int] = {}
    spoken: dict[tuple[str, str], list[int]] = defaultdict(list)
    for number, (picture, caption) in enumerate(zip(pairs.pictures, pairs.captions, strict=True)):
        first.setdefault(picture, number)
        spoken[picture, clean(caption)].append(number)
    places = {}
    for split in splits:
        names = [_whereabouts(split, index) for index in range(len(split.image_ids))]
        images = np.array([first[name] for name in names], dtype=np.int64)
        owners = [names[owner] for owner in split.owner.tolist()]
        captions = [spoken[key].pop(0) for key in zip(owners, split.captions, strict=True)]
        places[split.name] = images, np.array(captions, dtype=np.int64)
    return places


def _whereabouts(split: Split, index: int) -> str:
    """Where a picture of a table lies; ids of absolute paths are these."""
    return str(split.image_ids[index])


def _split_rows(splits: Any) -> Iterator[tuple[str, str, str]]:
    for split in splits:
        for caption, owner in zip(split.captions, split.owner.tolist(), strict=True):
            yield _whereabouts(split, owner), caption, split.name


def _lines(rows: Any) -> bytes:
    """Rows of a .jsonl table."""
    lines = []
    for picture, caption, split in rows:
        row = {"image": picture, "captions": [caption], **({} if split is None else {"split": split})}
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    return "".join(lines).encode()


def _write_rows(path: Path, rows: Any, index: NDArray[np.int64]) -> None:
    """Some rows of a table, block by block."""
    kind = np.float16 if rows[:1].dtype == np.float16 else np.float32
    target = np.lib.format.open_memmap(path, mode="w+", dtype=kind, shape=(len(index), rows.shape[1]))
    for start in range(0, len(index), _BLOCK):
        chosen = index[start : start + _BLOCK]
        order = np.argsort(chosen, kind="stable")  # a memory map is read in its own order
        block = np.empty((len(chosen), rows.shape[1]), dtype=kind)
        block[order] = rows[chosen[order]]
        target[start : start + len(chosen)] = block
    target.flush()


def _entry(name: str, side: Modality, width: int, n_params: int | None) -> str:
    """An encoder of ready rows as a zoo file has it."""
    known = next((spec for spec in _shipped() if name in (spec.name, spec.architecture)), None)
    size = n_params if n_params is not None else None if known is None else known.n_params
    if size is None:
        raise ValueError(f"how many parameters {name} has is not known here; give --params, such as 22M")
    lines = ["[[encoder]]", f'name = "{name}"', f'modality = "{side}"', 'loader = "rows"']
    lines += [f'checkpoint = "rows/{name}-{{split}}.npy"', f"embed_dim = {width}", f"n_params = {size}"]
    if known is not None and known.license:
        lines.append(f"license = {json.dumps(known.license)}")
    return "\n".join([*lines, ""])


def _shipped() -> Iterator[EncoderSpec]:
    for path in sorted(zoo_folder().glob("*.toml")):
        yield from load_zoo(path)


def _file_safe(name: str) -> str:
    """A name that a zoo takes."""
    words = "".join(char if char.isascii() and (char.isalnum() or char in "._-") else "-" for char in name)
    while "--" in words or ".." in words:
        words = words.replace("--", "-").replace("..", ".")
    return words.strip("-._")[:100] or "encoder"
