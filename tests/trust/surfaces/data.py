"""Data sets: tables, parquet files, tar shards, label sets and words for classes, pictures."""

import csv
import io
import json
import random
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from hyperalign.embed.data import is_label_set, open_dataset, open_label_set, open_split
from hyperalign.embed.label_sets import read_words
from hyperalign.embed.pictures import decode
from hyperalign.embed.tables import plain_rows
from hyperalign.hyperclip.filtering import filter_data
from hyperalign.hyperclip.rules import FilterConfig
from hyperalign.hyperclip.vocabulary import compile_vocabulary, named, read_vocabulary
from hyperalign.use.classes import read_classes
from hyperalign.use.sources import find_pictures
from trust.hostile import Case
from trust.mutate import WORDS, broken, hostile, mutated, rewritten

__all__ = ["open_labels", "open_parquets", "open_pictures", "open_tables", "open_tars"]

_ROWS: list[dict[str, Any]] = [
    {
        "image": f"p/{k}.png",
        "captions": [f"picture {k}", f"a {k}"],
        "split": ("train", "val", "test")[k % 3],
        "s": k / 7,
    }
    for k in range(6)
]


def _silent(stage: str, done: int, total: int) -> None: ...


def _write_pictures(folder: Path) -> None:
    (folder / "p").mkdir()
    for k in range(6):
        Image.new("RGB", (3, 3), (k, 0, 0)).save(folder / "p" / f"{k}.png")


def open_tables(folder: Path) -> Case:
    """Tables of pictures and captions as .csv, .tsv and .jsonl, opened, split and filtered."""
    compile_vocabulary(["cat"])  # its library takes seconds to import
    _write_pictures(folder)
    valid = {
        "csv": [_csv(_ROWS, ","), _csv(_ROWS, ";"), b'\xef\xbb\xbfpath,text\np/0.png,"a, b"\n'],
        "tsv": [_csv(_ROWS, "\t")],
        "jsonl": [_lines(_ROWS), _lines([{"file_name": "p/0.png", "caption": "x"}])],
    }
    paths = {kind: folder / f"pairs.{kind}" for kind in valid}

    def case(rng: random.Random) -> None:
        kind = rng.choice(tuple(valid))
        if rng.random() < 0.6:
            data = mutated(rng, rng.choice(valid[kind]), valid[kind], (b"image", b"captions", b"split", b"train"))
        else:
            rows = rewritten(rng, _ROWS)
            rows = rows if isinstance(rows, list) else [rows]
            data = _lines(rows) if kind == "jsonl" else _csv(rows, "," if kind == "csv" else "\t")
        paths[kind].write_bytes(data)
        _open(rng, paths[kind], folder)

    return case


def _open(rng: random.Random, path: Path, folder: Path) -> None:
    """A data set as one of the commands that take it reads it."""
    what = rng.random()
    if what < 0.55:
        open_dataset(str(path), seed=1)
    elif what < 0.85:
        open_split(str(path), rng.choice((None, "train", "all")), strict=rng.random() < 0.3)
    elif what < 0.95 and path.suffix != ".tar":
        list(plain_rows(path))
    else:
        score = {"score": "s", "min_score": 0.2} if rng.random() < 0.5 else {"vocabulary": (str(_classes(folder)),)}
        out = folder / "out"
        for old in out.glob("*"):
            old.unlink()
        filter_data(str(path), out, FilterConfig(language=None, **score), progress=_silent)


def _classes(folder: Path) -> Path:
    path = folder / "classes.txt"
    if not path.is_file():
        path.write_text("picture\ncat\n")
    return path


def _csv(rows: list[Any], separator: str) -> bytes:
    """Rows as a table; what is no text is written as it prints."""
    out = io.StringIO()
    writer = csv.writer(out, delimiter=separator)
    tables = [row if isinstance(row, dict) else {"image": row} for row in rows] or [{}]
    writer.writerow(tables[0])
    for row in tables:
        writer.writerow([json.dumps(value) if isinstance(value, list) else value for value in row.values()])
    return out.getvalue().encode("utf-8", "surrogatepass")


def _lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def open_parquets(folder: Path) -> Case:
    """Tables as .parquet: columns of every type, and their bytes."""
    compile_vocabulary(["cat"])  # its library takes seconds to import
    _write_pictures(folder)
    columns = _odd_columns()
    path, valid = folder / "pairs.parquet", [_parquet(some) for some in columns]

    def case(rng: random.Random) -> None:
        data = rng.choice(valid)
        at, foot = rng.random(), min(len(data), 900)
        if at < 0.3:
            data = _parquet({**rng.choice(columns), **rng.choice(columns), **rng.choice(columns)})
        elif at < 0.6:  # the footer describes everything else
            data = data[:-foot] + mutated(rng, data[-foot:], valid)
        elif at < 0.97:
            data = mutated(rng, data, valid)
        path.write_bytes(data)
        _open(rng, path, folder)

    return case


