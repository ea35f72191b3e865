"""Slow twins of the method's equations: float64 NumPy, plain loops, no TensorFlow.

They are written from the paper and from the definitions of torchvision, detectron2 and Pillow, not from `dupr_tf`. A
test that compares the two therefore compares two readings. Geometry, RoIAlign, heads, losses and photometrics are here.
The module `oracles_step` has what changes state during a step (ring, optimiser, schedules).

Boxes are `(y1, x1, y2, x2)`; images are `[H, W, 3]` floats in 0..1; features are NHWC.
"""

import colorsys
import math

import numpy as np

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


# --- geometry of a pair of views ------------------------------------------------------------------


def overlap(crop_1, crop_2):
    """Returns the intersection of crops `(y0, x0, y1, x1)` in source coordinates, or None when they share no area."""
    y0 = max(float(crop_1[0]), float(crop_2[0]))
    x0 = max(float(crop_1[1]), float(crop_2[1]))
    y1 = min(float(crop_1[2]), float(crop_2[2]))
    x1 = min(float(crop_1[3]), float(crop_2[3]))
    if y1 <= y0 or x1 <= x0:
        return None
    return (y0, x0, y1, x1)


def to_view(box, crop, flipped, view_size):
    """Returns a source box in pixels of the square view of `crop`. A flip sends x to size - x and swaps the ends."""
    scale_y = view_size / (float(crop[2]) - float(crop[0]))
    scale_x = view_size / (float(crop[3]) - float(crop[1]))
    y1 = (box[0] - float(crop[0])) * scale_y
    x1 = (box[1] - float(crop[1])) * scale_x
    y2 = (box[2] - float(crop[0])) * scale_y
    x2 = (box[3] - float(crop[1])) * scale_x
    if flipped:
        x1, x2 = view_size - x2, view_size - x1
    return (y1, x1, y2, x2)


def intersect_pair(crop_1, crop_2, flipped_1, flipped_2, view_size, min_overlap=32.0):
    """Returns the overlap in the pixels of each view, and whether it spans `min_overlap` pixels a side in both.

    Without any overlap there is no box. Both are then NaN, so that comparing with them by accident fails.
    """
    shared = overlap(crop_1, crop_2)
    if shared is None:
        return (math.nan,) * 4, (math.nan,) * 4, False
    box_1 = to_view(shared, crop_1, flipped_1, view_size)
    box_2 = to_view(shared, crop_2, flipped_2, view_size)
    sides = [box[2] - box[0] for box in (box_1, box_2)] + [box[3] - box[1] for box in (box_1, box_2)]
    return box_1, box_2, min(sides) >= min_overlap


def intersect_views(crop_1, crop_2, flipped_1, flipped_2, view_size, min_overlap=32.0):
    """Applies `intersect_pair` to each row of a batch: boxes_1 [N, 4], boxes_2 [N, 4], valid [N]."""
    rows = [
        intersect_pair(a, b, flip_a, flip_b, view_size, min_overlap)
        for a, b, flip_a, flip_b in zip(crop_1, crop_2, flipped_1, flipped_2, strict=True)
    ]
    boxes_1 = np.array([row[0] for row in rows], np.float64)
    boxes_2 = np.array([row[1] for row in rows], np.float64)
    return boxes_1, boxes_2, np.array([row[2] for row in rows], bool)


# --- RoIAlign -------------------------------------------------------------------------------------


