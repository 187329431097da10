"""Encoders as data: what a zoo file declares, and which of it a limit lets through.

Reading a zoo builds nothing and imports nothing heavy. A zoo file that loads is valid: every
entry has a unique, file-safe name, known keys of the right type, and what its loader needs.
"""

import difflib
import math
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, cast, get_args

from hyperalign.embed.consent import Written

__all__ = [
    "EncoderSpec",
    "Facts",
    "Limits",
    "Loader",
    "Modality",
    "Pair",
    "Range",
    "complete",
    "find_encoder",
    "load_zoo",
    "load_zoos",
    "pairs_within",
    "parse_count",
    "parse_dim",
    "parse_range",
    "read_spec",
    "trusted",
    "within",
    "zoo_folder",
]

Modality = Literal["image", "text"]
Loader = Literal["timm", "sentence-transformers", "open-clip", "python", "rows"]

_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
_COMMON = {"name", "modality", "loader", "revision", "embed_dim", "n_params", "gflops", "license"}
_PICTURE = {"input_size", "mean", "std", "interpolation", "crop_pct"}
_KEYS: dict[str, set[str]] = {
    "timm": _COMMON | _PICTURE | {"architecture", "checkpoint", "kwargs", "pooling", "truncate_dim"},
    "sentence-transformers": _COMMON | {"architecture", "checkpoint", "kwargs", "pooling", "prompt", "truncate_dim"},
    "open-clip": _COMMON | {"architecture", "checkpoint"},
    "python": _COMMON | _PICTURE | {"factory", "kwargs", "truncate_dim"},
    "rows": _COMMON | {"checkpoint"},
}
_NEEDS: dict[str, tuple[str, ...]] = {
    "timm": ("architecture",),
    "sentence-transformers": (),
    "open-clip": ("architecture", "checkpoint"),
    "python": ("factory", "input_size", "mean", "std"),
    "rows": ("checkpoint", "n_params"),
}
_SIDES: dict[str, tuple[str, ...]] = {
    "timm": ("image",),
    "sentence-transformers": ("text",),
    "open-clip": ("image", "text"),
    "python": ("image",),
    "rows": ("image", "text"),
}
_REFUSED_KWARGS = {  # of timm, sentence-transformers and transformers: another source of weights, or code
    *("trust_remote_code", "weights_only", "code_revision", "auto_map", "custom_pipeline", "module_classes", "modules"),
    *("checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "cache_folder"),
    *("state_dict", "gguf_file", "token", "use_auth_token", "revision", "local_files_only", "proxies"),
}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_LARGEST = 2**63  # what arrays hold
_SUFFIX = {"K": 1_000, "M": 1_000_000, "G": 1_000_000_000, "B": 1_000_000_000, "T": 1_000_000_000_000}


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderSpec:
    """One frozen encoder, as declared in a zoo file.

    Attributes:
        name: Unique in the zoo; used in tables and file names.
        modality: What it embeds.
        loader: Which library builds it; "rows" are ready embeddings in a .npy file.
        architecture: timm name (its tag names the weights on the hub), the hub name of a sentence-transformer, or an
            open_clip name.
        checkpoint: Local weights, a file or a folder, relative to `folder`; for "rows" with `{split}` in it.
        revision: Commit of hub weights.
        factory: "file.py:function" relative to `folder`; the function returns an `nn.Module`, pictures → (B, D). It is
            run where it is `Written`, or was run before.
        kwargs: Passed to the constructor.
        input_size: Height and width of the picture that the encoder sees; None is the encoder's own.
        mean: Subtracted from each channel in [0, 1]; None is the encoder's own.
        std: Divides each channel; None is the encoder's own.
        interpolation: Of the resize; None is the encoder's own.
        crop_pct: Share of the resized side that the centre crop keeps, in (0, 1]; None is the encoder's own.
        pooling: How tokens become one embedding, in the loader's words; None is the encoder's own.
        prompt: Put before every caption.
        truncate_dim: Keep the first dimensions only (Matryoshka).
        embed_dim: Declared width D of the embedding.
        n_params: Declared parameters of the encoder, embedding tables included, classifier excluded.
        gflops: Declared GFLOP of one picture, or of one caption of 16 tokens; a multiply-add is two FLOPs.
        license: Declared licence of the weights.
        folder: Where the zoo file lies; not part of what the encoder is.
    """

    name: str
    modality: Modality
    loader: Loader
    architecture: str | None = None
    checkpoint: str | None = None
    revision: str | None = None
    factory: str | None = None
    kwargs: Mapping[str, Any] = field(default_factory=dict, hash=False)
    input_size: int | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    interpolation: str | None = None
    crop_pct: float | None = None
    pooling: str | None = None
    prompt: str | None = None
    truncate_dim: int | None = None
    embed_dim: int | None = None
    n_params: int | None = None
    gflops: float | None = None
    license: str | None = None
    folder: Path = field(default_factory=Path, compare=False)

    def __post_init__(self) -> None:
        """Refuse what no loader could use."""
        _check_name(self.name)
        _check_choice("modality", self.modality, get_args(Modality))
        _check_choice("loader", self.loader, get_args(Loader))
        if self.modality not in _SIDES[self.loader]:
            raise ValueError(
                f"loader {self.loader!r} embeds {_SIDES[self.loader][0]}s only, got modality {self.modality!r}"
            )
        _check_loader_keys(self)
        _check_values(self)

    def local_checkpoint(self) -> Path | None:
        """Path of the local weights, resolved against the folder of the zoo file."""
        return None if self.checkpoint is None else self.folder / self.checkpoint


class Facts(NamedTuple):
    """What a limit may ask of an encoder; `gflops` of one picture or one caption of 16 tokens."""

    embed_dim: int
    n_params: int
    gflops: float | None


class Pair(NamedTuple):
    """One image encoder and one text encoder."""

    image: EncoderSpec
    text: EncoderSpec

    @property
    def name(self) -> str:
        """Both names, joined by a plus sign that no encoder's name may hold."""
        return f"{self.image.name}+{self.text.name}"


@dataclass(frozen=True, slots=True)
class Range:
    """Inclusive bounds; None is unbounded."""

    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        """Refuse a range that nothing can meet."""
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"a range must rise, got {_number(self.low)}:{_number(self.high)}")

    def contains(self, value: float) -> bool:
        """Whether `value` lies between the bounds or on one."""
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)

    def __str__(self) -> str:
        """In words, as in `at most 30,000,000`."""
        if self.low is None:
            return "any number of" if self.high is None else f"at most {_number(self.high)}"
        if self.high is None:
            return f"at least {_number(self.low)}"
        if self.low == self.high:
            return f"exactly {_number(self.low)}"
        return f"{_number(self.low)} to {_number(self.high)}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What a search may use; None lets everything through.

    Attributes:
        image_params: Parameters of the image encoder.
        text_params: Parameters of the text encoder.
        pair_params: Parameters of both.
        gflops: GFLOP of one picture, a multiply-add being two FLOPs.
        latency_ms: Measured milliseconds of one picture.
        dim: Width of the image embedding.
        licenses: Permitted licences, compared without case; an undeclared licence is not among them.
    """

    image_params: Range | None = None
    text_params: Range | None = None
    pair_params: Range | None = None
    gflops: Range | None = None
    latency_ms: Range | None = None
    dim: Range | None = None
    licenses: tuple[str, ...] = ()


def parse_count(text: str) -> int:
    """Read `30M`, `1.5G` or `250000` as a count."""
    count = _parse_number(text, "a count such as 30M")
    if round(count) < 1:
        raise ValueError(f"{text!r} must be at least 1")
    return round(count)


def parse_range(text: str) -> Range:
    """Read `30M` and `:30M` as at most, `120M:` as at least, `30M:120M` as both, all inclusive."""
    if ":" not in text:
        return Range(high=_parse_number(text, "a limit such as 30M or 30M:120M"))
    low, _, high = text.partition(":")
    if not (low.strip() or high.strip()):
        raise ValueError(f"{text!r} is not a range such as 30M:120M: both ends are missing")
    what = "an end of a range such as 30M:120M"
    return Range(
        low=_parse_number(low, what) if low.strip() else None,
        high=_parse_number(high, what) if high.strip() else None,
    )


def parse_dim(text: str) -> Range:
    """Read a width: `384` is exactly 384; with a colon it is a range."""
    if ":" in text:
        return parse_range(text)
    width = parse_count(text)
    return Range(width, width)


def zoo_folder() -> Path:
    """Folder of the shipped zoos: inside an installed package, else at the top of the repository."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "_zoo"
    return installed if installed.is_dir() else package.parent / "zoo"