def _odd_columns() -> list[dict[str, Any]]:
    images, texts = [row["image"] for row in _ROWS], [row["captions"][0] for row in _ROWS]
    odd: list[Any] = [
        texts,
        [row["captions"] for row in _ROWS],
        list(range(6)),
        [b"\xff\xfe"] * 6,
        [None] * 6,
        [{"a": 1}] * 6,
        pa.array([2**62] * 6, pa.timestamp("us")),
        pa.array([2**62] * 6, pa.duration("us")),
        pa.array([2**30] * 6, pa.date32()),
        pa.array(texts).dictionary_encode(),
        pa.array([[("k", "v")]] * 6, pa.map_(pa.string(), pa.string())),
        pa.array(texts, pa.large_string()),
        [[[t]] for t in texts],
        [1.5, None, float("nan"), 2.0, 3.0, 4.0],
    ]
    found = [{"image": images, "caption": column} for column in odd]
    found += [{"image": column, "caption": texts} for column in odd[1:]]
    found += [{"image": images, "caption": texts, "split": column} for column in odd]
    return [*found, {"image": images, "caption": texts, "s": odd[-1]}, {}]


def _parquet(columns: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out, compression="snappy" if len(columns) % 2 else "none")
    return out.getvalue()


_NAMES = (
    "0001.png",
    "0001.txt",
    "0001.json",
    "0002.jpg",
    "0002.json",
    "cat/a.png",
    "dog/b.png",
    "./x/c.png",
    "0003.cls",
)
_TYPES = (
    *(tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE),
    *(tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE, b"Z"),
)


def open_tars(folder: Path) -> Case:
    """Tar shards: names that lead out, links, devices, sizes that lie, long headers, and their bytes."""
    compile_vocabulary(["cat"])  # its library takes seconds to import
    pictures = [_encoded(kind) for kind in ("PNG", "JPEG")]
    valid = [_tar(random.Random(k), pictures, odd=0.0) for k in range(8)]
    path = folder / "train.tar"

    def case(rng: random.Random) -> None:
        if rng.random() < 0.5:
            data = _tar(rng, pictures, odd=0.15)
        else:
            data = mutated(
                rng, rng.choice(valid), valid, (b"../../x\x00", b"ustar  \x00", b"00000000000\x00", b"\x80\xff")
            )
            data = _summed(data) if rng.random() < 0.8 else data
        path.write_bytes(data)
        what = rng.random()
        if what < 0.15:
            open_label_set(str(path))
        elif what < 0.3:
            found = find_pictures([path])
            for k in range(len(found)):
                found.pictures.read(k)
        elif what < 0.35:
            is_label_set(str(path))
        else:
            _open(rng, path, folder)

    return case