def bilinear(feature, y, x):
    """Returns a bilinear sample of `feature` [H, W, C] at cell coordinates (cell k's centre is k).

    As in torchvision and detectron2, a sample with y < -1, y > H, x < -1 or x > W is 0. Any other is clamped to the
    centres of the border cells.
    """
    height, width, channels = feature.shape
    if y < -1 or y > height or x < -1 or x > width:
        return np.zeros(channels)
    y = min(max(y, 0.0), height - 1.0)
    x = min(max(x, 0.0), width - 1.0)
    top, left = math.floor(y), math.floor(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    fy, fx = y - top, x - left
    upper = (1 - fx) * feature[top, left] + fx * feature[top, right]
    lower = (1 - fx) * feature[bottom, left] + fx * feature[bottom, right]
    return (1 - fy) * upper + fy * lower


def roi_align_box(feature, box, output_size, spatial_scale=1.0, sampling_ratio=1, flipped=False):
    """Applies RoIAlign (`aligned=True`) with one box, [H, W, C] -> [S, S, C].

    `output_size` is S or (S_y, S_x). sampling_ratio r > 0 averages r x r samples in a bin; 0 takes ceil(box side / S),
    as torchvision does. `flipped` reads the grid from right to left.
    """
    feature = np.asarray(feature, np.float64)
    size_y, size_x = (output_size, output_size) if np.isscalar(output_size) else output_size
    y1, x1, y2, x2 = (float(edge) * spatial_scale - 0.5 for edge in box)
    bin_h, bin_w = (y2 - y1) / size_y, (x2 - x1) / size_x
    count_y = sampling_ratio or max(math.ceil(bin_h), 1)
    count_x = sampling_ratio or max(math.ceil(bin_w), 1)
    out = np.zeros((size_y, size_x, feature.shape[-1]))
    for i in range(size_y):
        for j in range(size_x):
            for a in range(count_y):
                for b in range(count_x):
                    y = y1 + (i + (a + 0.5) / count_y) * bin_h
                    x = x1 + (j + (b + 0.5) / count_x) * bin_w
                    column = size_x - 1 - j if flipped else j
                    out[i, column] += bilinear(feature, y, x) / (count_y * count_x)
    return out


def roi_align(features, boxes, output_size, spatial_scale=1.0, sampling_ratio=1, flipped=None):
    """Applies `roi_align_box` to a batch.

    Boxes [N, 4] give [N, S, S, C], and boxes [N, R, 4] give [N, R, S, S, C].
    """
    boxes = np.asarray(boxes, np.float64)
    if boxes.ndim == 2:
        one_each = roi_align(features, boxes[:, None], output_size, spatial_scale, sampling_ratio, flipped)
        return one_each[:, 0]
    out = []
    for n in range(len(boxes)):
        flip = False if flipped is None else bool(flipped[n])
        rois = [roi_align_box(features[n], box, output_size, spatial_scale, sampling_ratio, flip) for box in boxes[n]]
        out.append(np.stack(rois))
    return np.stack(out)


# --- convolution ----------------------------------------------------------------------------------


def convolve_3x3(images, kernel):
    """Convolves (N, H, W, C) with (3, 3, C, K) to (N, H, W, K), at stride 1 with one pixel of zeros around."""
    count, height, width, _ = images.shape
    out = np.zeros((count, height, width, kernel.shape[3]))
    for n, y, x, ky, kx in np.ndindex(count, height, width, 3, 3):
        row, column = y + ky - 1, x + kx - 1
        if 0 <= row < height and 0 <= column < width:
            out[n, y, x] += images[n, row, column] @ kernel[ky, kx]
    return out


def convolve_3x3_gradients(images, kernel, upstream):
    """Returns gradients of `sum(upstream * convolve_3x3(images, kernel))` w.r.t. images and kernel."""
    count, height, width, _ = images.shape
    to_images, to_kernel = np.zeros(images.shape), np.zeros(kernel.shape)
    for n, y, x, ky, kx in np.ndindex(count, height, width, 3, 3):
        row, column = y + ky - 1, x + kx - 1
        if 0 <= row < height and 0 <= column < width:
            to_images[n, row, column] += kernel[ky, kx] @ upstream[n, y, x]
            to_kernel[ky, kx] += np.outer(images[n, row, column], upstream[n, y, x])
    return to_images, to_kernel


# --- heads ----------------------------------------------------------------------------------------


def l2_normalize(vector, epsilon=1e-12):
    """Returns v / max(|v|, epsilon), as torch's `F.normalize`."""
    length = math.sqrt(sum(float(v) ** 2 for v in vector))
    return np.asarray(vector, np.float64) / max(length, epsilon)


def global_average_pool(features):
    """Averages [N, H, W, C] to [N, C]."""
    features = np.asarray(features, np.float64)
    batch, height, width, channels = features.shape
    out = np.zeros((batch, channels))
    for n in range(batch):
        for i in range(height):
            for j in range(width):
                out[n] += features[n, i, j] / (height * width)
    return out


def mlp(vector, kernel_1, bias_1, kernel_2, bias_2):
    """Applies Dense - ReLU - Dense to one vector; kernels are [in, out]."""
    hidden = np.asarray(vector, np.float64) @ np.asarray(kernel_1, np.float64) + bias_1
    hidden = np.where(hidden > 0, hidden, 0.0)
    return hidden @ np.asarray(kernel_2, np.float64) + bias_2


def image_head(features, kernel_1, bias_1, kernel_2, bias_2):
    """Computes DUPR eq. 6 with MoCo v2's MLP: [N, H, W, Cin] -> GAP -> MLP -> unit vectors [N, C]."""
    pooled = global_average_pool(features)
    return np.stack([l2_normalize(mlp(row, kernel_1, bias_1, kernel_2, bias_2)) for row in pooled])


def patch_head(rois, kernel_1, bias_1, kernel_2, bias_2):
    """Computes DUPR eqs. 3 and 4, the same MLP at each cell.

    Features [N, S, S, Cin] become unit vectors [N, S, S, C].
    """
    batch, rows, columns, _ = rois.shape
    out = np.zeros((batch, rows, columns, np.shape(kernel_2)[-1]))
    for n in range(batch):
        for i in range(rows):
            for j in range(columns):
                out[n, i, j] = l2_normalize(mlp(rois[n, i, j], kernel_1, bias_1, kernel_2, bias_2))
    return out


# --- losses ---------------------------------------------------------------------------------------


def similarities(query, positive, bank_keys):
    """Returns q·positive, then q·key for each row of the bank: a list of K + 1 floats."""
    query = np.asarray(query, np.float64)
    keys = [positive, *bank_keys]
    return [float(np.sum(query * np.asarray(key, np.float64))) for key in keys]


def info_nce(queries, positives, bank_keys, temperature):
    """Computes DUPR eq. 1 (and eq. 5 for one cell).

    Takes queries [N, C], positives [N, C] and a bank [K, C]. Returns losses [N].
    """
    losses = []
    for query, positive in zip(queries, positives, strict=True):
        logits = [s / temperature for s in similarities(query, positive, bank_keys)]
        largest = max(logits)
        denominator = sum(math.exp(logit - largest) for logit in logits)
        losses.append(largest + math.log(denominator) - logits[0])
    return np.array(losses)


def info_nce_gradients(queries, positives, bank_keys, temperature):
    """Returns the gradients of loss[n].

    W.r.t. queries[n] it is (sum_j p_j key_j - positive) / τ. W.r.t. positives[n] it is (p_0 - 1) q / τ.
    """
    wrt_queries, wrt_positives = [], []
    for query, positive in zip(queries, positives, strict=True):
        logits = [s / temperature for s in similarities(query, positive, bank_keys)]
        weights = [math.exp(logit - max(logits)) for logit in logits]
        probabilities = [weight / sum(weights) for weight in weights]
        expected_key = np.zeros(len(query))
        for probability, key in zip(probabilities, [positive, *bank_keys], strict=True):
            expected_key += probability * np.asarray(key, np.float64)
        wrt_queries.append((expected_key - positive) / temperature)
        wrt_positives.append((probabilities[0] - 1.0) * np.asarray(query, np.float64) / temperature)
    return np.stack(wrt_queries), np.stack(wrt_positives)


def contrastive_hits(queries, positives, bank_keys):
    """Returns [N]: 1.0 where the positive is more similar than every negative (a tie is a miss), else 0.0."""
    hits = []
    for query, positive in zip(queries, positives, strict=True):
        first, *negatives = similarities(query, positive, bank_keys)
        hits.append(1.0 if all(first > negative for negative in negatives) else 0.0)
    return np.array(hits)


# --- photometrics of MoCo v2, for draws that are given --------------------------------------------


def clip01(image):
    return np.minimum(np.maximum(np.asarray(image, np.float64), 0.0), 1.0)


def grey(image):
    """Returns ITU-R 601-2 luma, Pillow's "L": 0.299 R + 0.587 G + 0.114 B, [H, W]."""
    image = np.asarray(image, np.float64)
    return 0.299 * image[..., 0] + 0.587 * image[..., 1] + 0.114 * image[..., 2]


def to_grey(image):
    """Returns luma in all three channels."""
    return np.stack([grey(image)] * 3, axis=-1)


def blend(degenerate, image, factor):
    """Blends as Pillow and torchvision do: factor 0 is the degenerate image, 1 the image, clipped to 0..1."""
    return clip01((1.0 - factor) * np.asarray(degenerate) + factor * np.asarray(image, np.float64))


def adjust_brightness(image, factor):
    """Multiplies, which blends with black; adds nothing."""
    return blend(np.zeros_like(image, np.float64), image, factor)


def adjust_contrast(image, factor, round_mean=False):
    """Blends with the mean of the grey image, which Pillow rounds to a grey level (torchvision does not)."""
    mean = float(np.mean(grey(image)))
    if round_mean:
        mean = math.floor(mean * 255 + 0.5) / 255
    return blend(np.full_like(image, mean, np.float64), image, factor)


def adjust_saturation(image, factor):
    """Blends with the grey image (no scaling of HSV's S)."""
    return blend(to_grey(image), image, factor)


def adjust_hue(image, shift):
    """Adds `shift` turns (-0.5..0.5) to HSV's hue, modulo 1."""
    image = np.asarray(image, np.float64)
    out = np.zeros_like(image)
    for i in range(image.shape[0]):
        for j in range(image.shape[1]):
            hue, saturation, value = colorsys.rgb_to_hsv(*image[i, j])
            out[i, j] = colorsys.hsv_to_rgb((hue + shift) % 1.0, saturation, value)
    return out


def reflect(index, size):
    """Reflects an index without repeating the edge: -1 -> 1, size -> size - 2 (for reaches below the size)."""
    if index < 0:
        return -index
    if index >= size:
        return 2 * size - 2 - index
    return index


def gaussian_blur(image, sigma, radius=None):
    """Blurs with a true Gaussian, REFLECT border, radius ceil(3 sigma) unless given. (Pillow: three box blurs.)"""
    image = np.asarray(image, np.float64)
    height, width, _ = image.shape
    radius = math.ceil(3 * sigma) if radius is None else radius
    offsets = range(-radius, radius + 1)
    weights = {(a, b): math.exp(-(a * a + b * b) / (2 * sigma * sigma)) for a in offsets for b in offsets}
    norm = sum(weights.values())
    out = np.zeros_like(image)
    for i in range(height):
        for j in range(width):
            for (a, b), weight in weights.items():
                out[i, j] += weight / norm * image[reflect(i + a, height), reflect(j + b, width)]
    return out


def normalize(image, mean=IMAGENET_MEAN, std=IMAGENET_STD):
    return (np.asarray(image, np.float64) - np.array(mean)) / np.array(std)


def photometric(image_uint8, order=(), factors=None, grey_image=False, sigma=None, radius=None, flipped=False):
    """Applies MoCo v2's chain to one uint8 image: jitter in `order`, greyscale, blur, flip, normalise.

    order: a sequence of "brightness", "contrast", "saturation" and "hue". It is empty when the jitter was not drawn.

    factors: name -> factor (the shift in turns for "hue"). sigma: None when the blur was not drawn.
    """
    adjust = {
        "brightness": adjust_brightness,
        "contrast": adjust_contrast,
        "saturation": adjust_saturation,
        "hue": adjust_hue,
    }
    image = np.asarray(image_uint8, np.float64) / 255.0
    for name in order:
        image = adjust[name](image, factors[name])
    if grey_image:
        image = to_grey(image)
    if sigma is not None:
        image = gaussian_blur(image, sigma, radius)
    if flipped:
        image = image[:, ::-1]
    return normalize(image)
