"""Valid input made hostile, by a seeded generator: bytes, plain JSON, TOML, and the words in which mischief comes."""

import json
import random
from collections.abc import Sequence
from typing import Any

__all__ = ["WORDS", "broken", "hostile", "mutated", "rewritten", "to_toml"]

WORDS = (
    *(
        "",
        " ",
        "a",
        "../outside",
        "../../etc/passwd",
        "/etc/passwd",
        "/dev/zero",
        "~/x",
        "~nobody/x",
        "C:\\x",
        "a/b/../../../c",
    ),
    *("\x00", "a\x00b", "\n", "a\nb", "\r\n", "\t", "\x1b[31mred\x1b[0m", "\x07", "\u202eabc", "\ufeff", "\ud800"),
    *("<script>alert(1)</script>", "</script>", "[bold]x[/bold]", "[/]", "| a | b |", "`x`", "**x**", "{{ 7*7 }}"),
    *("{}", "{split}", "{0.__class__}", "%s%n", "${HOME}", "$(id)", "; rm -rf x", "__import__('os').system('id')"),
    *("NaN", "nan", "inf", "-inf", "1e999", "-1", "0", "00", "1_000", "٣", "²", "½", "𝟙", "0x10", "1e-400", "+5", "5e"),
    *("9" * 30, "9" * 400, "9" * 5000, "30M", "1.5G", ":30M", "120M:", "30M:120M", "K", "kM", "M", ":", "::", "1:2:3"),
    *(
        "a" * 300,
        "a" * 5000,
        "é" * 200,
        "😀",
        "true",
        "null",
        "None",
        "scenes",
        "hf:",
        "hf:x",
        "scenes:",
        "train",
        "CON",
    ),
    *(
        "file:///etc/passwd",
        "http://x/y",
        "sqlite:///x.db",
        "journal:x",
        "x.toml",
        "x.tar",
        "x.csv",
        "x.json",
        "*",
        "?",
        "[",
        "**",
    ),
    *(
        "{a,b}",
        "{0..9}",
        "{0..999999999}",
        "{" * 200,
        "os.system",
        "builtins.eval",
        "torch.load",
        "x.py:run",
        "encoder.py:make",
    ),
)
_NUMBERS = (
    *(0, 1, -1, 2, 3, 7, 255, 2**31, -(2**31), 2**32, 2**63 - 1, 2**63, -(2**63), 2**64, 10**30, 10**400),
    *(0.0, -0.0, 0.5, 1.5, 1e308, -1e308, 1e-320, float("nan"), float("inf"), float("-inf"), True, False, None),
)
_BYTES = (
    *(b"", b"\x00", b"\xff", b"\xff\xfe", b"\n", b"\r", b"\t", b'"', b"'", b",", b":", b"[", b"]", b"{", b"}", b"\\"),
    *(
        b"\x00" * 8,
        b"\xff" * 8,
        b"\x7f\xff\xff\xff",
        b"\xff\xff\xff\x7f",
        b"\x80\x00\x00\x00",
        b"[" * 2000,
        b'{"a":' * 1500,
    ),
    *(
        b"\xed\xa0\x80",
        b"\xf0\x9f\x98\x80",
        b"\xc3\x28",
        b"\xef\xbb\xbf",
        b"\x1b[31m",
        b"\\u0000",
        b"\\ud800",
        b"9" * 25,
    ),
    *(b"../", b"/etc/passwd", b"NaN", b"-Infinity", b"1e999", b"null", b"true", b"-1", b"0", b"99999999999999999999"),
)


def mutated(rng: random.Random, data: bytes, others: Sequence[bytes] = (), tokens: Sequence[bytes] = ()) -> bytes:
    """`data` with one to six changes: bytes, runs, numbers and pieces of other files."""
    out = bytearray(data)
    for _ in range(min(6, 1 + int(rng.expovariate(0.9)))):
        at, kind = rng.randrange(len(out) + 1), rng.randrange(9)
        if kind < 2 and at < len(out):
            out[at] = out[at] ^ (1 << rng.randrange(8)) if kind else rng.randrange(256)
        elif kind == 2:
            del out[at : at + rng.choice((1, 1, 2, 4, 16, 64, 512))]
        elif kind < 5:
            word = rng.choice((*_BYTES, *tokens))
            out[at : at + len(word) * (kind - 3)] = word
        elif kind == 5:
            out[at:at] = out[rng.randrange(len(out) + 1) :][: rng.choice((1, 4, 16, 64, 256))]
        elif kind == 6:
            del out[at if rng.random() < 0.5 else max(0, len(out) - rng.randrange(1, 64)) :]
        elif kind == 7:
            other = rng.choice(others) if others else b""
            out[at:] = other[rng.randrange(len(other) + 1) :]
        else:
            _renumber(rng, out, at)
    return bytes(out)


