"""`adapt` and `specialise`: a run's winner or an architecture becomes a HyperCLIP model, and that one encoder."""

from pathlib import Path
from typing import Annotated, Any

import typer

from hyperalign.cli.asking import given
from hyperalign.cli.manners import print_json, say, show_progress, stdout
from hyperalign.cli.options import (
    TRAINING,
    CacheDir,
    Config,
    Data,
    Json,
    Limit,
    Out,
    PeakRate,
    Seed,
    Steps,
    Text,
    TrustCode,
)
from hyperalign.cli.tabling import TABLE_OPTIONS, print_tables, recorded

__all__ = ["adapt", "specialise"]

_HYPER = "Hypernetwork"
_SCRATCH = "From scratch"
_PAPER = "The paper's tables"
_FIELDS = {  # option -> (table, field) where the two are called differently
    "steps": ("train", "n_steps"),
    "epochs": ("train", "n_epochs"),
    "parts": ("train", "n_parts"),
    "prompts": ("train", "n_prompts"),
    "pools": ("train", "n_pools"),
    "validations": ("train", "n_validations"),
    **{
        name: ("train", name)
        for name in (
            *("batch_size", "learning_rate", "hyper_rate", "text_rate", "bn", "loss", "crop", "precision"),
            "blend",
        )
    },
    "seed": ("train", "seed"),
    "layers": ("hyper", "n_layers"),
    "heads": ("hyper", "n_heads"),
    **{name: ("hyper", name) for name in ("width", "feed_forward", "bottleneck", "pool", "weight_scale", "dropout")},
    "text_layers": ("text", "n_layers"),
    "text_width": ("text", "width"),
    "text_heads": ("text", "n_heads"),
}


def adapt(  # noqa: PLR0913 – the signature is the list of options
    ctx: typer.Context,
    run: Annotated[Path | None, typer.Argument(metavar="[RUN]", help="Finished run whose winner is adapted.")] = None,
    pair: Annotated[Text, typer.Option(metavar="IMAGE+TEXT", help="Another pair of that run.")] = None,
    arch: Annotated[
        Text, typer.Option(help="Or: B0 B1 B2 M0 M1 T0 E0 V0 or a timm name.", rich_help_panel=_SCRATCH)
    ] = None,
    input_size: Annotated[int | None, typer.Option(min=8, help="Pixels a side.", rich_help_panel=_SCRATCH)] = None,
    embed_dim: Annotated[int | None, typer.Option(help="Width of an embedding.", rich_help_panel=_SCRATCH)] = None,
    text_layers: Annotated[
        int | None, typer.Option(help="Layers of the text transformer.", rich_help_panel=_SCRATCH)
    ] = None,
    text_width: Annotated[int | None, typer.Option(help="Its width.", rich_help_panel=_SCRATCH)] = None,
    text_heads: Annotated[int | None, typer.Option(help="Its heads.", rich_help_panel=_SCRATCH)] = None,
    data: Data = None,
    labels: Annotated[
        list[str] | None, typer.Option(help="Class set to score on: a folder or tar of class/picture; repeatable.")
    ] = None,
    limit: Limit = None,
    split: Annotated[
        Text, typer.Option(help="Whose captions are searched: test, or val to choose settings by.")
    ] = None,
    method: Annotated[Text, typer.Option(help="siglip, hyperclip, hyperclip-flat; with commas.")] = None,
    layers: Annotated[
        int | None, typer.Option(help="Of the hypernetwork's transformer.", rich_help_panel=_HYPER)
    ] = None,
    width: Annotated[int | None, typer.Option(help="Of its tokens.", rich_help_panel=_HYPER)] = None,
    heads: Annotated[int | None, typer.Option(help="Of its attention.", rich_help_panel=_HYPER)] = None,
    feed_forward: Annotated[int | None, typer.Option(help="Of its hidden layers.", rich_help_panel=_HYPER)] = None,
    dropout: Annotated[float | None, typer.Option(help="Share that is dropped.", rich_help_panel=_HYPER)] = None,
    bottleneck: Annotated[
        int | None, typer.Option(help="Width in front of its last layer.", rich_help_panel=_HYPER)
    ] = None,
    pool: Annotated[
        Text, typer.Option(help="Mean over prompts: last, or early, before the bottleneck.", rich_help_panel=_HYPER)
    ] = None,
    weight_scale: Annotated[
        Text, typer.Option(help="Of its output at the start: auto, none or a number.", rich_help_panel=_HYPER)
    ] = None,
    steps: Steps = None,
    epochs: Annotated[float | None, typer.Option(help="Or: passes over the data.", rich_help_panel=TRAINING)] = None,
    batch_size: Annotated[int | None, typer.Option(help="Pictures per step.", rich_help_panel=TRAINING)] = None,
    parts: Annotated[
        int | None, typer.Option(help="Parts of a step, each with its own prompts.", rich_help_panel=TRAINING)
    ] = None,
    prompts: Annotated[
        int | None, typer.Option(help="Captions of a part that are prompts.", rich_help_panel=TRAINING)
    ] = None,
    pools: Annotated[
        int | None, typer.Option(help="Batches of like captions, out of so many.", rich_help_panel=TRAINING)
    ] = None,
    learning_rate: PeakRate = None,
    hyper_rate: Annotated[
        float | None, typer.Option(help="Hypernetwork's rate, in shares of it.", rich_help_panel=TRAINING)
    ] = None,
    text_rate: Annotated[
        float | None, typer.Option(help="Text side's rate, in shares of it.", rich_help_panel=TRAINING)
    ] = None,
    validations: Annotated[
        int | None,
        typer.Option(help="Looks at validation; the best state is kept. 0: the last.", rich_help_panel=TRAINING),
    ] = None,
    blend: Annotated[
        float | None,
        typer.Option(help="How far to go from the start to what was learned, up to 1.", rich_help_panel=TRAINING),
    ] = None,
    bn: Annotated[Text, typer.Option(help="BatchNorm by running or batch.", rich_help_panel=TRAINING)] = None,
    loss: Annotated[Text, typer.Option(help="siglip or infonce.", rich_help_panel=TRAINING)] = None,
    crop: Annotated[
        float | None, typer.Option(help="Random crops of at least this share of the area.", rich_help_panel=TRAINING)
    ] = None,
    precision: Annotated[Text, typer.Option(help="no, bf16 or fp16.", rich_help_panel=TRAINING)] = None,
    seed: Seed = None,
    config: Config = None,
    cache_dir: CacheDir = Path("cache"),
    out: Out = Path("reports"),
    resume: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Go on with what was cut short.")] = None,
    table: Annotated[
        bool,
        typer.Option("--table", help="Make the four tables; --arch takes several.", rich_help_panel=_PAPER),
    ] = False,
    only: Annotated[
        Text, typer.Option(help="Of zero-shot, worst-group, overhead, batch-size.", rich_help_panel=_PAPER)
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="How many seeds.", rich_help_panel=_PAPER)] = None,
    batch_sizes: Annotated[Text, typer.Option(help="Of the ablation: 64,128,256.", rich_help_panel=_PAPER)] = None,
    train_share: Annotated[
        float | None, typer.Option(help="Of a class set, for probe and bound.", rich_help_panel=_PAPER)
    ] = None,
    overhead_batch: Annotated[
        int | None, typer.Option(min=2, help="Pictures in a timed step.", rich_help_panel=_PAPER)
    ] = None,
    trust_code: TrustCode = False,
    json: Json = False,
) -> None:
    """Train a small image encoder that fits its prompts, and the SigLIP baseline beside it."""
    if table or any(name in given(ctx) for name in TABLE_OPTIONS):
        print_tables(ctx, _configured, table=table, json=json)
        return
    from hyperalign.hyperclip.adapt import AdaptConfig, read_record
    from hyperalign.hyperclip.adapt import adapt as stage
    from hyperalign.hyperclip.train import division_in_words
    from hyperalign.processes import crew, rank
    from hyperalign.show.adapted import adapted_table

    wanted = _configured(ctx) if resume is None else recorded(ctx, resume, read_record, AdaptConfig)
    with crew() as together, show_progress() as display:
        for sentence in division_in_words(wanted.training(), together.size):
            display.say(sentence)
        folder = stage(wanted, cache_dir=cache_dir, out=out, resume=resume, progress=display.progress, say=display.say)
    record = read_record(folder)
    if json:
        print_json({"folder": str(folder), **record})
    else:
        console = stdout()
        console.print(adapted_table(record, width=console.width))
        if not rank():
            typer.echo(f"\nThe models are in {folder}")


