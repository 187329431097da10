"""One pair of a finished run: its row of the table, its two encoders where they lie now, its connector."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from hyperalign.align.polish import POLISH
from hyperalign.embed.consent import Written
from hyperalign.embed.identity import identity, pin
from hyperalign.embed.zoo import EncoderSpec, find_encoder, load_zoos
from hyperalign.kept import Note, best_row, note_of, read_notes, undamaged, whose
from hyperalign.record import CEILING
from hyperalign.run import Run, load_run, load_tensors
from hyperalign.use.joint import Joint, joint_of

__all__ = ["Chosen", "choose_pair"]

_NAMED = 5  # pairs that are named before the rest is counted


@dataclass(frozen=True, kw_only=True, eq=False)
class Chosen:
    """One pair of a finished run.

    Attributes:
        run: The run.
        row: Its row of the leaderboard, by column.
        image: The image encoder, its hub commit pinned.
        text: The text encoder.
        joint: What joins them.
        autocast: Whether the run's rows were computed in bfloat16.
        logit_scale: Inverse temperature of the training; None where none was kept.
    """

    run: Run
    row: dict[str, Any]
    image: EncoderSpec
    text: EncoderSpec
    joint: Joint
    autocast: bool
    logit_scale: float | None

    @property
    def name(self) -> str:
        """Both names with a plus sign between."""
        return f"{self.image.name}+{self.text.name}"


def choose_pair(
    run: Path, pair: str | int | None = None, *, method: str | None = None, zoo: Sequence[str] = ()
) -> Chosen:
    """Find a pair of a finished run, and its encoders unchanged.

    Args:
        run: Folder of a finished run.
        pair: `IMAGE+TEXT`, or its position in the table, 1 being the first; None is the first.
        method: Whose connector; None is whose validates best of those that were made of the pair.
        zoo: Zoos to find the encoders in, in the user's own words; none are those of the run.

    Raises:
        FileNotFoundError: If the folder is no run, or a zoo or a file is missing.
        KeyError: If there is no such pair or encoder; near names are offered.
        ValueError: If the run was cut short, has kept no connector of the pair, or an encoder has changed since.
    """
    found = load_run(run)
    rows = _rows_of(found, method)
    row = _find_row(found, rows, pair)
    with undamaged(run):
        notes = read_notes(found)
        row = row if method else best_row(found, row, notes)
        joint = _find_joint(found, rows, row, notes)
    known = load_zoos([Written(one) for one in zoo]) if zoo else _own_zoos(found)
    autocast = bool(found.result["configuration"].get("autocast", False))
    image, text = (_unchanged(found, known, row[side], autocast) for side in ("image_encoder", "text_encoder"))
    scale = POLISH.logit_scale if row["method"] == "polished" else None
    if row["method"] == "hypernet" and (run / "kept.safetensors").is_file():
        with undamaged(run):
            scale = float(load_tensors(run / "kept.safetensors")["logit_scale"][0])
    return Chosen(run=found, row=row, image=image, text=text, joint=joint, autocast=autocast, logit_scale=scale)


def _rows_of(run: Run, method: str | None) -> pd.DataFrame:
    """Rows of one method, one of its sides and seeds, by position."""
    board, wanted = run.leaderboard, method or run.result["method"]
    if wanted == CEILING:
        raise ValueError(f"the ceiling is no pair of {run.path}: its encoders were joined by their makers; use these")
    known = [name for name in dict.fromkeys(board["method"]) if name != CEILING]
    if wanted not in known:
        raise KeyError(f"{run.path} has no method {wanted!r}; it has {', '.join(known)}")
    rows = board[board["method"] == wanted].sort_values(["position", "seed"], kind="stable")
    first = rows.iloc[0]
    mine: pd.DataFrame = rows[(rows["sides"] == first["sides"]) & (rows["seed"] == first["seed"])]
    return mine.reset_index(drop=True)


def _find_row(run: Run, rows: pd.DataFrame, pair: str | int | None) -> dict[str, Any]:
    """The row of a pair by its name or its position."""
    word = "1" if pair is None else str(pair).strip()
    names = [f"{row.image_encoder}+{row.text_encoder}" for row in rows.itertuples()]
    if word.isdecimal():
        at = rows.index[rows["position"] == int(word)]
        if not len(at):
            raise KeyError(f"{run.path} has no pair at position {word}; it has {len(rows):,} pairs, 1 is the first")
        return _plain(rows, int(at[0]))
    if word not in names:
        near = difflib.get_close_matches(word, names, n=3, cutoff=0.5)
        hint = f"; did you mean {', '.join(near)}?" if near else "; a pair is IMAGE+TEXT or its position in the table"
        raise KeyError(f"{run.path} has no pair {word!r}{hint}")
    return _plain(rows, names.index(word))


def _plain(rows: pd.DataFrame, number: int) -> dict[str, Any]:
    """A row as plain Python values."""
    return {str(name): value for name, value in rows.iloc[[number]].to_dict("records")[0].items()}


def _find_joint(run: Run, rows: pd.DataFrame, row: dict[str, Any], notes: Sequence[Note]) -> Joint:
    """The connector that the run has kept of a pair."""
    note = note_of(notes, row)
    if note is not None:
        own = note.own(load_tensors(run.path / "connectors.safetensors"))
        pair = note.images.index(row["image_encoder"]), note.texts.index(row["text_encoder"])
        joint = joint_of(own, note.record, pair)
        if joint is not None:
            return joint
    same = [one for one in notes if one.whose == whose(row)]
    return _refuse_joint(run, rows, row, [f"{image}+{text}" for one in same for image, text in one.pairs])


def _refuse_joint(run: Run, rows: pd.DataFrame, row: dict[str, Any], kept: Sequence[str]) -> Joint:
    """Say which connectors there are."""
    name = f"{row['image_encoder']}+{row['text_encoder']}"
    if not kept:
        raise ValueError(
            f"{run.path} is of an earlier release and has kept the connectors of {run.result['method']} alone; search "
            f"again to have those of {row['method']}"
        )
    more = f" and {len(kept) - _NAMED} more" if len(kept) > _NAMED else ""
    raise ValueError(
        f"{run.path} has kept the connectors of its first {len(kept)} pairs by {row['method']}, and {name} is number "
        f"{row['position']:,} of {len(rows):,}; give one of {', '.join(kept[:_NAMED])}{more}, or search again with "
        "limits or a zoo that put it among the first"
    )


def _own_zoos(run: Run) -> tuple[EncoderSpec, ...]:
    """The encoders of the run's zoos, those it has adopted from included."""
    with undamaged(run.path):
        adopted = [source for record in run.result.get("adopted", []) for source in record["zoo"]]
        names = list(dict.fromkeys([*run.result["configuration"]["zoo"], *adopted]))
    try:
        return load_zoos(names)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error}; {run.path} was searched with it, so start from the folder the search was started in, or say "
            "where it is with --zoo"
        ) from None


def _unchanged(run: Run, known: Sequence[EncoderSpec], name: str, autocast: bool) -> EncoderSpec:
    """An encoder as it is declared now, which must be what the run has seen; its facts and commit are the run's."""
    spec = find_encoder(known, name)
    with undamaged(run.path):
        record = {one["name"]: one for one in run.result["encoders"]}[name]
        facts = {key: record[key] for key in ("embed_dim", "n_params", "gflops", "license")}
        spec = replace(spec, **facts, revision=spec.revision or record["revision"])
    if spec.loader == "rows":
        raise ValueError(
            f"encoder {name!r} is a file of ready embeddings and embeds nothing new, so no model can be made of it; "
            "choose a pair of two encoders that run"
        )
    own = identity(spec, memory=None, autocast=autocast)
    treated = [key for key in ("pooling", "prompt", "truncate_dim") if getattr(spec, key) != record[key]]
    if treated or (own.weights, own.preprocess) != (record["weights"], record["preprocess"]):
        raise ValueError(
            f"encoder {name!r} has changed since {run.path} was made: its weights, its code or its preprocessing; "
            "bring back what it was, or search again"
        )
    return pin(spec, memory=None)
