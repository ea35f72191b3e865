"""Resizes an image to whole pixels, puts it into a frame and mirrors it. Its boxes follow the pixels.

Boxes are `(x1, y1, x2, y2)` in pixels. Sizes, offsets and factors are (vertical, horizontal).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from dupr_tf.data.images.resize import resize
from dupr_tf.data.reader import concatenate_rows

PAD_COLOUR = (123.675, 116.28, 103.53)  # ImageNet's mean: 0 once the backbone has normalised it
STRIDE = 32  # px: sides of a batch are multiples of it, so that each level of a backbone has exactly half the size
DRAWS = 4  # uniform numbers that `drawn_place` takes
Size = tuple[int, int]


class Place(NamedTuple):
    """Describes how an image of `source` px is resized to `size`, put at `offset` in a frame, and perhaps mirrored.

    All numbers are whole pixels, so that every pixel is resampled once and boxes follow the pixels exactly. An offset
    below 0 and a size beyond the frame crop the image.
    """

    source: Size
    size: Size
    frame: Size
    offset: Size = (0, 0)
    flip: bool = False

    @property
    def factors(self) -> np.ndarray:
        """Returns (2,) float32: resized pixels per pixel of the image, vertical and horizontal."""
        return (np.array(self.size) / self.source).astype(np.float32)

    def move(self, boxes: np.ndarray) -> np.ndarray:
        """Converts boxes (n, 4) of the image to boxes of the frame. They may reach beyond the frame."""
        result = boxes * self.factors[[1, 0, 1, 0]] + np.float32(self.offset)[[1, 0, 1, 0]]
        return self._mirror(result)

    def move_back(self, boxes: np.ndarray) -> np.ndarray:
        """Converts boxes (n, 4) of the frame to boxes of the image."""
        return (self._mirror(boxes) - np.float32(self.offset)[[1, 0, 1, 0]]) / self.factors[[1, 0, 1, 0]]

    def put(self, image: np.ndarray) -> tuple[np.ndarray, Size]:
        """Returns the part of an image in the frame, (h, w, 3) uint8, and its top left corner there."""
        shown = self._in_frame(resize(image, *self.size))
        y, x = (max(0, start) for start in self.offset)
        return shown, (y, self.frame[1] - x - shown.shape[1] if self.flip else x)

    def put_values(self, values: np.ndarray, outside: int) -> np.ndarray:
        """Returns the frame with values (H, W) that cannot be mixed, such as classes. The rest holds `outside`."""
        rows, columns = (nearest_pixels(*sides) for sides in zip(self.size, self.source, strict=True))
        shown = self._in_frame(values[rows[:, None], columns])
        frame = np.full(self.frame, outside, values.dtype)
        y, x = (max(0, start) for start in self.offset)
        x = self.frame[1] - x - shown.shape[1] if self.flip else x
        frame[y : y + shown.shape[0], x : x + shown.shape[1]] = shown
        return frame

    def _in_frame(self, resized: np.ndarray) -> np.ndarray:
        rows, columns = (
            slice(max(0, -start), max(0, side - start)) for start, side in zip(self.offset, self.frame, strict=True)
        )
        return np.ascontiguousarray(resized[rows, columns][:, :: -1 if self.flip else 1])

    def _mirror(self, boxes: np.ndarray) -> np.ndarray:
        if not self.flip:
            return boxes
        width = np.float32(self.frame[1])
        return np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)


def letterbox(source: Size, side: int) -> Place:
    """Places an image in the top left corner of a square of `side`, scaled to fit, with its aspect kept."""
    return Place(source, scaled_size(source, Fraction(side, max(source))), (side, side))


def scaled(source: Size, short_side: int | None, max_long_side: int, flip: bool = False) -> Place:
    """Scales an image to a short side, with a limit for the long side. It keeps its size if `short_side` is None."""
    size = scaled_size(source, short_side_scale(source, short_side, max_long_side))
    return Place(source, size, size, flip=flip)


def drawn_place(source: Size, draws: np.ndarray, side: int, scale_jitter: Sequence[float], base=None) -> Place:
    """Places an image in a square: scaled, cropped or padded, and mirrored in half of the cases.

    Args:
        source: height and width of the image.
        draws: (4,) uniform numbers in [0, 1) for scale, vertical offset, horizontal offset and flip.
        side: side of the square, px.
        scale_jitter: (min, max) of the factor on the scale, which is drawn log-uniformly.
        base: the scale that the factor multiplies. None takes the scale that just fits the square.
    """
    low, high = np.log(scale_jitter)
    factor = math.exp(low + draws[0] * (high - low))
    size = scaled_size(source, factor * float(Fraction(side, max(source)) if base is None else base))
    offset = tuple(_drawn_offset(side - length, draw) for length, draw in zip(size, draws[1:3], strict=True))
    return Place(source, size, (side, side), offset, bool(draws[3] < 0.5))


def _drawn_offset(room: int, draw: float) -> int:
    """Draws a whole number from 0 to `room`, all with the same probability. `room` may be negative."""
    return int(math.copysign(math.floor(draw * (abs(room) + 1)), room))


def short_side_scale(source: Size, short_side: int | None, max_long_side: int) -> Fraction:
    """Returns the factor that scales the short side, or the long side to its limit; 1 if `short_side` is None."""
    if short_side is None:
        return Fraction(1)
    return min(Fraction(short_side, min(source)), Fraction(max_long_side, max(source)))


def scaled_size(source: Size, scale) -> Size:
    """Returns the sides of a scaled image, rounded to whole pixels, halves up, and at least 1."""
    height, width = (max(1, math.floor(side * scale + Fraction(1, 2))) for side in source)
    return height, width


def nearest_pixels(length: int, source: int) -> np.ndarray:
    """Returns (length,) int64: the pixel of a row of `source` under the centre of each of `length` resized pixels."""
    return (2 * np.arange(length) + 1) * source // (2 * length)


def to_original(boxes: np.ndarray, factors: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Converts boxes of a resized image to boxes of the original, cut to the original.

    Args:
        boxes: (n, 4) px.
        factors: (2,) resized pixels per pixel of the original, vertical and horizontal.
        size: (height, width) of the original.

    Returns:
        (n, 4) float32.
    """
    height, width = size
    boxes = np.asarray(boxes, np.float32) / np.asarray(factors, np.float32)[[1, 0, 1, 0]]
    return np.clip(boxes, 0, [width, height, width, height]).astype(np.float32)


