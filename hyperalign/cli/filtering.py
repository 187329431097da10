"""`filter`: data in, its better part and a table of what was dropped out."""

from pathlib import Path
from typing import Annotated

import typer

from hyperalign.cli.asking import given
from hyperalign.cli.manners import print_json, say, show_progress, stdout
from hyperalign.cli.options import Config, Json, Text

__all__ = ["filter_command"]

_RULES = "Rules"


def filter_command(  # noqa: PLR0913 – the signature is the list of options
    ctx: typer.Context,
    data: Annotated[str, typer.Argument(metavar="DATA", help="A table, tar shards (braces, wildcards) or a folder.")],
    out: Annotated[Path, typer.Option(help="Folder of what is kept; its files keep their names.")],
    language: Annotated[
        Text, typer.Option(help="Language of the captions, by its code: en; any keeps all.", rich_help_panel=_RULES)
    ] = None,
    min_probability: Annotated[
        float | None, typer.Option(help="Least probability of the language.", rich_help_panel=_RULES)
    ] = None,
    vocabulary: Annotated[
        list[str] | None,
        typer.Option(
            help="Classes of which a caption must name one: a text file, a .json or a label set; repeatable.",
            rich_help_panel=_RULES,
        ),
    ] = None,
    score: Annotated[
        Text, typer.Option(help="Column, or key of a .json, that scores a pair.", rich_help_panel=_RULES)
    ] = None,
    min_score: Annotated[float | None, typer.Option(help="Least score that is kept.", rich_help_panel=_RULES)] = None,
    top_share: Annotated[
        float | None, typer.Option(help="Or: share of the scored pairs that is kept, 0.2.", rich_help_panel=_RULES)
    ] = None,
    captions: Annotated[Text, typer.Option(help="Column of the captions, where its name does not tell.")] = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Keep pairs whose caption is in English, names a class and is scored well; say what was dropped."""
    from hyperalign.hyperclip.filtering import filter_data
    from hyperalign.hyperclip.rules import FilterConfig
    from hyperalign.show.filtered import filtered_facts, filtered_table

    words = {
        name: value for name, value in given(ctx).items() if name not in ("data", "out", "captions", "config", "json")
    }
    if "vocabulary" in words:
        words["vocabulary"] = tuple(words["vocabulary"])
    if words.get("language") == "any":
        words["language"] = None
    with show_progress() as display:
        found = filter_data(data, out, FilterConfig(**words), captions=captions, progress=display.progress)
    if json:
        print_json(filtered_facts(found))
    else:
        stdout().print(filtered_table(found))
        say(f"kept in {out}" if found.files else "nothing was kept; loosen the rules")
