"""Augments colour and blur, batched on the device, with separate draws for each image.

The definitions are Pillow's (through torchvision, which MoCo uses), without its rounding to 8 bits between the steps.
Brightness multiplies. Contrast blends with the mean of the *grey* image. Saturation blends with grey. Hue turns the HSV
circle. The four come in a random order for each image. Nothing here draws in Python: draws are a function of a seed.

There are two forms, equal to 1e-5. `apply` processes all images at once, which suits a GPU: every image goes through
every operation. `apply_each` processes one image at a time, which suits a CPU. The image stays in the cache, channel by
channel, and only the operations that were drawn for it run. This takes a ninth of the time at 224 px, measured.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
import tensorflow as tf

GREY = (0.299, 0.587, 0.114)  # ITU-R 601-2, Pillow's "L"
PURE = np.float32([0.0, 2.0, -2.0])  # red, green and blue on the circle of hues, in sixths
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
BLUR_RADIUS = 8  # taps per side: four sigma at the largest sigma of the paper, 2.0


@dataclasses.dataclass(frozen=True)
class Preset:
    """The strengths and probabilities of one augmentation recipe."""

    brightness: float
    contrast: float
    saturation: float
    hue: float
    jitter_probability: float
    grey_probability: float
    blur_probability: float
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    grey_first: bool = False  # MoCo v1 greys before it jitters


PRESETS = {
    "moco_v2": Preset(0.4, 0.4, 0.4, 0.1, 0.8, 0.2, 0.5),
    "moco_v1": Preset(0.4, 0.4, 0.4, 0.4, 1.0, 0.2, 0.0, grey_first=True),
    "none": Preset(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
}


class Draws(NamedTuple):
    """The random draws for each of N images."""

    brightness: tf.Tensor  # (N,) factor; 1 changes nothing
    contrast: tf.Tensor  # (N,) factor
    saturation: tf.Tensor  # (N,) factor
    hue: tf.Tensor  # (N,) share of the circle, in [-0.5, 0.5]
    order: tf.Tensor  # (N, 4) int32, the order of (brightness, contrast, saturation, hue)
    grey: tf.Tensor  # (N,) bool
    sigma: tf.Tensor  # (N,) px, 0 for no blur


def photometric(images, seed, preset="moco_v2"):
    """Draws and applies one recipe to a batch (docs/method.md, Views), then normalises by ImageNet mean and std.

    Under XLA the same seed gives different numbers than in graph or eager mode.

    Args:
        images: (N, H, W, 3) uint8 RGB.
        seed: (2,) integer; row n's draws depend on the seed and n alone.
        preset: a name of `PRESETS`.

    Returns:
        (N, H, W, 3) float32, normalised.
    """
    draws = draw(images.shape[0] or tf.shape(images)[0], seed, preset)
    return apply_and_normalise(images, draws, PRESETS[preset])


def draw(count, seed, preset="moco_v2") -> Draws:
    """Makes the random draws of `count` images; row n depends on `seed` and n alone. See `photometric`."""
    recipe = PRESETS[preset]
    u = tf.random.stateless_uniform([count, 12], seed=seed)  # (N, 12) in [0, 1)
    jitter = u[:, 0] < recipe.jitter_probability

    def factor(column, strength):
        return tf.where(jitter, 1.0 + strength * (2.0 * u[:, column] - 1.0), 1.0)

    low, high = recipe.blur_sigma
    return Draws(
        brightness=factor(1, recipe.brightness),
        contrast=factor(2, recipe.contrast),
        saturation=factor(3, recipe.saturation),
        hue=factor(4, recipe.hue) - 1.0,
        order=tf.argsort(u[:, 5:9], axis=-1),
        grey=u[:, 9] < recipe.grey_probability,
        sigma=tf.where(u[:, 10] < recipe.blur_probability, low + (high - low) * u[:, 11], 0.0),
    )


def apply(images, draws: Draws, recipe: Preset = PRESETS["moco_v2"]):
    """Applies given draws to all images at once. Returns (N, H, W, 3) float32 in [0, 1]."""
    images = tf.cast(images, tf.float32) / 255.0
    if recipe.grey_first:
        images = _where(draws.grey, to_grey(images), images)
    if recipe.jitter_probability:
        images = colour_jitter(images, draws)
    if not recipe.grey_first and recipe.grey_probability:
        images = _where(draws.grey, to_grey(images), images)
    if recipe.blur_probability:
        images = gaussian_blur(images, draws.sigma)
    return images


def apply_each(images, draws: Draws, recipe: Preset = PRESETS["moco_v2"], normalised=False):
    """Applies given draws as `apply` does, one image at a time. If `normalised`, `normalise` follows."""
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if normalised else ((0.0,) * 3, (1.0,) * 3)
    mean, std = (np.float32(numbers)[:, None, None] for numbers in (mean, std))  # (3, 1, 1)
    codes, count = _operations(draws, recipe)

    def augmented(one):
        image, drawn, codes, count = one
        planes = tf.cast(tf.transpose(image, [2, 0, 1]), tf.float32) / 255.0  # (3, H, W)
        planes = _augment_planes(planes, drawn, codes, count)
        return tf.transpose((planes - mean) / std, [1, 2, 0])

    return tf.map_fn(augmented, (images, draws, codes, count), fn_output_signature=tf.float32)


@tf.function(jit_compile=True, autograph=False)
def apply_and_normalise(images, draws: Draws, recipe: Preset):
    """Computes `normalise(apply(...))` or `apply_each`, whichever suits the device, as one compiled kernel."""
    if tf.config.list_logical_devices("GPU"):
        return normalise(apply(images, draws, recipe))
    return apply_each(images, draws, recipe, normalised=True)


def normalise(images):
    """Normalises RGB in [0, 1] by ImageNet's mean and standard deviation."""
    return (images - tf.constant(IMAGENET_MEAN, images.dtype)) / tf.constant(IMAGENET_STD, images.dtype)


