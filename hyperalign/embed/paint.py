"""A scene becomes pixels: 64 × 64 RGB, about half a millisecond each.

Each thing is a signed distance (negative inside) evaluated in the box around it, so its edge is smooth.
Where the words leave room (exact place, hue, angle, light, grain) chance decides, from the picture's own dice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hyperalign.embed.world import BACKGROUNDS, CLUTTER, SHAPES, SPLITS, TEXTURES, VERSION, Scene, Thing

SIDE: Final = 64  # pixels
Plane = NDArray[np.float32]

_RGB: Final = np.array(
    [  # in the order of COLOURS
        (215, 40, 40), (240, 135, 25), (240, 220, 50), (40, 150, 60), (45, 80, 215),
        (130, 50, 170), (245, 130, 185), (120, 75, 40), (25, 25, 28), (245, 245, 242),
    ],
    np.float32,
)  # fmt: skip
_TINT_RGB: Final = np.array(  # in the order of TINTS
    [(140, 140, 140), (192, 170, 125), (120, 152, 184), (128, 160, 118), (168, 134, 168)], np.float32
)
_RADII: Final = ((4.8, 5.8), (7.2, 8.4), (10.0, 11.6))  # pixels, in the order of SIZES
_LIGHT: Final = np.array([0.299, 0.587, 0.114], np.float32)  # luma weights of ITU-R BT.601


def paint(scene: Scene, *, seed: int, split: str, index: int) -> NDArray[np.uint8]:
    """Render one scene.

    Args:
        scene: What is shown.
        seed: With `split` and `index`, decides what the scene leaves open.
        split: One of `SPLITS`.
        index: Position in the split.

    Returns:
        (64, 64, 3); the same bytes in any process.
    """
    key = (VERSION, 1, seed, SPLITS.index(split), index)
    chance = np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))
    canvas = _background(scene, chance)
    for thing in scene.things:
        _draw_thing(canvas, thing, chance)
    _scribble(canvas, CLUTTER[scene.clutter], chance)
    canvas *= np.float32(chance.uniform(0.88, 1.1))
    canvas += chance.standard_normal(canvas.shape, np.float32) * np.float32(chance.uniform(3, 10))
    return np.clip(canvas, 0, 255, out=canvas).astype(np.uint8)


_ROWS: Final = np.arange(SIDE, dtype=np.float32)[:, None]
_COLUMNS: Final = np.arange(SIDE, dtype=np.float32)[None, :]


def _plane(values: Any) -> Plane:
    """Name the type that ufuncs do not."""
    return np.asarray(values, np.float32)


def _background(scene: Scene, chance: np.random.Generator) -> Plane:
    """(64, 64, 3) in the scene's tint, shaded by its kind."""
    tint = _TINT_RGB[scene.tint] + chance.uniform(-8, 8, 3).astype(np.float32)
    shade = np.broadcast_to(_shade(BACKGROUNDS[scene.background], chance), (SIDE, SIDE))
    canvas: Plane = shade[:, :, None] * tint
    return canvas


