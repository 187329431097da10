"""What a user types, or writes into TOML: zoos, configurations, quantities."""

import io
import random
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from hyperalign.align.residual import RESIDUAL
from hyperalign.cli import app
from hyperalign.cli.asking import configured
from hyperalign.cli.studying import _asked, parse_seconds
from hyperalign.config import place_words
from hyperalign.embed.data import find_files
from hyperalign.embed.samples import expand
from hyperalign.embed.zoo import (
    Limits,
    find_encoder,
    load_zoo,
    pairs_within,
    parse_count,
    parse_dim,
    parse_range,
    within,
    zoo_folder,
)
from hyperalign.request import from_record
from hyperalign.show.lists import encoders_table
from hyperalign.study.space import read_space
from trust.hostile import Case
from trust.mutate import WORDS, hostile, mutated, rewritten, to_toml

__all__ = ["open_configs", "open_quantities", "open_zoos"]

_ENCODERS: list[dict[str, Any]] = [
    {
        **{"name": "mobile", "modality": "image", "loader": "timm", "architecture": "mobilenetv3_small_050"},
        **{"checkpoint": "weights/m.safetensors", "kwargs": {"channels": [8, 16], "depth": 2}, "input_size": 64},
        **{"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "interpolation": "bicubic", "crop_pct": 0.875},
        **{
            "pooling": "avg",
            "truncate_dim": 64,
            "embed_dim": 64,
            "n_params": 1_000_000,
            "gflops": 0.5,
            "license": "MIT",
        },
    },
    {
        **{"name": "own", "modality": "image", "loader": "python", "factory": "net.py:make", "kwargs": {"width": 8}},
        **{"input_size": 32, "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0], "embed_dim": 8, "n_params": 10},
    },
    {
        **{"name": "words", "modality": "text", "loader": "sentence-transformers", "architecture": "all-MiniLM-L6-v2"},
        **{
            "revision": "0" * 40,
            "prompt": "query: ",
            "embed_dim": 384,
            "n_params": 22_000_000,
            "license": "Apache-2.0",
        },
    },
    {"name": "ready", "modality": "text", "loader": "rows", "checkpoint": "rows/ready-{split}.npy", "n_params": 5},
    {"name": "clip", "modality": "image", "loader": "open-clip", "architecture": "ViT-B-32", "checkpoint": "c.pt"},
]
_OTHERS = [{**_ENCODERS[k], "name": f"other-{k}"} for k in (0, 3)]  # one of each side
_TOML = (
    b"[[encoder]]\n",
    b"[encoder]\n",
    b'name = "',
    b"'''",
    b'"""',
    b"1979-05-27T07:32:00Z",
    b"= ",
    b"#",
    b"inf",
    b"0x1F",
)


def open_zoos(folder: Path) -> Case:
    """Zoo files: every key of every loader with values of any kind, and their bytes."""
    texts = [_zoo(_ENCODERS), (zoo_folder() / "embedded.toml").read_text("utf-8")[:3000], _zoo(_ENCODERS[:1])]
    valid = [text.encode() for text in texts]
    path = folder / "zoo.toml"

    def case(rng: random.Random) -> None:
        if rng.random() < 0.5:
            data = mutated(rng, rng.choice(valid), valid, _TOML)
        else:
            tables = rewritten(rng, rng.sample(_ENCODERS, rng.choice((1, 1, 2, 3))))
            data = _zoo([*(tables if isinstance(tables, list) else [tables]), *_OTHERS]).encode(
                "utf-8", "surrogatepass"
            )
        path.write_bytes(data)
        specs = load_zoo(path)
        for spec in specs:
            spec.local_checkpoint()
            hash(spec)
        if rng.random() < 0.1:
            Console(file=io.StringIO(), width=100).print(encoders_table(specs))
            find_encoder(specs, rng.choice(WORDS))
        kept = within(specs, Limits(image_params=parse_range("30M"), licenses=("mit",) if rng.random() < 0.3 else ()))
        images, texts = ([spec for spec in kept if spec.modality == side] for side in ("image", "text"))
        pairs_within(images, texts, Limits(pair_params=parse_range("1:1G")))

    return case


def _zoo(tables: list[Any]) -> str:
    """Tables of encoders as a zoo file."""
    texts = []
    for table in tables:
        rows = table.items() if isinstance(table, dict) else [("x", table)]
        texts.append("\n".join(["[[encoder]]", *(f"{_key(key)} = {to_toml(value)}" for key, value in rows), ""]))
    return "\n".join(texts)


def _key(key: str) -> str:
    return key if key.isidentifier() and key.isascii() else to_toml(key)


_CONFIG: dict[str, Any] = {
    **{"zoo": ["embedded"], "data": "scenes", "budget": "30M", "text-budget": "1M:2M", "pair_budget": ":50M"},
    **{"max_gflops": 1.5, "max_latency": "10", "dim": "384", "license": "mit,apache-2.0", "method": "ape,hypernet"},
    **{"decoder": "residual", "sides": "text", "task": "retrieval", "verify": 1, "seed": 3, "limit": 100},
    **{"steps": 75, "batch_size": 512, "learning_rate": 0.002, "strict": True, "exhaustive": False, "autocast": True},
    **{"train": {"n_steps": 10, "betas": [0.9, 0.95], "warmup_frac": 0.1}, "baseline": {"n_epochs": 2.0}},
    **{"canonical": {"rank": 64}, "baseline_both": {"batch_size": 64}},
}
_STUDY: dict[str, Any] = {
    **{"over": "training", "trials": 5, "objective": "score,flops", "sampler": "tpe", "pruner": "median", "looks": 3},
    **{"space": {"learning_rate": "1e-4:1e-1:log", "batch_size": "128,256"}, "patience": 3, "target": 20.5, "seeds": 2},
}


def open_configs(folder: Path) -> Case:
    """Configuration files of `search` and `study`, read as the command line reads them."""
    groups: Any = typer.main.get_command(app)
    commands = {name: groups.commands[name] for name in ("search", "study")}
    path = folder / "run.toml"
    valid = [_config(_CONFIG).encode(), _config({**_CONFIG, **_STUDY}).encode()]

    def case(rng: random.Random) -> None:
        name = rng.choice(("search", "search", "study"))
        words = {**_CONFIG, **(_STUDY if name == "study" else {})}
        chosen = {key: words[key] for key in rng.sample(sorted(words), rng.randrange(1, 8))}
        if rng.random() < 0.35:
            data = mutated(rng, rng.choice((*valid, _config(chosen).encode())), valid, _TOML)
        else:
            changed = rewritten(rng, chosen)
            data = _config(changed if isinstance(changed, dict) else {"zoo": changed}).encode("utf-8", "surrogatepass")
        path.write_bytes(data)
        given = ["--config", str(path)]
        if rng.random() < 0.2:
            given += [rng.choice(("--budget", "--dim", "--method", "--steps", "--seed", "--sides")), rng.choice(WORDS)]
        context = commands[name].make_context(name, given)
        if name == "study":
            _asked(context, None)
        configured(context).plan_methods()

    return case


def _config(words: dict[str, Any]) -> str:
    """A configuration file."""
    plain = {key: value for key, value in words.items() if not isinstance(value, dict)}
    lines = [f"{_key(key)} = {to_toml(value)}" for key, value in plain.items()]
    for key, table in words.items():
        if isinstance(table, dict):
            lines += [f"[{_key(key)}]", *(f"{_key(str(name))} = {to_toml(value)}" for name, value in table.items())]
    return "\n".join([*lines, ""])


_QUANTITIES = (
    *("30M", "1.5G", "250000", "30M:120M", ":30M", "120M:", "384", "384:768", "1e-4:1e-1:log", "128,256,512", "10G"),
    *(
        "train-{000..004}.tar",
        "{a,b{c,d}}-{1..3}.csv",
        "5m",
        "2.5h",
        "30",
        "score,flops",
        "true,false",
        "1e6",
        "0.5:0.9",
    ),
)


def open_quantities(folder: Path) -> Case:
    """Budgets, ranges, widths, spaces of a study, durations, braces of file names, and whole records of such words."""
    valid = [word.encode() for word in _QUANTITIES]
    fields = ("learning_rate", "batch_size", "n_steps", "warmup_frac", "logit_scale", "betas", "optimizer", "x")
    readers = (parse_count, parse_range, parse_dim, parse_seconds)

    def word(rng: random.Random) -> str:
        if rng.random() < 0.2:
            return rng.choice(WORDS)
        return mutated(rng, rng.choice(valid), valid, (b"K", b"M", b"G", b":", b"{", b"}", b"..", b",", b"e5")).decode(
            "utf-8", rng.choice(("replace", "surrogateescape"))
        )

    def case(rng: random.Random) -> None:
        kind = rng.randrange(10)
        if kind < 6:
            found = readers[kind % 4](word(rng))
            str(found)
        elif kind == 6:
            str(*read_space({rng.choice(fields): word(rng)}, RESIDUAL))
        elif kind == 7:
            expand(word(rng) + word(rng))
        elif kind == 8:
            keys = ("budget", "dim", "method", "license", "steps", "train", "limits", "zoo", "verify", "sides", "x")
            from_record(place_words({rng.choice(keys): rng.choice((word(rng), hostile(rng))) for _ in range(2)}))
        else:
            find_files(word(rng))

    return case
