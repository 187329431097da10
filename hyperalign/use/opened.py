"""A model by where it lies: an exported pair, or a pair of a finished run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hyperalign.run import read_result
from hyperalign.use.dual import DualEncoder, load, open_pair
from hyperalign.use.folder import CONFIG, read_config

__all__ = ["Trained", "made_by", "open_again", "open_model", "trained_on"]


def open_model(path: Path, pair: str | None = None, *, trust_code: bool = False) -> DualEncoder:
    """Build the pair that a folder holds.

    Args:
        path: What `hyperalign export` wrote, or a finished run.
        pair: Of a run: `IMAGE+TEXT` or its position in the table; None is the first.
        trust_code: Whether an encoder may be built by Python code that the folder names.

    Raises:
        FileNotFoundError: If the folder is neither.
        ValueError: If a pair is asked of a folder that holds a single one.
    """
    if (path / "result.json").is_file():
        which = int(pair) if pair is not None and pair.isdecimal() else pair
        return open_pair(path, which, trust_code=trust_code)
    if pair is not None:
        raise ValueError(f"--pair says which pair of a run, got {pair!r} for {path}, which is no run; leave it out")
    return load(path, trust_code=trust_code)


def made_by(path: Path, pair: str | None) -> dict[str, Any]:
    """What `open_again` needs."""
    return {"path": str(path.expanduser().absolute()), "pair": pair}


def open_again(record: Mapping[str, Any], *, trust_code: bool = False) -> DualEncoder:
    """Build the model that something was made with, from where it lay then.

    Raises:
        FileNotFoundError: If nothing is there any more.
    """
    path = Path(record["path"])
    if not path.is_dir():
        raise FileNotFoundError(f"the model lay at {path}, where nothing is now; say where it lies with --model")
    return open_model(path, record["pair"], trust_code=trust_code)


class Trained(NamedTuple):
    """What a model was trained on.

    Attributes:
        name: Of the data set.
        seed: By which its splits were drawn where it names none.
    """

    name: str
    seed: int


def trained_on(path: Path) -> Trained | None:
    """What the model that a folder holds was trained on; None where that is not recorded."""
    if (path / "result.json").is_file():
        about: Mapping[str, Any] = read_result(path)
        seeds = about.get("seeds")
    elif (path / CONFIG).is_file():
        about = read_config(path)
        seeds = about.get("run", {}).get("seeds")
    else:
        return None
    return Trained(about["data"]["name"], (seeds or [0])[0]) if about.get("data") else None
