"""Draws the textures of the embedded sample: grey fields in [0, 1] of many kinds, and palettes that colour them.

Every function draws its parameters from its argument `rng`. `height` and `width` are in pixels.
"""

import numpy as np
from PIL import Image

Rng = np.random.Generator


def palette(rng: Rng) -> np.ndarray:
    """Draws two to four related colours, (n, 3) in [0, 1]: a base tone and departures from it."""
    grey, tint = rng.uniform(0.2, 0.85), rng.normal(0, 1, 3)
    base = grey + rng.uniform(0.02, 0.18) * (tint - tint.mean())
    return (base + rng.normal(0, rng.uniform(0.06, 0.2), (rng.integers(2, 5), 3))).clip(0.02, 0.98)


def contrasting_palette(rng: Rng, behind: np.ndarray) -> np.ndarray:
    """Returns the one of three palettes with most contrast to `behind` (3,). Camouflage stays possible but rare."""
    return max((palette(rng) for _ in range(3)), key=lambda colours: np.abs(colours.mean(0) - behind).sum())


def textured(rng: Rng, height: int, width: int, colours: np.ndarray) -> np.ndarray:
    """Draws a texture of a random kind, or of two kinds with a ragged border between them; (h, w, 3) in [0, 1]."""
    kinds = rng.integers(len(_TEXTURES), size=2 if rng.random() < 0.3 else 1)
    field, *other = (_TEXTURES[kind](rng, height, width) for kind in kinds)
    if other:
        border = noise(rng, height, width, cell=max(height, width) / 2)
        field = np.where(border > 0.5, field, 1 - 0.6 * other[0])
    fine = 0.15 * (noise(rng, height, width, cell=rng.uniform(2, 6)) - 0.5)
    stops, tones = np.linspace(0, 1, len(colours)), np.linspace(0, 1, 256)
    ramp = np.stack([np.interp(tones, stops, colours[:, channel]) for channel in range(3)], -1)
    return ramp.astype(np.float32)[((field + fine).clip(0, 1) * 255).astype(np.uint8)]


def grid(height: int, width: int) -> np.ndarray:
    """Returns pixel coordinates y, x as (2, h, w) float32."""
    return np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij")).astype(np.float32)


def _turned(rng: Rng, height: int, width: int) -> np.ndarray:
    """Returns `grid` turned by a random angle."""
    y, x = grid(height, width)
    angle = rng.uniform(0, 2 * np.pi)
    cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return np.stack([x * cosine + y * sine, y * cosine - x * sine])


def _period(rng: Rng) -> float:
    return float(np.exp(rng.uniform(np.log(5), np.log(30))))  # pixels


def noise(rng: Rng, height: int, width: int, cell: float, flatten: float = 1) -> np.ndarray:
    """Draws smooth noise in [0, 1] with features of about `cell` pixels, `flatten` times longer along x."""
    rows, columns = int(np.ceil(height / cell)) + 3, int(np.ceil(width / (cell * flatten))) + 3
    coarse = Image.fromarray(rng.random((rows, columns), np.float32))
    box = (1, 1, 1 + width / (cell * flatten), 1 + height / cell)
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC, box=box)).clip(0, 1)


def _clouds(rng: Rng, height: int, width: int) -> np.ndarray:
    cell, flatten = rng.uniform(20, 60), rng.choice([1, 1, 3])
    octaves = [noise(rng, height, width, cell / 2**k, flatten) / 1.6**k for k in range(4)]
    return _spread(sum(octaves))


def _gradient(rng: Rng, height: int, width: int) -> np.ndarray:
    along, across = _turned(rng, height, width)
    if rng.random() < 0.4:
        along = np.hypot(along - rng.uniform(-1, 1) * width, across - rng.uniform(-1, 1) * height)
    return _spread(along)


def _stripes(rng: Rng, height: int, width: int) -> np.ndarray:
    along, _ = _turned(rng, height, width)
    warp = rng.uniform(0, 12) * noise(rng, height, width, cell=40)
    return 0.5 + 0.5 * np.tanh(rng.uniform(0.5, 5) * np.sin(2 * np.pi * (along + warp) / _period(rng)))


def _tiles(rng: Rng, height: int, width: int) -> np.ndarray:
    """Draws checks or bricks, each in another tone."""
    along, across = _turned(rng, height, width)
    period, aspect = _period(rng), rng.choice([1, 1, 2])
    row = np.floor(across / period).astype(int)
    shift = 0.5 * (row % 2) if aspect == 2 else 0
    column = np.floor(along / (period * aspect) + shift).astype(int)
    tones, amount = rng.random(1024, np.float32), rng.uniform(0.3, 1)
    return amount * tones[(row * 57 + column * 131) % 1024] + (1 - amount) * ((row + column) % 2)


def _cells(rng: Rng, height: int, width: int) -> np.ndarray:
    """Draws cobbles: the nearest of scattered points decides the tone, and the distance to it the seam."""
    points = rng.random((int(rng.integers(8, 20)), 2), np.float32)
    squares = (np.arange(height, dtype=np.float32) - points[:, :1] * height)[:, :, None] ** 2
    squares = squares + (np.arange(width, dtype=np.float32) - points[:, 1:] * width)[:, None, :] ** 2
    tones, seam = rng.random(len(points), np.float32), rng.uniform(0, 0.7)
    return (1 - seam) * tones[squares.argmin(0)] + seam * _spread(np.sqrt(squares.min(0)))


def _dots(rng: Rng, height: int, width: int) -> np.ndarray:
    along, across = _turned(rng, height, width)
    period = _period(rng)
    distance = np.hypot(along % period - period / 2, across % period - period / 2)
    return np.clip(0.5 + (rng.uniform(0.2, 0.4) * period - distance) / 2, 0, 1)


def _weave(rng: Rng, height: int, width: int) -> np.ndarray:
    along, across = _turned(rng, height, width)
    period, other = _period(rng), rng.uniform(0.5, 2)
    return 0.5 + 0.25 * (np.sin(2 * np.pi * along / period) + np.sin(2 * np.pi * across / (period * other)))


def _speckle(rng: Rng, height: int, width: int) -> np.ndarray:
    spots = noise(rng, height, width, cell=rng.uniform(2, 8), flatten=rng.choice([1, 6]))
    return np.clip(0.5 + rng.uniform(1, 5) * (spots - rng.uniform(0.4, 0.7)), 0, 1)


def _spread(field: np.ndarray) -> np.ndarray:
    """Stretches a field to the whole of [0, 1]."""
    return (field - field.min()) / max(float(np.ptp(field)), 1e-6)


_TEXTURES = (_clouds, _gradient, _stripes, _tiles, _cells, _dots, _weave, _speckle)
