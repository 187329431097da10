"""A pair of a finished run as a folder that runs by itself: for hyperalign, sentence-transformers or onnxruntime.

Every folder is one that `load` reads; other formats lie beside. It is made under a temporary name and takes its own
when all of it is there and what it computes was held against the pair of the run.
"""

import shlex
import shutil
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from hyperalign.embed.consent import trusting
from hyperalign.run import write_whole
from hyperalign.use.card import describe_pair, render_card
from hyperalign.use.chosen import Chosen, choose_pair
from hyperalign.use.dual import load
from hyperalign.use.folder import drafted_folder, encoder_record, refuse_full, write_joint
from hyperalign.use.weights import copy_weights

__all__ = ["FORMATS", "export"]

Progress = Callable[[str, int, int], None]

_NEEDS: dict[str, tuple[tuple[str, int], ...]] = {  # distributions and their least versions
    "hyperalign": (),
    "sentence-transformers": (("sentence-transformers", 6),),
    "onnx": (("onnx", 1), ("onnxruntime", 1), ("onnxscript", 0)),
}
FORMATS = ("hyperalign", "sentence-transformers", "onnx")  # what a folder is written for


def export(  # noqa: PLR0913 - which pair of which run, in which form
    run: str | Path,
    to: str | Path,
    pair: str | int | None = None,
    *,
    method: str | None = None,
    with_weights: bool = False,
    format: str = "hyperalign",
    zoo: Sequence[str] = (),
    trust_code: bool = False,
    command: str | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> Path:
    """Write a pair of a finished run as a folder of its own.

    Args:
        run: Folder of a finished run.
        to: Folder to write; must not be there, or be empty.
        pair: `IMAGE+TEXT`, or its position in the table, 1 being the first; None is the first.
        method: Whose connector; None is the method that answers.
        with_weights: Copy both encoders' weights into it. The other formats hold them in any case.
        format: Of `FORMATS`.
        zoo: Zoos to find the encoders in; none are those of the run.
        trust_code: Whether an encoder may be built by Python code that the run names; look at it first.
        command: How this was asked for, for the card; None puts it together.
        progress: Told `(stage, done, total)`.

    Returns:
        The folder.

    Raises:
        FileExistsError: If the folder holds something.
        FileNotFoundError: If the folder is no run, or a zoo or a file is missing.
        KeyError: If there is no such pair or encoder; near names are offered.
        ValueError: If the run was cut short, has kept no connector of the pair, an encoder has changed since, code is
            not trusted, or the format cannot hold the pair.
    """
    if format not in FORMATS:
        raise ValueError(f"a format is one of {', '.join(FORMATS)}, got {format!r}")
    _refuse_missing(format)
    target = Path(to)
    refuse_full(target)
    progress("pair", 0, 1)
    with trusting(trust_code):
        chosen = choose_pair(Path(run), pair, method=method, zoo=zoo)  # runs what builds its encoders: it is known now
    progress("pair", 1, 1)
    words = command or _command(run, to, chosen, method, with_weights, format, zoo)
    with drafted_folder(target) as draft:
        _write(
            draft,
            chosen,
            folder=target.name,
            command=words,
            with_weights=with_weights,
            format=format,
            progress=progress,
        )
    return target


def _write(  # noqa: PLR0913 - what is written, where, and who is told
    draft: Path,
    chosen: Chosen,
    *,
    folder: str,
    command: str,
    with_weights: bool,
    format: str,
    progress: Progress,
) -> None:
    """Everything of the folder; the pair is loaded back from it and held against what was chosen."""
    records: dict[str, Any] = {}
    for done, spec in enumerate((chosen.image, chosen.text)):
        progress("weights", done, 2)
        home = f"encoders/{spec.modality}" if with_weights else None
        kept = spec if home is None else copy_weights(spec, draft / home)
        records[spec.modality] = encoder_record(kept, autocast=chosen.autocast, home=home)
    progress("weights", 2, 2)
    write_joint(draft, chosen.joint, {**_config(chosen), **records})
    progress("writing", 0, 1)
    model = load(draft, device="cpu", trust_code=True)  # what builds its encoders was run when the pair was chosen
    facts: dict[str, Any] = {}
    if format == "sentence-transformers":
        from hyperalign.use.as_sentence_transformer import write_sentence_transformer

        facts = write_sentence_transformer(draft, model)
    elif format == "onnx":
        from hyperalign.use.as_onnx import write_onnx

        facts = write_onnx(draft, model)
    card = describe_pair(
        chosen, model, folder=folder, format=format, command=command, with_weights=with_weights, more=facts
    )
    write_whole(draft / "README.md", render_card(card).encode())
    for leftover in draft.rglob("__pycache__"):
        shutil.rmtree(leftover)
    progress("writing", 1, 1)


def _config(chosen: Chosen) -> dict[str, object]:
    """What `hyperalign.json` says beside the encoders and the connector."""
    result = chosen.run.result
    made = {key: result.get(key) for key in ("name", "started", "seeds", "versions", "commit")}
    return {
        "pair": chosen.name,
        "method": chosen.row["method"],
        "sides": chosen.row["sides"],
        "embed_dim": chosen.joint.embed_dim,
        "logit_scale": chosen.logit_scale,
        "autocast": chosen.autocast,
        "scores": chosen.row,
        "data": result["data"],
        "run": made,
    }


def _refuse_missing(format: str) -> None:
    """The libraries that a format is written with must be there, before anything is built."""
    for name, least in _NEEDS[format]:
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            raise ImportError(f"--format {format} needs {name}; `pip install 'hyperalign[{format}]'`") from None
        if int(found.partition(".")[0]) < least:
            raise ImportError(f"--format {format} needs {name} {least} or later, got {found}; `pip install -U {name}`")


def _command(  # noqa: PLR0913 - the options of the command
    run: str | Path,
    to: str | Path,
    chosen: Chosen,
    method: str | None,
    with_weights: bool,
    format: str,
    zoo: Sequence[str],
) -> str:
    """The command that makes the same folder."""
    words = ["hyperalign", "export", str(run), "--pair", chosen.name, "--to", str(to)]
    words += ["--method", method] if method else []
    words += ["--with-weights"] if with_weights else []
    words += ["--format", format] if format != FORMATS[0] else []
    words += [word for one in zoo for word in ("--zoo", one)]
    return shlex.join(words)
