"""A study as one HTML page, where it belongs to no run: one file, no network. The same record gives the same bytes."""

from pathlib import Path

from hyperalign.run import write_whole
from hyperalign.show.shell import as_json, fill
from hyperalign.show.trials import StudyView, view_study

__all__ = ["render_study", "write_study_page"]

_OWN = ("words", "figures", "pointing", "trials", "alone")


def write_study_page(folder: Path) -> Path:
    """Write `report.html` into a study's folder and return its path.

    Raises:
        ValueError: If its record is damaged or of another release.
    """
    study = view_study(folder)
    if study is None:
        raise FileNotFoundError(f"{folder} is not a study: it has no study.json; give a folder that `study` has made")
    path = folder / "report.html"
    write_whole(path, render_study(study).encode())
    return path


def render_study(study: StudyView) -> str:
    """Draw a study; nothing but its record goes in."""
    return fill("alone.html.j2", _OWN, study=study, data=as_json({"study": study.data}))