def load_zoo(name_or_path: str | Path) -> tuple[EncoderSpec, ...]:
    """Read a shipped zoo by name (`embedded`, `hub`, `hyperclip`) or any zoo by the path of its TOML file.

    Where the user has written the name himself, the zoo's factories are his words too, and may run (`embed.consent`).
    """
    path = _zoo_path(name_or_path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(f"{path}: not a TOML file: it is nested too deep") from None
    except ValueError as error:  # of TOML, of UTF-8, or of a number beyond any machine
        raise ValueError(f"{path}: not a TOML file: {error}") from None
    for key in content:
        if key != "encoder":
            raise ValueError(f"{path}: a zoo holds only [[encoder]] tables, got {key!r}")
    tables = content.get("encoder", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ValueError(f"{path}: encoders are declared as [[encoder]] tables, with two brackets")
    if not tables:
        raise ValueError(f"{path}: declares no encoder; add an [[encoder]] table")
    zoo: dict[str, EncoderSpec] = {}
    for number, table in enumerate(tables, start=1):
        label = repr(table["name"]) if "name" in table else f"number {number}"
        try:
            spec = _read_encoder(table, path.parent)
        except ValueError as error:
            raise ValueError(f"{path}: encoder {label}: {error}") from None
        if spec.name in zoo:
            raise ValueError(f"{path}: encoder {spec.name!r} is already declared; names are unique")
        zoo[spec.name] = trusted(spec) if isinstance(name_or_path, Written) else spec
    return tuple(zoo.values())


def read_spec(record: Mapping[str, Any], folder: Path) -> EncoderSpec:
    """An encoder as a run or an exported pair has recorded it; what else the record says is passed over.

    Args:
        record: Plain data.
        folder: Where its files lie.

    Raises:
        ValueError: If it declares no encoder.
    """
    known = {entry.name for entry in fields(EncoderSpec)} - {"folder"}
    values = {key: value for key, value in record.items() if key in known and value is not None}
    return _read_encoder(values, folder)


def load_zoos(names: Sequence[str | Path]) -> tuple[EncoderSpec, ...]:
    """Read several zoos as one; a name that two of them declare is an error."""
    home: dict[str, str | Path] = {}
    merged: list[EncoderSpec] = []
    for zoo in names:
        for spec in load_zoo(zoo):
            if spec.name in home:
                raise ValueError(
                    f"encoder {spec.name!r} is declared in {home[spec.name]} and again in {zoo}; rename one"
                )
            home[spec.name] = zoo
            merged.append(spec)
    return tuple(merged)


def trusted(spec: EncoderSpec) -> EncoderSpec:
    """`spec` with its factory as the user's own words, so that it may be run."""
    return spec if spec.factory is None else replace(spec, factory=Written(spec.factory))


def find_encoder(zoo: Iterable[EncoderSpec], name: str) -> EncoderSpec:
    """The encoder called `name`; a KeyError offers near matches."""
    by_name = {spec.name: spec for spec in zoo}
    if name not in by_name:
        raise KeyError(f"no encoder {name!r} in the zoo{_near(name, by_name)}")
    return by_name[name]


def complete(spec: EncoderSpec, facts: Facts) -> EncoderSpec:
    """`spec` with its undeclared facts filled in; what is declared stands."""
    return replace(
        spec,
        embed_dim=facts.embed_dim if spec.embed_dim is None else spec.embed_dim,
        n_params=facts.n_params if spec.n_params is None else spec.n_params,
        gflops=facts.gflops if spec.gflops is None else spec.gflops,
    )


def within(
    specs: Sequence[EncoderSpec], limits: Limits, *, latencies: Mapping[str, float] | None = None
) -> tuple[EncoderSpec, ...]:
    """The encoders that every limit on one encoder lets through, in their order.

    Args:
        specs: Encoders of either side.
        limits: `pair_params` is not looked at; see `pairs_within`.
        latencies: Measured milliseconds by encoder name, needed where `limits.latency_ms` is set.

    Raises:
        ValueError: A limit leaves nothing on a side (the nearest encoder is named), or asks a fact that is unknown.
    """
    measured = {} if latencies is None else latencies
    bounds: tuple[tuple[Modality, Range | None, _Measure], ...] = (
        ("image", limits.dim, _Measure("dimensions", "widest", "narrowest", lambda spec: spec.embed_dim)),
        (
            "image",
            limits.latency_ms,
            _Measure("ms per picture", "slowest", "fastest", lambda spec: measured.get(spec.name)),
        ),
        ("image", limits.gflops, _Measure("GFLOP per picture", "largest", "smallest", lambda spec: spec.gflops)),
        ("image", limits.image_params, _PARAMETERS),
        ("text", limits.text_params, _PARAMETERS),
    )
    kept = _licensed(specs, limits.licenses)
    for side, bound, measure in bounds:
        if bound is not None:
            passing = _passing([spec for spec in kept if spec.modality == side], bound, measure, f"{side} encoder")
            kept = [spec for spec in kept if spec.modality != side or spec in passing]
    return tuple(kept)


def pairs_within(images: Sequence[EncoderSpec], texts: Sequence[EncoderSpec], limits: Limits) -> list[Pair]:
    """Every pair that the limit on both encoders together lets through, image encoders outermost."""
    for side, specs in (("image", images), ("text", texts)):
        if not specs:
            raise ValueError(f"the zoo has no {side} encoder, and a pair needs one")
    pairs = [Pair(image, text) for image in images for text in texts]
    if limits.pair_params is None:
        return pairs
    return _passing(pairs, limits.pair_params, _PAIR_PARAMETERS, "pair")


class _Measure(NamedTuple):
    """A quantity that a limit bounds, with the words for it."""

    unit: str
    most: str
    least: str
    of: Callable[[Any], float | None]


def _pair_params(pair: Pair) -> float | None:
    """Parameters of both encoders; None while one is unknown."""
    if pair.image.n_params is None or pair.text.n_params is None:
        return None
    return pair.image.n_params + pair.text.n_params


_PARAMETERS = _Measure("parameters", "largest", "smallest", lambda spec: spec.n_params)
_PAIR_PARAMETERS = _Measure("parameters", "largest", "smallest", _pair_params)


_T = TypeVar("_T", EncoderSpec, Pair)


def _passing(candidates: list[_T], bound: Range, measure: _Measure, what: str) -> list[_T]:
    """The candidates that `bound` lets through; none of some is an error that names the nearest."""
    sized: list[tuple[float, _T]] = []
    for candidate in candidates:
        size = measure.of(candidate)
        if size is None:
            raise ValueError(
                f"a limit of {bound} {measure.unit} cannot be held against {what} {candidate.name!r}, "
                "whose value is unknown; declare it in the zoo or leave the encoder out"
            )
        sized.append((size, candidate))
    passing = [candidate for size, candidate in sized if bound.contains(size)]
    if sized and not passing:
        least, most = min(sized, key=lambda pair: pair[0]), max(sized, key=lambda pair: pair[0])
        below = bound.high is not None and least[0] > bound.high
        above = bound.low is not None and most[0] < bound.low
        ends = (
            [(measure.least, least)]
            if below
            else [(measure.most, most)]
            if above
            else [(measure.least, least), (measure.most, most)]
        )
        named = ", ".join(f"the {word} is {one.name} with {_number(size)}" for word, (size, one) in ends)
        raise ValueError(f"no {what} has {bound} {measure.unit}; {named}")
    return passing


def _licensed(specs: Sequence[EncoderSpec], licenses: Sequence[str]) -> list[EncoderSpec]:
    """The encoders whose declared licence is permitted; no permission asked lets all through."""
    if not licenses:
        return list(specs)
    permitted = {license.casefold() for license in licenses}
    kept = [spec for spec in specs if spec.license is not None and spec.license.casefold() in permitted]
    for side in get_args(Modality):
        declared = sorted({spec.license or "undeclared" for spec in specs if spec.modality == side})
        if declared and not any(spec.modality == side for spec in kept):
            raise ValueError(
                f"no {side} encoder has the licence {' or '.join(licenses)}; theirs are {', '.join(declared)}"
            )
    return kept


def _zoo_path(name_or_path: str | Path) -> Path:
    """File of a shipped zoo, or the path as given."""
    path = Path(name_or_path)
    if path.suffix == ".toml":
        if not path.is_file():
            raise FileNotFoundError(f"no zoo file {path}")
        return path
    shipped = {file.stem: file for file in sorted(zoo_folder().glob("*.toml"))}
    if str(name_or_path) in shipped:
        return shipped[str(name_or_path)]
    raise FileNotFoundError(
        f"no zoo {str(name_or_path)!r}{_near(str(name_or_path), shipped)} "
        f"(shipped are {', '.join(shipped)}; any other is given as the path of its .toml file)"
    )


def _read_encoder(table: Mapping[str, Any], folder: Path) -> EncoderSpec:
    """One table of a zoo file as a spec."""
    known = [entry.name for entry in fields(EncoderSpec) if entry.name != "folder"]
    for key in table:
        if key not in known:
            raise ValueError(f"unknown key {key!r}{_near(key, known)}")
    for key in ("name", "modality", "loader"):
        if key not in table:
            raise ValueError(f"{key!r} is missing")
    values = dict(table)
    for key in ("mean", "std"):
        if isinstance(values.get(key), list):
            values[key] = tuple(values[key])
    return EncoderSpec(**values, folder=folder)


def _check_name(name: object) -> None:
    """A name becomes part of file names and of table rows."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or ".." in name or "--" in name:
        raise ValueError(
            "name must be 1 to 100 letters, digits, dots, dashes or underscores, start with a letter or digit "
            f"and hold no double dot or dash, since it names files; got {name!r}"
        )


def _check_choice(key: str, value: object, choices: Sequence[str]) -> None:
    """`value` must be one of `choices`."""
    if value not in choices:
        raise ValueError(f"{key} must be one of {', '.join(choices)}; got {value!r}{_near(str(value), choices)}")


def _check_loader_keys(spec: EncoderSpec) -> None:
    """What the loader needs is there, and nothing that it would ignore."""
    for entry in fields(spec):
        given = getattr(spec, entry.name) not in (None, {})
        if given and entry.name not in _KEYS[spec.loader] and entry.name != "folder":
            raise ValueError(f"{entry.name!r} means nothing to loader {spec.loader!r}; leave it out")
    for key in _NEEDS[spec.loader]:
        if getattr(spec, key) is None:
            raise ValueError(f"loader {spec.loader!r} needs {key!r}")
    if spec.loader == "sentence-transformers" and (spec.architecture is None) == (spec.checkpoint is None):
        raise ValueError(
            "loader 'sentence-transformers' needs either 'checkpoint', a local folder, or 'architecture', a hub name"
        )


def _check_values(spec: EncoderSpec) -> None:
    """Types and ranges of the optional values."""
    for key in ("architecture", "checkpoint", "revision", "factory", "pooling", "prompt", "license"):
        _check_text(key, getattr(spec, key))
    for key in ("input_size", "truncate_dim", "embed_dim", "n_params"):
        _check_count(key, getattr(spec, key), least=0 if key == "n_params" else 1)
    for key in ("crop_pct", "gflops"):
        _check_type(key, getattr(spec, key), (int, float), "a number")
    _check_kwargs(spec)
    if spec.crop_pct is not None and not 0 < spec.crop_pct <= 1:
        raise ValueError(f"crop_pct must be in (0, 1], got {spec.crop_pct}")
    if spec.gflops is not None and not spec.gflops >= 0:
        raise ValueError(f"gflops must not be negative, got {spec.gflops}")
    if spec.gflops is not None and spec.gflops >= _LARGEST:
        raise ValueError(f"gflops must be below {_LARGEST:,}, got more")
    if spec.interpolation is not None:
        _check_choice("interpolation", spec.interpolation, _INTERPOLATIONS)
    _check_channels("mean", spec.mean, positive=False)
    _check_channels("std", spec.std, positive=True)
    if spec.factory is not None and not re.fullmatch(r"[^:]+\.py:[A-Za-z_]\w*", spec.factory):
        raise ValueError(f"factory must read 'file.py:function', got {spec.factory!r}")


def _check_text(key: str, value: object) -> None:
    """None, or text that a path and a call of the system can hold."""
    _check_type(key, value, str, "text")
    if isinstance(value, str) and "\0" in value:
        raise ValueError(f"{key} must be text without zero bytes, got {value!r}")


def _check_count(key: str, value: Any, *, least: int) -> None:
    """None, or a whole number that an array can hold."""
    _check_type(key, value, int, "a whole number")
    if value is not None and not value >= least:
        raise ValueError(f"{key} must be positive, got {value}")
    if value is not None and value >= _LARGEST:
        raise ValueError(f"{key} must be below {_LARGEST:,}, got more")


def _check_kwargs(spec: EncoderSpec) -> None:
    """What a constructor is given shapes a network; it says neither where weights come from nor what code is run."""
    if not isinstance(spec.kwargs, dict):
        raise ValueError(f"kwargs must be a table such as {{ depth = 2 }}, got {spec.kwargs!r}")
    if spec.loader == "python":
        return  # its own function's business
    for key in _keys_in(spec.kwargs):
        if key in _REFUSED_KWARGS:
            raise ValueError(
                f"kwargs may not hold {key!r}: weights come from 'checkpoint' or a hub's 'revision' alone, and no code "
                "that comes with them is ever run; leave it out"
            )


def _keys_in(value: object) -> Iterator[str]:
    """Every key of tables in tables."""
    if isinstance(value, Mapping):
        yield from map(str, value)
    for item in value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ():
        yield from _keys_in(item)


def _check_type(key: str, value: object, kind: type | tuple[type, ...], word: str) -> None:
    """`value` is None or of `kind`; True and False are no numbers."""
    if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
        raise ValueError(f"{key} must be {word}, got {value!r}")


def _check_channels(key: str, value: object, *, positive: bool) -> None:
    """Three numbers, one per colour channel."""
    if value is None:
        return
    numbers = cast("tuple[object, ...]", value if isinstance(value, tuple) else ())
    if len(numbers) != 3 or not all(isinstance(x, int | float) and not isinstance(x, bool) for x in numbers):
        raise ValueError(f"{key} must be three numbers, one per colour, got {value!r}")
    if not all(-_LARGEST < cast("float", x) < _LARGEST for x in numbers):
        raise ValueError(f"{key} must be numbers of sane size, got {list(numbers)}")
    if positive and not all(cast("float", x) > 0 for x in numbers):
        raise ValueError(f"{key} must be positive, got {list(numbers)}")


def _near(name: str, known: Iterable[str]) -> str:
    """`; did you mean a, b?`, or nothing where nothing is near."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f"; did you mean {', '.join(near)}?" if near else ""


def _parse_number(text: str, what: str) -> float:
    """Read a positive number with an optional suffix K, M, G (or B) or T."""
    word = text.strip()
    number, scale = word, 1
    if word[-1:].upper() in _SUFFIX:
        number, scale = word[:-1], _SUFFIX[word[-1:].upper()]
    try:
        value = float(number) * scale
    except ValueError:
        raise ValueError(f"{text!r} is not {what}") from None
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{text!r} must be positive and finite")
    return value


def _number(value: float) -> str:
    """With thousands separated, without needless decimals."""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.4g}" if value < 1000 else f"{value:,.1f}"
