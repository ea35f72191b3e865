"""Tests of D-FINE's losses on numbers computed by hand or by trying every assignment."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from dupr_tf.detection.parts.box_matching import GroundTruth
from dupr_tf.detection.parts.set_losses import (
    BINS,
    SPAN,
    WEIGHTS,
    Layer,
    assign_queries,
    bin_loss,
    bin_values,
    distillation_loss,
    overlaps,
    score_loss,
    set_losses,
)

QUERIES, CLASSES = 5, 3
NO_BINS = {"bin_loss": 0.0, "distillation_loss": 0.0}


def truth_of(*images):
    """Returns the ground truth of images, each a list of (box, class), padded with boxes that are not valid."""
    most = max(1, *map(len, images))
    boxes, classes = np.full((len(images), most, 4), 0.01, np.float32), np.zeros((len(images), most), np.int32)
    for i, rows in enumerate(images):
        for j, (box, label) in enumerate(rows):
            boxes[i, j], classes[i, j] = box, label
    valid = np.array([[j < len(rows) for j in range(most)] for rows in images])
    return GroundTruth(tf.constant(boxes), tf.constant(classes), tf.constant(valid))


def random_layer(images, seed, bins=True):
    rng = np.random.default_rng(seed)
    boxes = rng.uniform([0.2, 0.2, 0.1, 0.1], [0.8, 0.8, 0.4, 0.4], (images, QUERIES, 4)).astype(np.float32)
    logits = rng.normal(0, 1, (images, QUERIES, CLASSES)).astype(np.float32)
    spread = rng.normal(0, 1, (images, QUERIES, 4, BINS + 1)).astype(np.float32)
    return (
        Layer(*map(tf.constant, (logits, boxes, spread, boxes))) if bins else Layer(*map(tf.constant, (logits, boxes)))
    )


def objects(seed, count):
    rng = np.random.default_rng(seed)
    return [(rng.uniform([0.2] * 2 + [0.1] * 2, [0.8] * 2 + [0.4] * 2), rng.integers(CLASSES)) for _ in range(count)]


def test_assignment_has_the_lowest_cost_of_all():
    images = [objects(seed, 3) for seed in range(40)]
    layer, truth = random_layer(len(images), 0), truth_of(*images)
    p = 1 / (1 + np.exp(-np.take_along_axis(layer.logits.numpy(), truth.classes.numpy()[:, None], 2)))  # (B, Q, 3)
    focal = 0.75 * p**2 * np.log(1 - p) - 0.25 * (1 - p) ** 2 * np.log(p)
    predicted, true = layer.boxes[:, :, None], truth.boxes[:, None]
    generalised = overlaps(predicted, true)[1].numpy()
    costs = 2 * focal + 5 * np.abs(predicted - true).sum(-1) - 2 * generalised
    received = assign_queries(layer.logits, layer.boxes, truth).numpy()
    for queries, table in zip(received, costs, strict=True):
        choices = itertools.permutations(range(QUERIES), 3)
        assert tuple(queries) == min(choices, key=lambda choice: table[list(choice), range(3)].sum())


def test_padding_and_surplus_objects_have_no_query():
    layer = random_layer(3, 2)
    queries = assign_queries(layer.logits, layer.boxes, truth_of(objects(3, 7), objects(4, 2), [])).numpy()
    assert sorted(queries[0]) == [-1, -1, 0, 1, 2, 3, 4]
    assert len(set(queries[1, :2])) == 2 and (queries[1, :2] >= 0).all() and (queries[1:, 2:] == -1).all()
    assert (queries[2] == -1).all()


def test_overlaps_by_hand():
    boxes = tf.constant([[0.5, 0.5, 0.4, 0.4], [0.2, 0.5, 0.2, 0.2], [0.5, 0.5, -0.1, 0.2]])
    others = tf.constant([[0.6, 0.5, 0.2, 0.4], [0.8, 0.5, 0.2, 0.2], [0.5, 0.5, 0.2, 0.2]])
    iou, generalised = overlaps(boxes, others)
    np.testing.assert_allclose(iou, [0.5, 0, 0], atol=1e-6)
    np.testing.assert_allclose(generalised, [0.5, -(0.16 - 0.08) / 0.16, 0], atol=1e-5)


def test_loss_of_a_batch_is_that_of_its_images():
    """Targets come from the own image of a query, and padding does not count."""
    images = [objects(5, 3), objects(6, 1), []]
    layers = [random_layer(3, seed, bins=seed > 0) for seed in range(4)]
    whole = set_losses(layers, truth_of(*images))
    alone = [
        set_losses([Layer(*(None if part is None else part[i : i + 1] for part in layer)) for layer in layers], truth)
        for i, truth in enumerate(truth_of(rows) for rows in images)
    ]
    assert whole.keys() == WEIGHTS.keys()
    for name in whole.keys() - {"distillation_loss"}:  # a mean over queries
        parts = [float(losses[name]) * max(1, len(rows)) for losses, rows in zip(alone, images, strict=True)]
        assert float(whole[name]) == pytest.approx(sum(parts) / 4, rel=1e-5)
    assert all(float(alone[2][name]) == 0 for name in ("box_loss", "overlap_loss", "bin_loss"))
    assert float(alone[2]["score_loss"]) > 0


def test_losses_of_a_box_have_the_published_weights():
    """The query's box is twice as wide as its object: IoU ½, and 0.1 off in centre and width together."""
    layer = Layer(tf.constant([[[0.0]]]), tf.constant([[[0.5, 0.5, 0.4, 0.4]]]))
    losses = set_losses([layer, layer], truth_of([((0.6, 0.5, 0.2, 0.4), 0)]))
    values = {name: float(loss) for name, loss in losses.items()}
    expected = {"score_loss": np.log(2) / 2, "box_loss": 5 * 0.3, "overlap_loss": 2 * 0.5}
    assert values == pytest.approx({name: 2 * value for name, value in expected.items()} | NO_BINS, rel=1e-5)