def _shade(kind: str, chance: np.random.Generator) -> Plane:
    """Brightness of the background around 1, of a shape that broadcasts to (64, 64)."""
    phase, strength = chance.integers(0, 16), np.float32(chance.uniform(0.12, 0.2))
    if kind == "fading":
        return _plane(1 + 2 * strength * (_ROWS / (SIDE - 1) - np.float32(0.5)) * np.float32(chance.choice((-1, 1))))
    if kind == "tiled":
        return 1 + strength * np.sign(((_ROWS + phase) // 8 + (_COLUMNS + phase) // 8) % 2 - np.float32(0.5))
    if kind == "lined":
        return _plane(1 + strength * np.sign((_ROWS + phase) // 4 % 2 - np.float32(0.5)))
    if kind == "speckled":
        return 1 - 2 * strength * (chance.random((SIDE, SIDE), np.float32) < 0.15)
    if kind == "cloudy":
        knots = chance.random((6, 6), np.float32)
        return _plane(1 + 2 * strength * (_SPREAD @ knots @ _SPREAD.T - np.float32(0.5)))
    return np.ones((1, 1), np.float32)


_KNOTS: Final = np.linspace(0, 5, SIDE, dtype=np.float32)[:, None] - np.arange(6, dtype=np.float32)
_SPREAD: Final = np.maximum(0, 1 - np.abs(_KNOTS))  # (64, 6): linear interpolation between six knots


def _draw_thing(canvas: Plane, thing: Thing, chance: np.random.Generator) -> None:
    """Blend one thing into the canvas."""
    low, high = _RADII[thing.size]
    x_jitter, y_jitter, grown, angle, *hue = chance.uniform(-1, 1, 7).tolist()
    radius = (low + high) / 2 + grown * (high - low) / 2
    x = 11 + 21 * thing.column + 2 * x_jitter
    y = 11 + 21 * thing.row + 2 * y_jitter
    left, right = max(0, int(x - radius - 2)), min(SIDE, int(x + radius + 3))
    top, bottom = max(0, int(y - radius - 2)), min(SIDE, int(y + radius + 3))
    across, down = _COLUMNS[:, left:right] - np.float32(x), _ROWS[top:bottom] - np.float32(y)
    cos, sin = np.float32(np.cos(0.2 * angle) / radius), np.float32(np.sin(0.2 * angle) / radius)
    distance = _DISTANCE[SHAPES[thing.shape]](across * cos + down * sin, down * cos - across * sin)
    mask = np.clip(0.5 - distance * np.float32(radius), 0, 1)[:, :, None]
    ink = _RGB[thing.colour] + np.float32(12) * np.array(hue, np.float32)
    second = ink * np.float32(0.45) if ink @ _LIGHT > 105 else ink + np.float32(0.6) * (255 - ink)
    share = _pattern(TEXTURES[thing.texture], across, down, radius)[:, :, None]
    box = canvas[top:bottom, left:right]
    box += mask * (ink + share * (second - ink) - box)


def _pattern(texture: str, across: Plane, down: Plane, radius: float) -> Plane:
    """Share of the second ink in each pixel: period of five pixels, four on the small things."""
    step = np.float32(2 * np.pi / (5 if radius > 6 else 4))
    if texture == "striped":
        return _plane(np.clip(0.5 + 1.5 * np.sin(step * np.float32(0.75) * (across + down)), 0, 1))
    if texture == "dotted":
        return _plane(np.clip(1.5 * (np.cos(step * across) + np.cos(step * down)) - 0.9, 0, 1))
    if texture == "checked":
        return _plane(
            np.clip(0.5 + 2 * np.sin(step * np.float32(0.7) * across) * np.sin(step * np.float32(0.7) * down), 0, 1)
        )
    return np.zeros((1, 1), np.float32)


def _scribble(canvas: Plane, clutter: str, chance: np.random.Generator) -> None:
    """Thin strokes and specks over everything, of any colour."""
    n_strokes = {"none": 0, "some": 3, "much": 8}[clutter]
    for _ in range(n_strokes):
        x, y, run, rise = (chance.random(4) * (60, 60, 24, 24) + (2, 2, -12, -12)).tolist()
        steps = np.linspace(0, 1, 16)
        rows = np.clip(y + rise * steps, 0, SIDE - 1).astype(np.intp)
        columns = np.clip(x + run * steps, 0, SIDE - 1).astype(np.intp)
        canvas[rows, columns] = chance.uniform(30, 225, 3)
    specks = chance.integers(0, SIDE, (2, 6 * n_strokes))
    canvas[specks[0], specks[1]] = chance.uniform(30, 225, (6 * n_strokes, 3))


def _circle(u: Plane, v: Plane) -> Plane:
    return np.hypot(u, v) - np.float32(0.92)


def _square(u: Plane, v: Plane) -> Plane:
    return np.maximum(np.abs(u), np.abs(v)) - np.float32(0.82)


def _triangle(u: Plane, v: Plane) -> Plane:
    v = v - np.float32(0.22)
    return _plane(np.maximum(v - 0.55, np.float32(0.866) * np.abs(u) - np.float32(0.5) * v - 0.55))


def _diamond(u: Plane, v: Plane) -> Plane:
    return _plane((np.abs(u) / np.float32(0.68) + np.abs(v) - 1) * np.float32(0.56))


_FIFTH: Final = np.float32(2 * np.pi / 5)
_NOTCH: Final = 0.42 * np.exp(0.2j * np.pi)  # inner corner of the star beside the tip at 1 + 0j
_FACE: Final = (1 - _NOTCH) / abs(1 - _NOTCH) * 1j  # outward normal of the edge between them


def _star(u: Plane, v: Plane) -> Plane:
    turn = np.abs((np.arctan2(u, -v) + _FIFTH / 2) % _FIFTH - _FIFTH / 2)
    out = np.hypot(u, v)
    return _plane((out * np.cos(turn) - 1) * np.float32(_FACE.real) + out * np.sin(turn) * np.float32(_FACE.imag))


def _cross(u: Plane, v: Plane) -> Plane:
    u, v = np.abs(u), np.abs(v)
    return _plane(np.minimum(np.maximum(u - 0.92, v - 0.3), np.maximum(u - 0.3, v - 0.92)))


def _ring(u: Plane, v: Plane) -> Plane:
    return np.abs(np.hypot(u, v) - np.float32(0.7)) - np.float32(0.24)


def _heart(u: Plane, v: Plane) -> Plane:
    u = np.abs(u)
    lobe = np.hypot(u - np.float32(0.43), v + np.float32(0.3)) - np.float32(0.5)
    point = np.maximum((u + np.abs(v + np.float32(0.08)) - 1) * np.float32(0.7), -v - np.float32(0.2))
    return _plane(np.minimum(lobe, point))


def _hexagon(u: Plane, v: Plane) -> Plane:
    u, v = np.abs(u), np.abs(v)
    return np.maximum(np.float32(0.866) * u + np.float32(0.5) * v, v) - np.float32(0.84)


def _crescent(u: Plane, v: Plane) -> Plane:
    return _plane(np.maximum(np.hypot(u, v) - np.float32(0.95), np.float32(0.78) - np.hypot(u - np.float32(0.5), v)))


# Signed distance in units of the radius, from coordinates in the same units (u to the right, v down).
_DISTANCE: Final[dict[str, Callable[[Plane, Plane], Plane]]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "diamond": _diamond,
    "star": _star,
    "cross": _cross,
    "ring": _ring,
    "heart": _heart,
    "hexagon": _hexagon,
    "crescent": _crescent,
}