def _tar(rng: random.Random, pictures: list[bytes], *, odd: float) -> bytes:
    """A shard; each fact of a member is odd with a probability."""
    out = io.BytesIO()
    form = rng.choice((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
    with tarfile.open(fileobj=out, mode="w", format=form, errors="surrogateescape") as tar:
        for name in rng.sample(_NAMES, rng.randrange(1, 7)):
            data = rng.choice(pictures) if name.endswith(("png", "jpg")) else _text_of(rng, name, odd)
            info = tarfile.TarInfo(rng.choice(WORDS).replace("\x00", "") if rng.random() < odd else name)
            info.size = len(data)
            if rng.random() < odd:
                info.type = rng.choice(_TYPES)
                info.linkname = rng.choice(WORDS).replace("\x00", "")
            if form == tarfile.PAX_FORMAT and rng.random() < odd:
                keys = (
                    "path",
                    "size",
                    "GNU.sparse.major",
                    "GNU.sparse.map",
                    "GNU.sparse.size",
                    "charset",
                    "hdrcharset",
                )
                info.pax_headers = {rng.choice(keys): rng.choice((*WORDS[:40], "1", "1,2", "BINARY"))}
            try:
                tar.addfile(info, io.BytesIO(data))
            except (ValueError, OSError, UnicodeError):  # what this library cannot write
                continue
    found = out.getvalue()
    return found if rng.random() > odd / 3 else _summed(mutated(rng, found))


def _text_of(rng: random.Random, name: str, odd: float) -> bytes:
    if rng.random() < odd:
        return mutated(rng, b"a caption\nanother\n") if name.endswith("txt") else broken(rng, {"captions": ["a", "b"]})
    return json.dumps({"captions": ["a", "b"], "s": 0.5}).encode() if name.endswith("json") else b"a caption\nanother\n"


def _summed(data: bytes) -> bytes:
    """The same blocks with headers whose checksums are right, so that what they say is believed."""
    out = bytearray(data)
    for at in range(0, len(out) - 511, 512):
        if out[at + 257 : at + 262] == b"ustar":
            block = out[at : at + 512]
            block[148:156] = b" " * 8
            out[at + 148 : at + 156] = b"%06o\0 " % sum(block)
    return bytes(out)


def _encoded(kind: str, size: tuple[int, int] = (5, 4), mode: str = "RGB", **given: Any) -> bytes:
    out = io.BytesIO()
    Image.effect_noise(size, 60).convert(mode).save(out, kind, **given)
    return out.getvalue()


def open_pictures(folder: Path) -> Case:
    """Pictures in every format that is read."""
    makers: list[Callable[[], bytes]] = [
        *(
            lambda kind=kind, mode=mode: _encoded(kind, mode=mode)
            for kind in ("PNG", "TIFF")
            for mode in ("RGB", "P", "1", "L")
        ),
        *(lambda kind=kind: _encoded(kind, (17, 9)) for kind in ("JPEG", "WEBP", "BMP", "GIF", "TIFF")),
        lambda: _encoded("TIFF", compression="tiff_lzw"),
        lambda: _encoded("TIFF", compression="tiff_adobe_deflate"),
        lambda: _encoded("JPEG", (33, 20), progressive=True),
        lambda: _encoded("PNG", mode="I;16"),
        lambda: _encoded("WEBP", lossless=True),
        lambda: _encoded("GIF", save_all=True, append_images=[Image.new("L", (9, 9))]),
    ]
    valid = [make() for make in makers]

    def case(rng: random.Random) -> None:
        data = rng.choice(valid)
        head = min(len(data), 60)
        cut = head if rng.random() < 0.5 else len(data)
        picture = decode(mutated(rng, data[:cut], valid) + data[cut:])
        assert picture.mode == "RGB", picture.mode

    return case


_WORDS_OF_SET: dict[str, Any] = {
    "classes": {"cat": "a cat", "dog": "a dog"},
    "templates": ["a photo of a {}.", "{}"],
    "groups": {"cat/0.png": "in", "dog/0.png": "out"},
}


def open_labels(folder: Path) -> Case:
    """Label sets and what stands beside them, vocabularies, class names and prompts."""
    compile_vocabulary(["cat"])  # its library takes seconds to import
    for name in ("cat", "dog"):
        (folder / "pets" / name).mkdir(parents=True)
        Image.new("RGB", (2, 2)).save(folder / "pets" / name / "0.png")
    table = folder / "groups.csv"
    table.write_text("path,place\ncat/0.png,in\ndog/0.png,out\n")
    names = ["great white shark, white shark", "crane (bird)", "t-shirt", "bus", "lens", "oxen", "cat", "dogs"]
    texts = ["\n".join(names).encode(), b"\xef\xbb\xbfcat\r\ndog\r\n"]
    records: list[Any] = [
        _WORDS_OF_SET,
        {"classes": ["cat", "dog"], "groups": "groups.csv:place"},
        {"classes": {"0": "cat", "1": "dog"}},
        names,
    ]

    def case(rng: random.Random) -> None:
        kind = rng.randrange(6)
        words = folder / "pets.json"
        words.write_bytes(broken(rng, rng.choice(records)))
        if kind == 0:
            table.write_bytes(mutated(rng, b"path,place\ncat/0.png,in\ndog/0.png,out\n"))
        if kind < 2:
            open_label_set(str(folder / "pets"))
        elif kind == 2:
            read_words(words)
            read_classes(str(words))
        elif kind == 3:
            _known(rng, read_vocabulary(str(words)))
        elif kind == 4:
            text = folder / "classes.txt"
            text.write_bytes(mutated(rng, rng.choice(texts), texts))
            found = read_vocabulary(str(text)) if rng.random() < 0.5 else list(read_classes(str(text)).names)
            _known(rng, found)
        else:
            word = rng.choice(WORDS) if rng.random() < 0.4 else str(hostile(rng))
            read_classes(word, [rng.choice(WORDS)] if rng.random() < 0.3 else [])

    return case


def _known(rng: random.Random, names: list[str]) -> None:
    if rng.random() < 0.3:  # plurals take a millisecond a class
        named(compile_vocabulary(names[:4]), f"two {rng.choice(WORDS)} and a shark")
