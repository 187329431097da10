"""Numbers and names as people read them. Names are untrusted: nothing that steers a terminal gets through."""

import math

__all__ = ["NONE", "clean", "count", "duration", "flops", "points", "size", "times"]

NONE = "–"
_STEPS = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def clean(text: object) -> str:
    """`text` on one line, with control and direction characters written out as their codes."""
    return "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in str(text))


def count(number: float | None) -> str:
    """Parameters: 21.7M; 950; – where unknown."""
    if number is None or math.isnan(number):
        return NONE
    for step, sign in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= step:
            return f"{_short(number / step)}{sign}"
    return f"{number:.0f}"


def flops(number: float | None) -> str:
    """Operations: 1.54 TFLOP; 0 FLOP; – where unknown."""
    if number is None or math.isnan(number):
        return NONE
    for step, sign in _STEPS:
        if number >= step:
            return f"{_short(number / step)} {sign}FLOP"
    return f"{number:.0f} FLOP"


def size(n_bytes: float | None) -> str:
    """Memory: 1.5 GB, in powers of ten; – where unknown or not measured."""
    if not n_bytes or math.isnan(n_bytes):
        return NONE
    for step, sign in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if n_bytes >= step:
            return f"{_short(n_bytes / step)} {sign}"
    return f"{n_bytes:.0f} B"


def duration(seconds: float | None) -> str:
    """Time: 9 ms; 0.35 s; 12.5 s; 2 min 05 s; 3 h 20 min; – where unknown."""
    if seconds is None or math.isnan(seconds):
        return NONE
    if seconds < 0.0995:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.2f} s" if seconds < 0.995 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


def points(score: float | None) -> str:
    """A score in per cent with two decimals; – where there is none."""
    return NONE if score is None or math.isnan(score) else f"{score:.2f}"


def times(ratio: float | None) -> str:
    """A ratio: 31×, 3.1×, 0.42×; – where there is none."""
    if ratio is None or not math.isfinite(ratio):
        return NONE
    return f"{ratio:.0f}×" if ratio >= 99.5 else f"{_short(ratio)}×"


def _short(number: float) -> str:
    """Three figures: 1.54, 15.4, 154."""
    decimals = 2 if number < 9.995 else 1 if number < 99.95 else 0
    return f"{number:.{decimals}f}"
