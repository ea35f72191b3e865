"""PASCAL VOC's average precision, one detection at a time: a slow twin of `detection.voc_eval`.

It follows the description of the challenge (Everingham et al., IJCV 2010, section 4.2) and the development kit's
`VOCevaldet.m`. Boxes are integers and include both ends, so sides are differences plus one.
"""


def overlap(box, other):
    """Intersection over union of integer boxes (xmin, ymin, xmax, ymax), ends included."""
    width = min(box[2], other[2]) - max(box[0], other[0]) + 1
    height = min(box[3], other[3]) - max(box[1], other[1]) + 1
    if width <= 0 or height <= 0:
        return 0.0
    union = -width * height
    for x1, y1, x2, y2 in (box, other):
        union += (x2 - x1 + 1) * (y2 - y1 + 1)
    return width * height / union


def precision_recall(truth, found, iou):
    """Returns lists of recall and precision after each detection.

    Args:
        truth: {image: [(box, difficult), …]} of one class.
        found: [(score, image, box), …], scores all different.
        iou: least overlap.
    """
    positives = sum(not difficult for objects in truth.values() for _, difficult in objects)
    taken, true, false, recall, precision = set(), 0, 0, [], []
    for _, image, box in sorted(found, reverse=True):
        best, which = -1.0, None
        for number, (other, _) in enumerate(truth.get(image, [])):
            if overlap(box, other) > best:
                best, which = overlap(box, other), number
        if best >= iou:
            if truth[image][which][1]:
                continue
            if (image, which) in taken:
                false += 1
            else:
                taken.add((image, which))
                true += 1
        else:
            false += 1
        recall.append(true / positives)
        precision.append(true / (true + false))
    return recall, precision


def average_11_point(recall, precision):
    total = 0.0
    for tenth in range(11):
        reached = [p for r, p in zip(recall, precision, strict=True) if r * 10 >= tenth - 1e-7]
        total += max(reached, default=0.0) / 11
    return total


def average_area(recall, precision):
    recall, precision = [0.0, *recall, 1.0], [0.0, *precision, 0.0]
    for i in range(len(precision) - 2, -1, -1):
        precision[i] = max(precision[i], precision[i + 1])
    return sum((recall[i] - recall[i - 1]) * precision[i] for i in range(1, len(recall)))
