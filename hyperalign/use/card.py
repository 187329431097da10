"""The model card of an exported pair: what it is, how to use it, what was measured, what one must know.

Names, notes and paths are untrusted text: whatever means something in Markdown or HTML is escaped.
"""

import json
import math
import re
from collections.abc import Mapping
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined

from hyperalign.embed.zoo import EncoderSpec, zoo_folder
from hyperalign.use.chosen import Chosen
from hyperalign.use.dual import DualEncoder

__all__ = ["describe_pair", "escape", "render_card"]

_UNCUT = 100_000  # tokens; a larger limit is none
_SCORES = (
    ("recall@1, captions to pictures", "t2i_recall_at_1"),
    ("recall@5, captions to pictures", "t2i_recall_at_5"),
    ("recall@10, captions to pictures", "t2i_recall_at_10"),
    ("recall@1, pictures to captions", "i2t_recall_at_1"),
    ("recall@5, pictures to captions", "i2t_recall_at_5"),
    ("recall@10, pictures to captions", "i2t_recall_at_10"),
    ("zero-shot top-1", "zero_shot_top_1"),
)


def render_card(facts: Mapping[str, Any]) -> str:
    """Fill the template; every name that it asks for must be among the facts."""
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False)
    environment.filters.update(md=escape, yaml=json.dumps, count=lambda number: f"{number:,}")
    template = environment.from_string(resources.files(__package__).joinpath("card.md.j2").read_text("utf-8"))
    return re.sub(r"\n{3,}", "\n\n", template.render(**facts)).rstrip() + "\n"


def escape(text: object) -> str:
    """`text` on one line, nothing in it that Markdown, HTML or a terminal would act on."""
    line = "".join(char if char.isprintable() else f"u{ord(char):04x}" for char in str(text))
    return re.sub(r"([\\`*_{}\[\]<>#|~!&])", r"\\\1", line).replace("\\<", "&lt;").replace("\\&", "&amp;")