def test_objects_beyond_the_queries_train_no_box():
    layer = Layer(tf.constant([[[0.0]]]), tf.constant([[[0.5, 0.5, 0.4, 0.4]]]))
    losses = set_losses([layer], truth_of([((0.5, 0.5, 0.4, 0.4), 0), ((0.1, 0.1, 0.1, 0.1), 0)]))
    assert [float(losses[name]) for name in ("box_loss", "overlap_loss")] == pytest.approx([0, 0], abs=1e-5)


def test_scores_do_not_move_boxes():
    logits, boxes = tf.constant([[[0.3]]]), tf.constant([[[0.5, 0.5, 0.4, 0.4]]])
    with tf.GradientTape() as tape:
        tape.watch(boxes)
        loss = set_losses([Layer(logits, boxes)], truth_of([((0.6, 0.5, 0.2, 0.4), 0)]))["score_loss"]
    assert tape.gradient(loss, boxes) is None


def test_score_loss_by_hand():
    logits = tf.constant([[[0.0, 0.0], [0.0, 0.0]]])
    classes, iou, queries = tf.constant([[1]]), tf.constant([[0.8]]), tf.constant([[0]])
    # Each cross-entropy is log 2. The positive weighs 0.8, each of three negatives 0.75 · 0.5².
    assert float(score_loss(logits, classes, iou, queries)) == pytest.approx(np.log(2) * (0.8 + 3 * 0.1875))


def test_bins_are_symmetric_and_rise():
    values = bin_values()
    assert len(values) == BINS + 1 and (np.diff(values) > 0).all() and values[0] == -4
    np.testing.assert_allclose(values, -values[::-1], atol=1e-6)


@pytest.mark.parametrize("position", [3, 16, 20.25])
def test_bin_loss_is_least_at_the_true_distance(position):
    """A box whose left side lies at a distance between two bins: the best distribution has both, in its share."""
    left, share = int(position), position % 1
    distance = float(bin_values()[left] * (1 - share) + bin_values()[min(left + 1, BINS)] * share)
    reference = np.array([0.5, 0.5, 0.4, 0.4], np.float32)
    low = 0.5 - (distance + SPAN / 2) * 0.4 / SPAN
    box = np.array([(low + 0.7) / 2, 0.5, 0.7 - low, 0.4], np.float32)
    best = np.full((4, BINS + 1), -30, np.float32)
    best[0, left], best[0, left + 1] = np.log(1 - share), np.log(share) if share else -30
    best[1:, BINS // 2] = 0  # the other sides are those of the reference box
    entropy = -(share * np.log(share) + (1 - share) * np.log(1 - share)) if share else 0
    loss = bin_loss(best[None, None], reference[None, None], box[None, None], tf.constant([[1.0]]))
    assert float(loss) == pytest.approx(entropy, abs=2e-3)
    worse = np.roll(best, 2, -1)
    assert float(bin_loss(worse[None, None], reference[None, None], box[None, None], tf.constant([[1.0]]))) > 1


def test_distillation_is_zero_for_equal_distributions_and_moves_the_student_only():
    student, teacher = random_layer(2, 7), random_layer(2, 8)
    queries, iou = tf.constant([[1], [-1]]), tf.constant([[0.5], [0.0]])
    assert float(distillation_loss(student, student, iou, queries)) == pytest.approx(0, abs=1e-6)
    with tf.GradientTape() as tape:
        tape.watch([student.bins, teacher.bins])
        loss = distillation_loss(student, teacher, iou, queries)
    moved, still = tape.gradient(loss, [student.bins, teacher.bins])
    assert float(loss) > 0.01 and np.abs(moved).max() > 0 and still is None


def test_distillation_weighs_queries_by_overlap_or_score():
    """The query 3 of five has the only object. Distributions are softened by 5, and means mixed by √1 and √4."""
    student, teacher = random_layer(1, 7), random_layer(1, 8)
    soft_teacher, soft_student = (tf.nn.softmax(one.bins / 5).numpy() for one in (teacher, student))
    divergence = 25 * (soft_teacher * np.log(soft_teacher / soft_student)).sum(-1).mean(-1)[0]  # (QUERIES,)
    scores = tf.sigmoid(teacher.logits).numpy().max(-1)[0]
    without = np.delete(scores * divergence, 3).mean()
    loss = distillation_loss(student, teacher, tf.constant([[0.25]]), tf.constant([[3]]))
    assert float(loss) == pytest.approx((0.25 * divergence[3] * 1 + without * 2) / (1 + 2), rel=1e-4)