def colour_jitter(images, draws: Draws):
    """Adjusts brightness, contrast, saturation and hue in each image's own order.

    The first three blend an image with a partner (black, its mean grey, its grey), so one blend with a per-image
    partner serves all of them. Hue is expensive and is computed once. Three blends before it apply what the image's
    order puts before hue, and three after it apply the rest. An idle blend has factor 1.
    """
    factors = tf.stack([draws.brightness, draws.contrast, draws.saturation], axis=-1)  # (N, 3)
    place = tf.argmax(tf.cast(draws.order == 3, tf.int32), axis=-1, output_type=tf.int32)  # position of hue, (N,)
    for position in range(3):
        images = _blend_step(images, draws.order[:, position], factors, active=position < place)
    images = adjust_hue(images, draws.hue)
    for position in range(1, 4):
        images = _blend_step(images, draws.order[:, position], factors, active=position > place)
    return images


def adjust_hue(images, shift):
    """Turns the hue of images `(N, H, W, 3)` in [0, 1] by `shift` of the circle, `(N,)` in [-0.5, 0.5]."""
    return _turn_hue(*(channel[..., None] for channel in tf.unstack(images, axis=-1)), shift[:, None, None, None], PURE)


def _turn_hue(red, green, blue, shift, pure):
    """Turns the hue; `pure` has the places of red, green and blue on the circle along the axis of the channels."""
    value = tf.maximum(tf.maximum(red, green), blue)
    chroma = value - tf.minimum(tf.minimum(red, green), blue)
    # Hue and everything derived from it is in sixths of the circle times chroma, which needs no division. The largest
    # channel is chosen by >=, not by equality with the maximum, because a compiler may round the two differently.
    red_largest, green_largest = (red >= green) & (red >= blue), green >= blue
    hue = tf.where(
        red_largest, green - blue, tf.where(green_largest, 2.0 * chroma + (blue - red), (red - green) - 2.0 * chroma)
    )  # in -3..3, from red
    turn = 6.0 * shift - pure
    turn -= 6.0 * tf.floor((turn + 3.0) / 6.0)  # -3..3
    distance = tf.abs(hue + turn * chroma)
    distance = tf.minimum(distance, 6.0 * chroma - distance)  # 0..3, the shorter way round
    return value - tf.clip_by_value(distance - chroma, 0.0, chroma)


def to_grey(images):
    """Returns the grey image in three equal channels."""
    return tf.repeat(_grey(images), 3, axis=-1)


def gaussian_blur(images, sigma):
    """Blurs each image with its own Gaussian sigma and REFLECT borders.

    A blur along an axis is a product with a banded matrix that includes the reflection. This takes two small matrix
    products per image for any sigma, on any device and under XLA.

    Args:
        images: (N, H, W, C) float.
        sigma: (N,) px; 0 leaves an image unchanged. The kernel ends at 8 px, which is four sigma at 2.0.
    """
    rows, columns = (_blur_matrix(sigma, images.shape[axis]) for axis in (1, 2))
    shape = tf.shape(images)
    flat = tf.reshape(images, [shape[0], shape[1], shape[2] * shape[3]])
    blurred = tf.reshape(tf.matmul(rows, flat), shape)  # along H
    return tf.einsum("nij,nhjc->nhic", columns, blurred)  # along W


def _blur_matrix(sigma, extent):
    """Returns (N, extent, extent) matrices whose product with a signal is its blur."""
    radius = min(BLUR_RADIUS, extent - 1)
    taps = np.arange(-radius, radius + 1)
    source = np.abs(np.arange(extent)[None] + taps[:, None])  # (taps, extent), reflected at 0
    source = np.where(source >= extent, 2 * (extent - 1) - source, source)  # and at the end
    scatter = (source[:, :, None] == np.arange(extent)).astype(np.float32)  # (taps, extent, extent)
    safe = tf.maximum(sigma, 1e-3)[:, None]
    kernel = tf.exp(-0.5 * tf.square(tf.constant(taps, tf.float32) / safe))  # (N, taps)
    kernel /= tf.reduce_sum(kernel, axis=-1, keepdims=True)
    matrix = tf.matmul(kernel, scatter.reshape(len(taps), extent * extent))
    return tf.reshape(matrix, [-1, extent, extent])


