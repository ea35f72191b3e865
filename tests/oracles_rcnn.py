"""Slow twins of R-CNN's parts: float64 NumPy, plain loops, from detectron2's definitions, not from `dupr_tf`.

Boxes are `(x1, y1, x2, y2)`. A box list is [n, 4].
"""

import math

import numpy as np


def anchors(height, width, stride, sizes, ratios=(0.5, 1.0, 2.0)):
    """Returns the anchors of a map, [height · width · sizes · ratios, 4].

    Cell (y, x) is the point (x · stride, y · stride).
    """
    rows = []
    for y in range(height):
        for x in range(width):
            for size in sizes:
                for ratio in ratios:  # height / width at the same area
                    w = math.sqrt(size * size / ratio)
                    h = w * ratio
                    rows.append((x * stride - w / 2, y * stride - h / 2, x * stride + w / 2, y * stride + h / 2))
    return np.array(rows)


def iou(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    both = width * height
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return both / (areas - both) if both > 0 else 0.0


def encode(box, anchor, weights):
    w, h = anchor[2] - anchor[0], anchor[3] - anchor[1]
    dx = ((box[0] + box[2]) - (anchor[0] + anchor[2])) / 2 / w
    dy = ((box[1] + box[3]) - (anchor[1] + anchor[3])) / 2 / h
    return np.array([dx, dy, math.log((box[2] - box[0]) / w), math.log((box[3] - box[1]) / h)]) * weights


def decode(delta, anchor, weights):
    dx, dy, dw, dh = np.asarray(delta, float) / weights
    dw, dh = min(dw, math.log(1000 / 16)), min(dh, math.log(1000 / 16))
    w, h = anchor[2] - anchor[0], anchor[3] - anchor[1]
    x, y = (anchor[0] + anchor[2]) / 2 + dx * w, (anchor[1] + anchor[3]) / 2 + dy * h
    w, h = w * math.exp(dw), h * math.exp(dh)
    return np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2])


def clip(box, height, width):
    x1, y1, x2, y2 = box
    return np.array([min(max(v, 0), end) for v, end in ((x1, width), (y1, height), (x2, width), (y2, height))])


def match_anchors(table, boxes):
    """Returns labels (1, 0, -1 for ignored) and the box of greatest IoU (0 without boxes) for each anchor."""
    labels, matches = np.zeros(len(table), int), np.zeros(len(table), int)
    if not len(boxes):
        return labels, matches
    overlaps = np.array([[iou(box, anchor) for anchor in table] for box in boxes])
    for a in range(len(table)):
        best = overlaps[:, a].max()
        matches[a] = overlaps[:, a].argmax()
        labels[a] = 1 if best >= 0.7 else 0 if best < 0.3 else -1
    for row in overlaps:
        if row.max() > 0:
            labels[row == row.max()] = 1
    return labels, matches


def nms(boxes, scores, threshold):
    """Returns the positions kept, best first."""
    kept = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        if all(iou(boxes[i], boxes[j]) <= threshold for j in kept):
            kept.append(i)
    return kept


def propose(objectness, deltas, anchors, height, width, pre_nms, post_nms):
    """Returns proposals [n, 4] of one image, best first.

    It takes the best of each level, applies NMS at 0.7 within the level, then takes the best of all.
    """
    found = []
    for scores, moves, table in zip(objectness, deltas, anchors, strict=True):
        order = sorted(range(len(scores)), key=lambda i: -scores[i])[:pre_nms]
        boxes = [clip(decode(moves[i], table[i], (1, 1, 1, 1)), height, width) for i in order]
        rows = [(scores[i], box) for i, box in zip(order, boxes, strict=True) if box[2] > box[0] and box[3] > box[1]]
        kept = nms([box for _, box in rows], [score for score, _ in rows], 0.7)
        found += [rows[i] for i in kept]
    found.sort(key=lambda row: -row[0])
    return np.array([box for _, box in found[:post_nms]])


def level(box):
    """Returns a level from 2 to 5."""
    side = math.sqrt((box[2] - box[0]) * (box[3] - box[1]))
    return int(min(max(math.floor(4 + math.log2(side / 224 + 1e-8)), 2), 5))


