"""Computes RoIAlign with half-pixel (`aligned=True`) semantics, in two forms that agree (docs/method.md, RoIAlign).

`roi_align` is the separable form. Bilinear sampling on a grid is `Wy @ F @ Wx^T`: two small matrix products whose rows
are the interpolation weights of one bin. It compiles under XLA, takes any float dtype and has a deterministic gradient
on every device. For a flipped view the grid is read right-to-left by reversing the rows of Wx.

`roi_align_reference` is the readable form on `tf.image.crop_and_resize`. That operation samples corner to corner and
gives 0 outside, so boxes are moved to the bin centres and the map is edge-padded by one pixel. The operation has
no XLA kernel and no bfloat16, so this form is the test oracle of the first.

A sample up to one pixel outside the map takes the value of the border pixel. One further outside is 0, as in detectron2
and torchvision.
"""

from __future__ import annotations

import tensorflow as tf

from dupr_tf.errors import UserError


def roi_align(features, boxes, output_size, spatial_scale=1.0, sampling_ratio=1, flipped=None):
    """Samples a fixed grid of bins from each box (Mask R-CNN, section 3, `aligned=True`; DUPR eqs. 3 and 4).

    Args:
        features: (N, H, W, C) float feature maps.
        boxes: `(N, 4)` or `(N, R, 4)` of `(y1, x1, y2, x2)` in input pixels; box n (or n, r) reads map n.
        output_size: bins per side: an int S, or (S_y, S_x).
        spatial_scale: map pixels per input pixel, e.g. 1/16 on P4.
        sampling_ratio: samples per side in each bin, averaged. At 1, the bilinear value at the bin's centre.
        flipped: optional (N,) bool. If True, the grid is read right-to-left, so that bin (i, j) of a mirrored view
            shows what bin (i, j) of the unmirrored view shows.

    Returns:
        `(N, S_y, S_x, C)`, or `(N, R, S_y, S_x, C)` for boxes of rank 3, in the dtype of `features`.

    Raises:
        UserError: a sampling_ratio below 1.
    """
    _check(sampling_ratio)
    features, boxes = tf.convert_to_tensor(features), tf.convert_to_tensor(boxes)
    rows, columns, single = _weights(features, boxes, output_size, spatial_scale, sampling_ratio, flipped)
    # Columns first: (W -> S_x) shrinks the map before the second product.
    samples = tf.einsum("nrjw,nhwc->nrhjc", columns, features)  # (N, R, H, S_x, C)
    samples = tf.einsum("nrih,nrhjc->nrijc", rows, samples)  # (N, R, S_y, S_x, C)
    return samples[:, 0] if single else samples


def roi_align_reference(features, boxes, output_size, spatial_scale=1.0, sampling_ratio=1, flipped=None):
    """Computes `roi_align` on `tf.image.crop_and_resize`, with the same arguments and result; float32 inside."""
    _check(sampling_ratio)
    features, boxes = tf.convert_to_tensor(features), tf.convert_to_tensor(boxes)
    (size_y, size_x), ratio = _pair(output_size), int(sampling_ratio)
    single = boxes.shape.rank == 2
    boxes = tf.cast(boxes[:, None] if single else boxes, tf.float32) * spatial_scale  # (N, R, 4)
    count, number = tf.shape(boxes)[0], tf.shape(boxes)[1]
    height, width = tf.shape(features)[1], tf.shape(features)[2]
    centres = [
        _centres(boxes[..., axis], boxes[..., axis + 2], size * ratio) for axis, size in ((0, size_y), (1, size_x))
    ]  # (N, R, S_y * r), (N, R, S_x * r)
    if flipped is not None:
        flipped = tf.convert_to_tensor(flipped)
        centres[1] = tf.where(flipped[:, None, None], centres[1][..., ::-1], centres[1])
    padded = tf.pad(tf.cast(features, tf.float32), [[0, 0], [1, 1], [1, 1], [0, 0]], "SYMMETRIC")
    # One crop_and_resize of a single sample per grid point is exact where a box crosses the border. The operation gives
    # 0 outside the padded map.
    y, x = tf.meshgrid(tf.range(size_y * ratio), tf.range(size_x * ratio), indexing="ij")
    points_y = tf.gather(centres[0], tf.reshape(y, [-1]), axis=-1) + 1.0
    points_x = tf.gather(centres[1], tf.reshape(x, [-1]), axis=-1) + 1.0
    point = tf.stack([points_y / tf.cast(height + 1, tf.float32), points_x / tf.cast(width + 1, tf.float32)], -1)
    corners = tf.reshape(tf.concat([point, point], -1), [-1, 4])
    samples = tf.image.crop_and_resize(
        padded, corners, tf.repeat(tf.range(count), number * size_y * size_x * ratio * ratio), (1, 1)
    )
    channels = features.shape[-1]
    samples = tf.reshape(samples, [count, number, size_y, ratio, size_x, ratio, channels])
    samples = tf.cast(tf.reduce_mean(samples, axis=[3, 5]), features.dtype)
    return samples[:, 0] if single else samples


def _weights(features, boxes, output_size, spatial_scale, sampling_ratio, flipped):
    """Returns interpolation rows `(N, R, S_y, H)` and `(N, R, S_x, W)`, and True if the boxes had no R axis."""
    size_y, size_x = _pair(output_size)
    single = boxes.shape.rank == 2
    boxes = tf.cast(boxes[:, None] if single else boxes, tf.float32) * spatial_scale
    height = features.shape[1] or tf.shape(features)[1]
    width = features.shape[2] or tf.shape(features)[2]
    rows = _axis_weights(boxes[..., 0], boxes[..., 2], size_y, height, sampling_ratio)
    columns = _axis_weights(boxes[..., 1], boxes[..., 3], size_x, width, sampling_ratio)
    if flipped is not None:
        flipped = tf.convert_to_tensor(flipped)
        columns = tf.where(flipped[:, None, None, None], columns[:, :, ::-1], columns)
    return tf.cast(rows, features.dtype), tf.cast(columns, features.dtype), single


def _axis_weights(low, high, size, extent, ratio):
    """Returns (N, R, size, extent) bilinear weights of `size` bins in `low`..`high`, averaged over `ratio` samples."""
    centres, extent = _centres(low, high, size * ratio)[..., None], tf.cast(extent, tf.float32)
    weights = tf.nn.relu(1.0 - tf.abs(tf.clip_by_value(centres, 0.0, extent - 1.0) - tf.range(extent)))
    outside = (centres < -1.0) | (centres > extent)  # False for NaN, which must not become 0
    weights = tf.where(outside, 0.0, weights)  # (N, R, size * ratio, extent)
    if ratio == 1:
        return weights
    shape = tf.shape(weights)
    return tf.reduce_mean(tf.reshape(weights, [shape[0], shape[1], size, ratio, shape[3]]), axis=3)


def _centres(low, high, samples):
    """Returns (N, R, samples) positions in map pixels: bin centres minus the half pixel."""
    steps = (tf.range(samples, dtype=tf.float32) + 0.5) / float(samples)
    return low[..., None] + (high - low)[..., None] * steps - 0.5


def _check(sampling_ratio):
    if int(sampling_ratio) < 1:
        raise UserError("sampling_ratio", f"Expected at least 1, received {sampling_ratio}.")


def _pair(size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
