"""The limits a page is looked at with, as part of its address; `web/state.js` reads and writes the same."""

from urllib.parse import urlencode

from hyperalign.embed.zoo import Limits, Range

__all__ = ["address_of"]

_KEYS = {
    "image_params": "budget",
    "text_params": "text-budget",
    "pair_params": "pair-budget",
    "gflops": "max-gflops",
    "latency_ms": "max-latency",
    "dim": "dim",
}


def address_of(limits: Limits) -> str:
    """`#budget=:30000000`, what the page is opened with; empty without a limit."""
    words = [(key, _words(bound)) for name, key in _KEYS.items() if (bound := getattr(limits, name)) is not None]
    words += [("license", name) for name in limits.licenses]
    return f"#{urlencode(words, safe=':')}" if words else ""


def _words(bound: Range) -> str:
    low, high = ("" if end is None else f"{end:.15g}" for end in (bound.low, bound.high))
    return f"{low}:{high}"
