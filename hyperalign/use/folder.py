"""A pair as a folder of its own: `hyperalign.json`, `connector.safetensors`, and the encoders' weights where wanted.

The configuration says where each encoder lies: below the folder itself (`encoders/…`), in a zoo that ships with this
program, at a path of the machine that wrote it, or on a hub, pinned to a commit. Whoever reads it back gets the same
bytes or an error.
"""

import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields
from glob import escape
from pathlib import Path
from typing import Any, NamedTuple, Required, TypedDict

import hyperalign
from hyperalign.align.solution import Solution
from hyperalign.embed.identity import identity, is_pinned
from hyperalign.embed.locks import make_folder, owned_file
from hyperalign.embed.plain import misfit, parse_json
from hyperalign.embed.shards import unwritten
from hyperalign.embed.zoo import EncoderSpec, read_spec, trusted, zoo_folder
from hyperalign.packing import pack
from hyperalign.record import to_json
from hyperalign.run import load_tensors, write_tensors, write_whole
from hyperalign.use.joint import Joint, joint_of

__all__ = [
    "CONFIG",
    "CONNECTOR",
    "FORMAT",
    "Stored",
    "drafted_folder",
    "encoder_record",
    "read_config",
    "read_folder",
    "refuse_full",
    "write_joint",
]

CONFIG, CONNECTOR = "hyperalign.json", "connector.safetensors"
FORMAT = 1  # of the folder; a release reads its own and all earlier ones
_ALONE = {"method": "", "sides": "", "pairs": [[0, 0]], "fits": [], "setup_flops": 0, "emit_flops": 0}
_SHIPPED = "shipped"  # where an encoder of a zoo that ships lies, on whatever machine


class _Encoder(TypedDict, total=False):
    """What an encoder's record has beside the fields of its spec."""

    name: Required[str]
    folder: Required[str]
    weights: Required[str]
    preprocess: Required[str]


class _Connector(TypedDict):
    images: list[dict[str, Any] | None]
    texts: list[dict[str, Any] | None]


class _Run(TypedDict, total=False):
    seeds: list[int]


class _Data(TypedDict, total=False):
    name: Required[str]


class _Config(TypedDict, total=False):
    """`hyperalign.json`, as far as it is read back."""

    format: Required[int]
    pair: Required[str]
    image: Required[_Encoder]
    text: Required[_Encoder]
    connector: Required[_Connector]
    autocast: bool
    logit_scale: float
    run: _Run
    data: _Data | None


class Stored(NamedTuple):
    """What a folder holds.

    Attributes:
        config: `hyperalign.json`.
        joint: The connector.
        image: The image encoder, where it lies on this machine.
        text: The text encoder.
    """

    config: dict[str, Any]
    joint: Joint
    image: EncoderSpec
    text: EncoderSpec