def _renumber(rng: random.Random, out: bytearray, at: int) -> None:
    """Put another number where digits stand, at `at` or behind it."""
    digits = b"0123456789"
    start = next((k for k in range(at, min(at + 400, len(out))) if out[k] in digits), None)
    if start is None:
        return
    stop = start
    while stop < len(out) and out[stop] in digits:
        stop += 1
    number = rng.choice((0, 1, -1, 255, 256, 65536, 2**31, 2**32 - 1, 2**63, 2**64, 10**25, rng.randrange(10**6)))
    out[start:stop] = str(number).encode()


def hostile(rng: random.Random, depth: int = 0) -> Any:
    """A plain value that nobody waits for."""
    kind = rng.randrange(8 if depth < 2 else 6)
    if kind < 3:
        return rng.choice(WORDS)
    if kind < 6:
        return rng.choice(_NUMBERS)
    if kind == 6:
        return [hostile(rng, depth + 1) for _ in range(rng.choice((0, 1, 2, 3)))]
    return {rng.choice(WORDS): hostile(rng, depth + 1) for _ in range(rng.choice((0, 1, 2)))}


def rewritten(rng: random.Random, value: Any) -> Any:
    """A copy of plain data with one to four places changed: other values, keys gone, new, or under another name."""
    value = json.loads(json.dumps(value))
    for _ in range(min(4, 1 + int(rng.expovariate(1.2)))):
        holder = {"root": value}
        inside, key = _somewhere(rng, holder)
        kind = rng.randrange(10)
        if kind < 5:
            inside[key] = hostile(rng)
        elif kind == 5:
            inside[key] = _near(rng, inside[key])
        elif kind == 6 and inside is not holder:
            del inside[key]
        elif kind == 7 and isinstance(inside, dict) and inside is not holder:
            inside[rng.choice(WORDS)] = inside.pop(key)
        elif kind == 8 and isinstance(inside, list):
            inside += [inside[key]] * rng.choice((1, 2, 50))
        elif isinstance(inside, dict):
            inside[key] = [inside[key]] if rng.random() < 0.5 else {"a": inside[key]}
        value = holder["root"]
    return value


def _somewhere(rng: random.Random, holder: Any) -> tuple[Any, Any]:
    """A place in plain data: what holds it, and its key or index."""
    inside: Any = holder
    key: Any = "root"
    while isinstance(inside[key], dict | list) and inside[key] and rng.random() < 0.85:
        inside = inside[key]
        key = rng.choice(list(inside)) if isinstance(inside, dict) else rng.randrange(len(inside))
    return inside, key


def _near(rng: random.Random, value: Any) -> Any:
    """A value of the same kind beside the old one."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int | float):
        return rng.choice((value + 1, value - 1, -value, value * 1000, str(value), 0.5))
    if isinstance(value, str):
        return rng.choice((value + " ", value[:-1], value.upper(), "../" + value, value + "\x00", value * 50, [value]))
    return {} if isinstance(value, list) else []


def broken(rng: random.Random, value: Any, *, others: Sequence[bytes] = ()) -> bytes:
    """Plain data as JSON, made hostile in what it says, now and then in its bytes."""
    text = json.dumps(rewritten(rng, value), ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    return mutated(rng, text, others) if rng.random() < 0.15 else text


def to_toml(value: Any) -> str:
    """A plain value as TOML writes it inline; what TOML has no word for becomes some text."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return {"inf": "inf", "-inf": "-inf", "nan": "nan"}.get(str(value), str(value)[:40])
    if isinstance(value, list):
        return f"[{', '.join(map(to_toml, value))}]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{to_toml(str(key))} = {to_toml(item)}" for key, item in value.items()) + " }"
    return json.dumps(str(value)).replace("\x7f", "\\u007f")