def pad_batch(parts: list[dict], side: int | None = None) -> dict:
    """Pads images of different sizes with the mean colour and joins them to one batch.

    Args:
        parts: the rows of a batch, (1, …) each, for each image. Instead of `images` they have `pixels` (1, h, w, 3)
            uint8 and `corner` (1, 2), the place of the top left pixel.
        side: side of the square images. None takes the largest height and width, in multiples of `STRIDE`.

    Returns:
        The concatenated rows, and `images` (B, H, W, 3) float32 in 0–255.
    """
    placed = [(part["pixels"][0], *part["corner"][0]) for part in parts]
    height = width = side
    if side is None:
        height, width = (-(-max(pixels.shape[axis] for pixels, *_ in placed) // STRIDE) * STRIDE for axis in (0, 1))
    images = np.empty((len(parts), height, width, 3), np.float32)
    # Fills whole rows of pixels, because a broadcast over just three channels is far slower.
    images.reshape(-1, width * 3)[:] = np.tile(np.float32(PAD_COLOUR), width)
    for image, (pixels, y, x) in zip(images, placed, strict=True):
        image[y : y + pixels.shape[0], x : x + pixels.shape[1]] = pixels
    rows = [{name: value for name, value in part.items() if name not in ("pixels", "corner")} for part in parts]
    return {"images": images, **concatenate_rows(rows)}
