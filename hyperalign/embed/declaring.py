"""An encoder as a zoo file declares it, and plain values as TOML."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from hyperalign.embed.zoo import EncoderSpec

__all__ = ["declare", "to_toml", "toml_lines"]


def declare(spec: EncoderSpec) -> str:
    """The table of an encoder, its files named from the root: what works wherever it is written."""
    values = {key: value for key, value in asdict(spec).items() if key != "folder" and value not in (None, {})}
    if spec.checkpoint is not None and (spec.loader == "rows" or (spec.folder / spec.checkpoint).exists()):
        values["checkpoint"] = str((spec.folder / spec.checkpoint).resolve())
    if spec.factory is not None:
        values["factory"] = str((spec.folder / spec.factory).resolve())
    return "\n".join(["[[encoder]]", *toml_lines(values)]) + "\n"


def toml_lines(table: Mapping[str, Any]) -> list[str]:
    """One line for each key with a value."""
    return [f"{key} = {to_toml(value)}" for key, value in table.items() if value is not None]


def to_toml(value: Any) -> str:
    """A plain value as TOML; JSON's strings, numbers, booleans and lists are TOML's as well."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(str(key))} = {to_toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(to_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)