def _blend_step(images, which, factors, active):
    """Applies brightness (0), contrast (1) or saturation (2) to each image; idle if inactive or `which` is hue (3)."""
    which = tf.where(active, which, 3)[:, None, None, None]
    grey = _grey(images)  # (N, H, W, 1)
    mean = tf.reduce_mean(grey, axis=[1, 2], keepdims=True)
    partner = tf.where(which == 0, 0.0, tf.where(which == 1, mean, grey))
    factor = tf.gather(tf.pad(factors, [[0, 0], [0, 1]], constant_values=1.0), which[:, 0, 0, 0], batch_dims=1)
    return _blend(images, partner, factor)


def _blend(images, partner, factor):
    factor = factor[:, None, None, None]
    return tf.clip_by_value(factor * images + (1.0 - factor) * partner, 0.0, 1.0)


def _grey(images):
    red, green, blue = (images[..., i : i + 1] * GREY[i] for i in range(3))
    return red + green + blue


def _where(condition, images, otherwise):
    return tf.where(condition[:, None, None, None], images, otherwise)


def _operations(draws: Draws, recipe: Preset):
    """Lists the operations of each image: (N, 6) places in `OPERATIONS`, idle ones last, and their number (N,)."""
    idle = (draws.brightness == 1) & (draws.contrast == 1) & (draws.saturation == 1) & (draws.hue == 0)
    jitter = draws.order, tf.repeat(~idle[:, None], 4, axis=1)
    grey = tf.fill(tf.shape(idle[:, None]), 4), draws.grey[:, None]
    blur = tf.fill(tf.shape(idle[:, None]), 5), draws.sigma[:, None] > 0
    listed = (grey, jitter, blur) if recipe.grey_first else (jitter, grey, blur)
    codes, active = (tf.concat(columns, axis=1) for columns in zip(*listed, strict=True))
    drawn_first = tf.argsort(tf.cast(~active, tf.int32), axis=-1, stable=True)
    return tf.gather(codes, drawn_first, batch_dims=1), tf.reduce_sum(tf.cast(active, tf.int32), axis=-1)


def _augment_planes(planes, drawn: Draws, codes, count):
    """Applies the first `count` operations of `codes` to one image: planes (3, H, W) in [0, 1]."""

    def step(position, planes):
        return position + 1, tf.switch_case(codes[position], [lambda f=f: f(planes, drawn) for f in OPERATIONS])

    return tf.while_loop(lambda position, _: position < count, step, (0, planes))[1]


def _blend_planes(planes, partner, factor):
    return tf.clip_by_value(factor * planes + (1.0 - factor) * partner, 0.0, 1.0)


def _grey_plane(planes):
    """Returns the (H, W) grey image of (3, H, W)."""
    return GREY[0] * planes[0] + GREY[1] * planes[1] + GREY[2] * planes[2]


def _blur_planes(planes, sigma):
    """Blurs (3, H, W) by a Gaussian, tap by tap along rows and columns, with REFLECT borders."""
    for axis in (1, 2):
        extent = planes.shape[axis]
        radius = min(BLUR_RADIUS, extent - 1)
        weights = tf.exp(-0.5 * tf.square(tf.range(radius + 1, dtype=tf.float32) / tf.maximum(sigma, 1e-3)))
        weights /= 2.0 * tf.reduce_sum(weights) - weights[0]
        margins = [[0, 0], [0, 0], [0, 0]]
        margins[axis] = [radius, radius]
        padded = tf.pad(planes, margins, "REFLECT")
        taps = [_span(padded, axis, i, i + extent) for i in range(2 * radius + 1)]
        planes = weights[0] * taps[radius]
        for i in range(1, radius + 1):
            planes += weights[i] * (taps[radius - i] + taps[radius + i])
    return planes


def _span(planes, axis, first, last):
    return planes[:, first:last] if axis == 1 else planes[:, :, first:last]


OPERATIONS = (  # the four of `Draws.order`, grey, blur
    lambda planes, drawn: _blend_planes(planes, 0.0, drawn.brightness),
    lambda planes, drawn: _blend_planes(planes, tf.reduce_mean(_grey_plane(planes)), drawn.contrast),
    lambda planes, drawn: _blend_planes(planes, _grey_plane(planes), drawn.saturation),
    lambda planes, drawn: _turn_hue(*(plane[None] for plane in tf.unstack(planes)), drawn.hue, PURE[:, None, None]),
    lambda planes, drawn: tf.repeat(_grey_plane(planes)[None], 3, axis=0),
    lambda planes, drawn: _blur_planes(planes, drawn.sigma),
)