def roi_align(features, box, stride, size, samples=2):
    """Pools one map [h, w, C] to [size, size, C].

    It takes bilinear samples at half-pixel coordinates and averages them in each bin. A sample more than one cell
    outside the map is 0.
    """
    h, w = features.shape[:2]
    x1, y1, x2, y2 = (v / stride for v in box)
    out = np.zeros((size, size, features.shape[2]))
    for i in range(size * samples):
        for j in range(size * samples):
            y = y1 + (y2 - y1) * (i + 0.5) / (size * samples) - 0.5
            x = x1 + (x2 - x1) * (j + 0.5) / (size * samples) - 0.5
            if not (-1 <= y <= h and -1 <= x <= w):
                continue
            y, x = min(max(y, 0), h - 1), min(max(x, 0), w - 1)
            y0, x0 = int(y), int(x)
            y3, x3 = min(y0 + 1, h - 1), min(x0 + 1, w - 1)
            top = features[y0, x0] * (1 - x + x0) + features[y0, x3] * (x - x0)
            bottom = features[y3, x0] * (1 - x + x0) + features[y3, x3] * (x - x0)
            out[i // samples, j // samples] += (top * (1 - y + y0) + bottom * (y - y0)) / samples**2
    return out


def binary_entropy(logit, target):
    """Returns the binary cross entropy of one logit."""
    return math.log1p(math.exp(-abs(logit))) + max(logit, 0) - logit * target


def focal_loss(logits, targets, alpha=0.25, gamma=2):
    """Computes Lin et al., 2018, eq. 5, summed over all logits. `targets` is 0 and 1, of the shape of the logits."""
    p = 1 / (1 + np.exp(-logits))
    right, weight = np.where(targets, p, 1 - p), np.where(targets, alpha, 1 - alpha)
    return float((-weight * (1 - right) ** gamma * np.log(right)).sum())


def rpn_losses(objectness, deltas, table, rows, labels, boxes):
    """Returns the losses over a batch from `rows`, `labels` (1, 0) and `boxes` of the drawn anchors of each image.

    Both are divided by 256 · B.
    """
    entropy = distance = 0.0
    for image in range(len(objectness)):
        for row, label, box in zip(rows[image], labels[image], boxes[image], strict=True):
            entropy += binary_entropy(objectness[image][row], label)
            if label:
                distance += np.abs(deltas[image][row] - encode(box, table[row], (1, 1, 1, 1))).sum()
    return entropy / (256 * len(objectness)), distance / (256 * len(objectness))


def region_losses(logits, deltas, regions, classes, boxes, drawn):
    """Returns the losses of the flat rows of a batch. Class C (the last logit) is background.

    Both are divided by the number of drawn rows.
    """
    entropy, distance, number = 0.0, 0.0, 0
    for row in range(len(logits)):
        if drawn[row]:
            number += 1
            entropy += math.log(np.exp(logits[row] - logits[row].max()).sum()) + logits[row].max()
            entropy -= logits[row][classes[row]]
            if classes[row] < logits.shape[1] - 1:
                target = encode(boxes[row], regions[row], (10, 10, 5, 5))
                distance += np.abs(deltas[row][classes[row]] - target).sum()
    return entropy / max(number, 1), distance / max(number, 1)


def detections(logits, deltas, proposals, height, width, threshold, nms_iou, count):
    """Returns [(score, class, box)] of one image, best first."""
    found = []
    for klass in range(logits.shape[1] - 1):
        boxes, scores = [], []
        for row, proposal, moves in zip(logits, proposals, deltas, strict=True):
            score = np.exp(row[klass] - row.max()) / np.exp(row - row.max()).sum()
            box = clip(decode(moves[klass], proposal, (10, 10, 5, 5)), height, width)
            if score > threshold and box[2] > box[0] and box[3] > box[1]:
                scores.append(score)
                boxes.append(box)
        found += [(scores[i], klass, boxes[i]) for i in nms(boxes, scores, nms_iou)]
    return sorted(found, key=lambda row: -row[0])[:count]


def mask_target(region, box, mask, size):
    """Returns [size, size] of 0 and 1: the mask over `box` at the bin centres of `region`, bilinear, zero outside."""
    h, w = mask.shape
    empty = np.pad(mask, 1)
    out = np.zeros((size, size))
    for i in range(size):
        for j in range(size):
            y = region[1] + (region[3] - region[1]) * (i + 0.5) / size
            x = region[0] + (region[2] - region[0]) * (j + 0.5) / size
            y, x = (y - box[1]) / (box[3] - box[1]) * h + 0.5, (x - box[0]) / (box[2] - box[0]) * w + 0.5
            if 0 <= y <= h + 1 and 0 <= x <= w + 1:
                y0, x0 = min(int(y), h), min(int(x), w)
                top = empty[y0, x0] * (1 - x + x0) + empty[y0, x0 + 1] * (x - x0)
                bottom = empty[y0 + 1, x0] * (1 - x + x0) + empty[y0 + 1, x0 + 1] * (x - x0)
                out[i, j] = (top * (1 - y + y0) + bottom * (y - y0)) >= 0.5
    return out


def convolve(x, kernel, bias, stride=1):
    """Convolves (h, w, C) with a kernel (k, k, C, F).

    It pads as TensorFlow's "same" does, with the odd row and column at the end.
    """
    side = kernel.shape[0]
    size = [-(-length // stride) for length in x.shape[:2]]
    pads = [max((out - 1) * stride + side - length, 0) for out, length in zip(size, x.shape[:2], strict=True)]
    padded = np.pad(x, [*((pad // 2, pad - pad // 2) for pad in pads), (0, 0)])
    found = np.empty((*size, kernel.shape[-1]))
    for i, j in np.ndindex(*size):
        window = padded[i * stride : i * stride + side, j * stride : j * stride + side]
        found[i, j] = np.tensordot(window, kernel, 3) + bias
    return found


def upsample(x, kernel, bias):
    """Applies the transposed convolution with a kernel (2, 2, F, C) at stride 2, from (h, w, C) to (2 h, 2 w, F)."""
    found = np.empty((2 * x.shape[0], 2 * x.shape[1], kernel.shape[2]))
    for i, j, a, b in np.ndindex(*x.shape[:2], 2, 2):
        found[2 * i + a, 2 * j + b] = kernel[a, b] @ x[i, j] + bias
    return found
