"""Encoders' weights beside the connector, so that a folder needs nothing else."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

from safetensors.torch import save_file

from hyperalign.embed.identity import files_in_use
from hyperalign.embed.networks import build_network
from hyperalign.embed.sentences import build_sentence_encoder
from hyperalign.embed.zoo import EncoderSpec, trusted

__all__ = ["copy_weights"]

_MOST_FILES = 100  # that a factory may ask for one after the other


def copy_weights(spec: EncoderSpec, folder: Path) -> EncoderSpec:
    """Copy everything that building an encoder takes into a folder, and return it as it is built from there.

    Local weights are copied byte for byte; those of a hub are written as safetensors. Of a factory its own file is
    copied, and every file that it asks for when it is run from there.

    Args:
        spec: Of any loader but "rows".
        folder: Is made.

    Raises:
        ValueError: If a factory asks for something that cannot be found beside it.
    """
    folder.mkdir(parents=True)
    if spec.loader == "python":
        return _copy_factory(spec, folder)
    local = spec.local_checkpoint()
    if spec.loader == "timm":
        name = "weights.safetensors" if local is None else local.name
        if local is None:
            network = build_network(replace(spec, truncate_dim=None)).module
            save_file({key: value.contiguous() for key, value in network.network.state_dict().items()}, folder / name)  # type: ignore[union-attr]
        else:
            shutil.copyfile(local, folder / name)
        return replace(spec, checkpoint=name, revision=None, folder=folder)
    if local is None:
        plain = replace(spec, truncate_dim=None, pooling=None)
        build_sentence_encoder(plain).save(str(folder), create_model_card=False)
    else:
        for file in files_in_use(local):
            (folder / file.relative_to(local)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / file.relative_to(local))
    return replace(spec, checkpoint=".", architecture=None, revision=None, folder=folder)


def _copy_factory(spec: EncoderSpec, folder: Path) -> EncoderSpec:
    """A factory's file and what it asks for: it is run from its new place until it finds everything."""
    path, _, function = str(spec.factory).rpartition(":")
    file = spec.folder / path
    _copy(file, folder / file.name)
    moved = trusted(replace(spec, factory=f"{file.name}:{function}", folder=folder))  # the original was run before this
    for _ in range(_MOST_FILES):
        try:
            build_network(moved)
        except ValueError as error:
            missing = _missing_below(folder, str(error))
            if missing is None or not (file.parent / missing).is_file() or (folder / missing).exists():
                raise ValueError(
                    f"encoder {spec.name!r} cannot be built from a copy of its factory ({error}); export without "
                    "--with-weights"
                ) from None
            _copy(file.parent / missing, folder / missing)
        else:
            return moved
    raise ValueError(f"encoder {spec.name!r} asks for more than {_MOST_FILES} files; export without --with-weights")


def _missing_below(folder: Path, said: str) -> Path | None:
    """The file below a folder that an error names."""
    found = re.search(re.escape(str(folder)) + r"/([^'\"\n]+?)(?=['\")]|$)", said)
    return None if found is None or ".." in Path(found[1]).parts else Path(found[1])


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
