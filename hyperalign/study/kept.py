"""What a study's folder tells of it: `study.json`, read back without opening the study itself."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hyperalign.embed.plain import parse_json
from hyperalign.study.findings import find_fault

__all__ = ["FORMAT", "RECORD", "check_mark", "read_study"]

FORMAT = 1  # of what a study's attributes and `study.json` say
RECORD = "study.json"


def read_study(folder: Path) -> dict[str, Any]:
    """`study.json` of a study, finished or not.

    Raises:
        FileNotFoundError: If the folder is not there or holds no study.
        ValueError: If the record is damaged or of another release.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no study at {folder}: there is no such folder")
    path = folder / RECORD
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is not a study: it has no {RECORD}; give a folder that `study` has made")
    try:
        record = parse_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}); the study must be made again") from None
    check_mark(record, str(path))
    fault = find_fault(record)
    if fault is not None:
        raise ValueError(f"{path} is not the record of a study: {fault}; begin a new study")
    return dict(record)


def check_mark(mark: Any, what: str) -> None:
    """Refuse what this release cannot read.

    Raises:
        ValueError: If it is not marked as ours, or in another form.
    """
    if not isinstance(mark, Mapping) or "format" not in mark:
        raise ValueError(f"{what} was not made by `hyperalign study`; give another --name")
    if mark["format"] != FORMAT:
        raise ValueError(
            f"{what} was made by hyperalign {mark.get('version', '?')} in form {mark['format']}, and this release "
            f"reads form {FORMAT}; go on with that release, or begin a new study"
        )