def specialise(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder that adapt has written, or one model in it.")],
    prompts: Annotated[Path, typer.Option(help="Text file, one class or prompt a line.")],
    out: Annotated[Path, typer.Option(help="Folder for the encoder and its class matrix.")],
    template: Annotated[
        list[str] | None, typer.Option(help="Prompt with a gap, 'a photo of a {}.'; repeatable, a class is their mean.")
    ] = None,
    trust_code: TrustCode = False,
    json: Json = False,
) -> None:
    """Fold one set of prompts into the image encoder: plain weights that timm loads, and a class matrix."""
    from hyperalign.hyperclip.specialise import read_prompts, refuse_overwriting, write_specialised
    from hyperalign.hyperclip.specialise import specialise as make
    from hyperalign.hyperclip.stored import find_model, load_model

    templates = _templates(template or ["{}"])
    classes = read_prompts(prompts)
    refuse_overwriting(out)
    loaded = load_model(find_model(model))
    if loaded.network.hyper is None:
        say("this model has no hypernetwork: its encoder is the same for every set of prompts")
    folder = write_specialised(out, make(loaded, classes, templates), loaded, classes, templates)
    words = {"folder": str(folder), "n_classes": len(classes), "n_adapted": _n_adapted(loaded)}
    if json:
        print_json(words)
    else:
        typer.echo(f"{folder} holds the encoder for {len(classes):,} classes and their matrix")


def _n_adapted(loaded: Any) -> int:
    return 0 if loaded.network.adapted is None else int(loaded.network.adapted.n_numbers)


def _templates(given_templates: list[str]) -> list[str]:
    from hyperalign.embed.samples import cut_short

    for template in given_templates:
        if template.count("{}") != 1:
            got = cut_short(template)
            raise ValueError(f"a template must have one gap, {{}}, got {got!r}; write 'a photo of a {{}}.'")
    return given_templates


def _configured(ctx: typer.Context) -> Any:
    """What the command line and the configuration file ask for; the rest is left to the defaults."""
    from hyperalign.config import build
    from hyperalign.hyperclip.adapt import AdaptConfig

    record: dict[str, Any] = {}
    for name, value in given(ctx).items():
        if name in ("cache_dir", "out", "config", "resume", "json", "table", *TABLE_OPTIONS):
            continue
        if name in _FIELDS:
            table, field = _FIELDS[name]
            record.setdefault(table, {})[field] = _weight_scale(value) if name == "weight_scale" else value
        elif name == "method":
            record["methods"] = tuple(word.strip() for word in str(value).split(","))
        else:
            record[name] = value
    return build(AdaptConfig, record)


def _weight_scale(word: str) -> float | str | None:
    if word in ("auto", "none"):
        return None if word == "none" else word
    try:
        return float(word)
    except ValueError:
        raise ValueError(f"--weight-scale takes auto, none or a number, got {word!r}") from None