def describe_pair(  # noqa: PLR0913 - what was chosen, and what was made of it
    chosen: Chosen,
    model: DualEncoder,
    *,
    folder: str,
    format: str,
    command: str,
    with_weights: bool,
    more: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything that the card says.

    Args:
        chosen: The pair and its run.
        model: The pair as it was loaded back.
        folder: Name of the folder, for the examples.
        format: Of `export.FORMATS`.
        command: That made it.
        with_weights: Whether the weights lie beside.
        more: What the format has to say: see `card.md.j2`.
    """
    result, row = chosen.run.result, chosen.row
    assert model.image.picture is not None, "it embeds pictures"
    board = chosen.run.leaderboard
    data = result["data"]
    zero_shot = result["configuration"].get("task") == "zero-shot"
    return {
        "name": chosen.name,
        "license": _license(chosen.image, chosen.text),
        "library": "sentence-transformers" if format == "sentence-transformers" else "hyperalign",
        "onnx": format == "onnx",
        "embed_dim": model.embed_dim,
        "n_pairs": len(board[["image_encoder", "text_encoder"]].drop_duplicates()),
        "uses": [(*use[:2], use[2].replace("FOLDER", folder)) for use in (*more.get("uses", []), _own_use(model))],
        "picture": model.image.picture,
        "encoders": _encoders(chosen.image, chosen.text),
        "whereabouts": _whereabouts(chosen, with_weights, format),
        "row": row,
        "n_train": f"{row['n_train']:,.0f}" if _known(row["n_train"]) else "the run's",
        "data": data,
        "score_words": "zero-shot top-1 in per cent" if zero_shot else "the mean of the two recall@1 in per cent",
        "scores": _scores(row),
        "answer": result.get("answer", []) if row["position"] == 1 else [],
        "licenses": _licenses(chosen.image, chosen.text, data["name"]),
        "max_tokens": _max_tokens(model),
        "notes": result.get("notes", []),
        "command": command,
        "made": _made(chosen),
        **{key: value for key, value in more.items() if key != "uses"},
    }


def _own_use(model: DualEncoder) -> tuple[str, str, str]:
    """How hyperalign uses it."""
    code = any(encoder.spec.loader == "python" for encoder in (model.image, model.text))
    trust = ", trust_code=True" if code else ""
    lines = [
        "import hyperalign",
        "",
        f'model = hyperalign.load("FOLDER"{trust})',
        'pictures = model.encode_image(["photo.jpg"])',
        'captions = model.encode_text(["a dog in the snow", "a bowl of soup"])',
        "print(model.similarity(pictures, captions))",
    ]
    heading = "With hyperalign" + (" (an encoder is built by Python code: read it first):" if code else ":")
    return heading, "python", "\n".join(lines)


def _whereabouts(chosen: Chosen, with_weights: bool, format: str) -> str:
    """Where the weights of the encoders are."""
    if with_weights:
        return "Their weights lie in encoders/; nothing else is needed."
    where = []
    for spec in (chosen.image, chosen.text):
        local = spec.folder / str(spec.factory).rpartition(":")[0] if spec.factory else spec.local_checkpoint()
        if local is not None and spec.folder.resolve() == zoo_folder().resolve():
            where.append(f"{spec.name} comes with hyperalign")
        else:
            where.append(f"{spec.name} is {local or f'{spec.architecture} at commit {spec.revision}'}")
    only = "" if format == "hyperalign" else f" but as {format} has them; for hyperalign"
    found = ", ".join(where)
    return f"Their weights are not in this folder{only}: {found}. They are held against their digests when loaded."


def _max_tokens(model: DualEncoder) -> int | None:
    """After how many tokens a caption is cut; None where it never is."""
    limit = getattr(model.text.network, "max_seq_length", None)
    return int(limit) if limit is not None and limit < _UNCUT else None


def _made(chosen: Chosen) -> list[tuple[str, str]]:
    """Run, versions and commit."""
    result = chosen.run.result
    lines = [("run", f"{result.get('name', chosen.run.path.name)}, started {result.get('started', 'unknown')}")]
    lines += [("encoders from", ", ".join(result["configuration"]["zoo"])), ("seed", str(chosen.row["seed"]))]
    versions = ", ".join(f"{name} {version}" for name, version in result.get("versions", {}).items())
    commits = [(f"commit of {name.replace('_', ' ')}", commit) for name, commit in result.get("commit", {}).items()]
    return [*lines, ("versions", versions), *((name, commit) for name, commit in commits if commit)]


def _encoders(image: EncoderSpec, text: EncoderSpec) -> list[tuple[str, str, str]]:
    """What is known of both encoders, line by line."""

    def both(what: str, of: Any) -> tuple[str, str, str]:
        return what, str(of(image)), str(of(text))

    return [
        both("name", lambda spec: spec.name),
        both("built by", lambda spec: spec.loader),
        both("architecture", lambda spec: spec.architecture or spec.factory or "its own folder"),
        both("commit of the weights", lambda spec: spec.revision or "local weights"),
        both("parameters", lambda spec: _number(spec.n_params)),
        both("width", lambda spec: _number(spec.embed_dim)),
        both("GFLOP for one", lambda spec: "unknown" if spec.gflops is None else f"{spec.gflops:.4g}"),
        both("licence", lambda spec: spec.license or "not declared"),
    ]


def _scores(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The measured figures of a row of the leaderboard; those that were not measured are left out."""
    lines = []
    if _known(row["score"]):
        interval = f"{row['score']:.2f} (95 % interval {row['score_low']:.2f} to {row['score_high']:.2f})"
        lines.append(("score", interval))
        lines.append(("rank (position)", f"{row['rank']} ({row['position']})"))
        lines.append(("probability of being the best", f"{row['p_best']:.2f}"))
    return lines + [(what, f"{row[key]:.2f}") for what, key in _SCORES if _known(row[key])]


def _licenses(image: EncoderSpec, text: EncoderSpec, data: str) -> list[str]:
    """Whose terms hold for what."""
    lines = []
    for spec in (image, text):
        said = f"is under {spec.license}" if spec.license else "declares no licence; ask its makers before you use it"
        lines.append(f"The encoder {spec.name} {said}.")
    lines.append(f"The connector was learned from {data}; the terms of that data hold for it too.")
    return lines


def _license(image: EncoderSpec, text: EncoderSpec) -> str:
    """The licence of both encoders in a hub's words, `other` where they differ or are not declared."""
    both = {(spec.license or "other").lower() for spec in (image, text)}
    return both.pop() if len(both) == 1 else "other"


def _known(value: Any) -> bool:
    return value is not None and not math.isnan(value)


def _number(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"