@contextmanager
def drafted_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into that takes its name when all of it is there.

    Raises:
        FileExistsError: If a folder of that name holds something.
    """
    refuse_full(folder)
    make_folder(folder.parent, "--to")
    _sweep(folder)
    draft = folder.parent / f".{folder.name}.{os.getpid()}.tmp"
    lock = draft.with_suffix(".lock")
    with owned_file(lock, "--to"):  # until this process ends, however it does; then the draft may be swept
        try:
            draft.mkdir()
            yield draft
            refuse_full(folder)
            draft.replace(folder)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):  # those of a copy name its source
                raise unwritten(folder, error) from None
            raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)
            with suppress(OSError):
                lock.unlink(missing_ok=True)


def _sweep(folder: Path) -> None:
    """Remove what processes that were killed have left of their drafts."""
    for lock in folder.parent.glob(f".{escape(folder.name)}.*.lock"):
        with owned_file(lock, "--to") as ours:
            if ours:
                shutil.rmtree(lock.with_suffix(".tmp"), ignore_errors=True)
                with suppress(OSError):  # Windows keeps a file that is open, and removes this one when it is let go
                    lock.unlink(missing_ok=True)


def refuse_full(folder: Path) -> None:
    """Never write into a folder that holds something."""
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists() or folder.is_symlink():
        what = "holds something already" if folder.is_dir() else "is there already and is no folder"
        raise FileExistsError(f"an export goes into a folder of its own, and {folder} {what}; give another with --to")


def write_joint(folder: Path, joint: Joint, config: Mapping[str, Any]) -> None:
    """Write the connector, then the configuration with what is needed to read it back.

    Args:
        folder: Of the pair.
        joint: The connector.
        config: All else that `hyperalign.json` says.
    """
    solution = Solution(
        method="",
        sides="",
        pairs=[(0, 0)],
        weights=[joint.weight.contiguous()],
        biases=[joint.bias.contiguous()],
        images=[joint.image],
        texts=[joint.text],
    )
    tensors, record = pack(solution)
    write_tensors(folder / CONNECTOR, tensors)
    whole = {
        "format": FORMAT,
        "written_by": f"hyperalign {hyperalign.__version__}",
        **config,
        "connector": {"images": record["images"], "texts": record["texts"]},
    }
    write_whole(folder / CONFIG, to_json(whole, indent=2).encode())


def encoder_record(spec: EncoderSpec, *, autocast: bool, home: str | None = None) -> dict[str, Any]:
    """An encoder as `hyperalign.json` has it.

    Args:
        spec: The encoder; its commit pinned where it comes from a hub.
        autocast: Whether it computes in bfloat16.
        home: Folder of its files below that of the pair; None where they stay where they are.
    """
    values = {entry.name: getattr(spec, entry.name) for entry in fields(spec) if entry.name != "folder"}
    own = identity(spec, memory=None, autocast=autocast)
    if home is None and spec.folder.resolve() == zoo_folder().resolve():
        home = _SHIPPED
    return {
        **{name: value for name, value in values.items() if value not in (None, {})},
        "folder": home or str(spec.folder.resolve()),
        "weights": own.weights,
        "preprocess": own.preprocess,
    }


def read_folder(folder: Path, *, trust_code: bool = False) -> Stored:
    """Read a pair's folder, and hold its encoders against what they were when it was written.

    Args:
        folder: As `export` wrote it.
        trust_code: Whether an encoder may be built by Python code that the folder names.

    Raises:
        FileNotFoundError: If the folder is none of a pair, or an encoder's files are missing.
        ValueError: If it was written by a newer release, is damaged, an encoder has changed, or code is not trusted.
    """
    config = read_config(folder)
    autocast = bool(config.get("autocast", False))
    image, text = (_encoder(folder, config[side], autocast, trust_code=trust_code) for side in ("image", "text"))
    return Stored(config, _read_joint(folder, config), image, text)


def read_config(folder: Path) -> dict[str, Any]:
    """`hyperalign.json`, of a format that this release knows."""
    path = folder / CONFIG
    if not folder.is_dir():
        raise FileNotFoundError(f"no exported pair at {folder}: there is no such folder; `hyperalign export` makes one")
    if not path.is_file():
        hint = "it is a run, `hyperalign export` makes a model of one" if (folder / "result.json").is_file() else ""
        raise FileNotFoundError(f"{folder} is no exported pair: it has no {CONFIG}{hint and '; ' + hint}")
    try:
        config = parse_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}); export the pair again") from None
    if not isinstance(config, dict) or not isinstance(config.get("format"), int):
        raise ValueError(f"{path} is not the configuration of an exported pair: it has no format")
    if config["format"] > FORMAT:
        raise ValueError(
            f"{folder} was written by a newer release ({config.get('written_by')}, format {config['format']}); this "
            f"is hyperalign {hyperalign.__version__}, which reads format {FORMAT}: upgrade it"
        )
    fault = misfit(config, _Config)
    if fault is not None:
        raise ValueError(f"{path} is damaged: {fault}; export the pair again")
    return dict(config)


def _read_joint(folder: Path, config: Mapping[str, Any]) -> Joint:
    """The connector from its file."""
    path = folder / CONNECTOR
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {CONNECTOR}; export the pair again")
    try:
        joint = joint_of(load_tensors(path), {**_ALONE, **config["connector"]}, (0, 0))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read ({error}); export the pair again") from None
    assert joint is not None, "it is the only pair"
    for side, canonical, width in zip(("image", "text"), (joint.image, joint.text), joint.weight.shape, strict=True):
        declared, own = config[side].get("embed_dim"), width if canonical is None else canonical.width
        if declared not in (None, own):
            raise ValueError(f"{path} joins rows of width {own} on the {side} side, whose encoder gives {declared}")
    return joint


def _encoder(folder: Path, record: Mapping[str, Any], autocast: bool, *, trust_code: bool) -> EncoderSpec:
    """An encoder where it lies on this machine, unchanged."""
    place = zoo_folder() if record["folder"] == _SHIPPED else folder / record["folder"]
    try:
        spec = read_spec(record, place)
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG} is damaged: encoder {record['name']!r}: {error}") from None
    if not is_pinned(spec, memory=None):
        raise ValueError(f"encoder {spec.name!r} of {folder} comes from a hub and names no commit; export it again")
    if spec.loader == "python" and not trust_code:
        raise ValueError(
            f"encoder {spec.name!r} of {folder} is built by running {place / str(spec.factory).rpartition(':')[0]}; "
            "read that file, then load with trust_code=True, or --trust-code"
        )
    spec = trusted(spec)
    own = identity(spec, memory=None, autocast=autocast)
    if (own.weights, own.preprocess) != (record["weights"], record["preprocess"]):
        raise ValueError(
            f"encoder {spec.name!r} is not what it was when {folder} was written: its weights, its code or its "
            "preprocessing have changed; bring back what it was, or export the pair again"
        )
    return spec
