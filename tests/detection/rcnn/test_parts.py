"""Tests the parts of an R-CNN against their NumPy twins."""

import numpy as np
import pytest
import tensorflow as tf

from dupr_tf.detection.parts import box_matching as matching
from dupr_tf.detection.parts.anchors import grid_anchors
from dupr_tf.detection.parts.box_matching import GroundTruth, ground_truth
from dupr_tf.detection.parts.boxes import DEVIATIONS, clip, decode, encode, suppress
from dupr_tf.detection.parts.target import LITERT, ONNX, TENSORFLOW, tracing_for
from dupr_tf.detection.rcnn import masks, pooling, proposals, regions
from dupr_tf.detection.rcnn.region_heads import STRIDES, MaskHead, PyramidRegions
from dupr_tf.training.distribution import deterministic_ops
from tests import oracles_rcnn as twin

H, W = 48.0, 64.0


def random_boxes(rng, count, least=4.0, height=H, width=W):
    corner = rng.uniform(0, 1, (count, 2)) * [width - least - 1, height - least - 1]
    side = least + rng.uniform(0, 1, (count, 2)) * ([width - least, height - least] - corner)
    return np.concatenate([corner, np.minimum(corner + side, [width, height])], 1).astype(np.float32)


def float32(values):
    return [tf.constant(value, tf.float32) for value in values]


def truth_of(*images):
    """Returns `GroundTruth` from lists of (box, class)."""
    most = max(map(len, images))
    boxes, classes = np.full((len(images), most, 4), -1.0, np.float32), np.full((len(images), most), -1.0, np.float32)
    for i, things in enumerate(images):
        for j, (box, label) in enumerate(things):
            boxes[i, j], classes[i, j] = box, label
    return ground_truth({"boxes": boxes, "classes": classes}, len(images))


def test_anchors_stand_on_cell_corners_in_reading_order():
    np.testing.assert_allclose(grid_anchors(2, 3, 16, [32.0, 64.0]), twin.anchors(2, 3, 16, [32, 64]), atol=1e-4)


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [1, 0, 3, 2]])
@pytest.mark.parametrize(("deviations", "weights"), [(None, (1, 1, 1, 1)), (DEVIATIONS, (10, 10, 5, 5))])
def test_deltas_match_twin_and_decode_inverts_them(deviations, weights, order):
    rng = np.random.default_rng(0)
    boxes, anchors = random_boxes(rng, 20), random_boxes(rng, 20)
    settings = deviations, "center_xywh" if order[0] == 0 else "center_yxhw"
    deltas = encode(boxes, anchors, *settings)
    expected = [twin.encode(box, anchor, weights)[order] for box, anchor in zip(boxes, anchors, strict=True)]
    np.testing.assert_allclose(deltas, expected, atol=2e-5)
    np.testing.assert_allclose(decode(deltas, anchors, *settings), boxes, atol=1e-4)


def test_large_deltas_are_bounded_and_boxes_stay_inside():
    wild = np.array([[0.5, -3.0, 50.0, 9.0]], np.float32)
    anchor = np.array([[10.0, 10, 26, 18]], np.float32)
    found = decode(wild, anchor)
    np.testing.assert_allclose(found[0], twin.decode(wild[0], anchor[0], (10, 10, 5, 5)), rtol=1e-5)
    held = clip(tf.stack([found, found]), tf.constant([[30.0, 40.0], [5.0, 7.0]]))
    np.testing.assert_allclose(held[1, 0], twin.clip(found[0].numpy(), 5, 7))


def test_anchor_matches_agree_with_the_twin():
    rng = np.random.default_rng(1)
    table = twin.anchors(6, 8, 8, [12, 24]).astype(np.float32)
    things = [[(box, 0) for box in random_boxes(rng, n)] for n in (4, 0, 1)]
    things[2] = [((-500.0, -500, -490, -490), 0)]  # no anchor reaches it, and none is forced to match
    positive, negative, matches = matching.match_anchors(tf.constant(table), truth_of(*things))
    for i, image in enumerate(things):
        labels, owners = twin.match_anchors(table, [box for box, _ in image])
        np.testing.assert_array_equal(positive[i], labels == 1)
        np.testing.assert_array_equal(negative[i], labels == 0)
        np.testing.assert_array_equal(matches[i].numpy()[labels == 1], owners[labels == 1])
    assert positive.numpy()[0].any() and not positive.numpy()[1:].any() and negative.numpy()[1:].all()


def test_all_tied_anchors_are_forced_to_match():
    table = tf.constant([[0.0, 0, 8, 8], [16, 0, 24, 8], [40, 40, 48, 48]])
    positive, negative, _ = matching.match_anchors(table, truth_of([((6.0, 0, 18, 8), 0)]))
    assert positive.numpy().tolist() == [[True, True, False]] and negative.numpy().tolist() == [[False, False, True]]


@pytest.mark.parametrize(
    ("positives", "negatives", "expected"), [(40, 60, (8, 24)), (3, 60, (3, 29)), (40, 5, (8, 5)), (0, 0, (0, 0))]
)
def test_samples_have_the_right_counts_in_order(positives, negatives, expected):
    kinds = np.random.default_rng(0).permutation([1] * positives + [0] * negatives + [-1] * 20)[None]
    drawn = matching.sample(tf.constant(kinds == 1), tf.constant(kinds == 0), 32, 0.25, [1, 2])
    assert drawn.rows.shape == (1, 32)
    number = sum(expected)
    assert drawn.drawn.numpy()[0].tolist() == [True] * number + [False] * (32 - number)
    assert drawn.positive.numpy()[0].tolist() == [True] * expected[0] + [False] * (32 - expected[0])
    rows = drawn.rows.numpy()[0, :number]
    assert len(set(rows)) == number  # each at most once
    assert kinds[0, rows].tolist() == [1] * expected[0] + [0] * expected[1]


def test_samples_are_a_function_of_the_seed_and_cover_all():
    ones = tf.ones([2, 12], tf.bool)
    first, again = (matching.sample(ones, ~ones, 6, 0.5, [3, 4]).rows for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert (first.numpy()[0] != first.numpy()[1]).any()
    others = [matching.sample(ones, ~ones, 6, 0.5, [3, n]).rows.numpy()[:, :3] for n in range(40)]
    counts = np.bincount(np.concatenate(others, None), minlength=12)
    assert counts.min() >= 8 and counts.max() <= 36  # 20 expected of each


def test_spare_places_repeat_drawn_samples():
    drawn = tf.constant([[True] * 3 + [False] * 4, [False] * 7])
    assert matching.repeat_drawn(drawn).numpy().tolist() == [[0, 1, 2, 0, 1, 2, 0], [0] * 7]


def test_proposals_level_by_level():
    rng = np.random.default_rng(2)
    tables = [twin.anchors(6, 8, 8, [10]), twin.anchors(3, 4, 16, [24])]
    objectness = [rng.normal(size=(2, len(table))) for table in tables]
    deltas = [rng.normal(size=(2, len(table), 4)) * 0.3 for table in tables]
    deltas[1][0, :3, 0] = -9  # outside the picture: no area is left
    objectness[1][0, :3] = 9
    sizes = np.array([[H, W], [30, 40]], np.float32)
    for pre, post in ((40, 30), (10, 100), (1000, 12)):
        boxes, valid = proposals.propose(float32(objectness), float32(deltas), float32(tables), sizes, pre, post)
        assert boxes.shape == (2, post, 4)
        for i in range(2):
            expected = twin.propose([o[i] for o in objectness], [d[i] for d in deltas], tables, *sizes[i], pre, post)
            assert valid.numpy()[i].sum() == len(expected) > 5
            np.testing.assert_allclose(boxes[i][: len(expected)], expected, atol=1e-3)


def test_nms_is_within_a_level():
    same = tf.zeros([1, 1, 4])
    table = tf.constant([[4.0, 4, 20, 20]])
    scores = tf.constant([[1.0]])
    levels = ([scores] * 2, [same] * 2, [table] * 2)
    assert proposals.propose(*levels, [[H, W]], 5, 5)[1].numpy().sum() == 2
    one = ([tf.concat([scores] * 2, 1)], [tf.concat([same] * 2, 1)], [tf.concat([table] * 2, 0)])
    assert proposals.propose(*one, [[H, W]], 5, 5)[1].numpy().sum() == 1


def test_proposals_with_low_logits_keep_their_boxes():
    anchors = np.array([[10 * i, 0, 10 * i + 8, 8] for i in range(6)], np.float32)
    logits = np.array([[-2.0, -9.0, -1.5, float("-inf"), 30.0, -40.0]], np.float32)
    boxes, valid = proposals.propose(
        [tf.constant(logits)], [tf.zeros([1, 6, 4])], [tf.constant(anchors)], tf.constant([[50.0, 100.0]]), 6, 8
    )
    assert valid.numpy().tolist() == [[True] * 5 + [False] * 3]
    np.testing.assert_allclose(boxes[0, :5], anchors[[4, 2, 0, 1, 5]], atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter:UserWarning")
def test_litert_adds_no_proposals_of_other_levels():
    resolver = tf.lite.experimental.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES  # XNNPACK flushes tiny scores to 0
    tables = [tf.constant([[4.0, 4, 20, 20], [900, 0, 910, 8]]), tf.constant([[30.0, 4, 50, 20]])]
    levels = [tf.constant([[-9.0, 2.0]]), tf.constant([[1.0]])], [tf.zeros([1, 2, 4]), tf.zeros([1, 1, 4])]

    @tf.function(input_signature=[tf.TensorSpec((1, 2), tf.float32)], autograph=False)
    def count(size):
        return tf.reduce_sum(tf.cast(proposals.propose(*levels, tables, size, 5, 8)[1], tf.int32))

    with tracing_for(LITERT):
        traced = count.get_concrete_function()
    file = tf.lite.TFLiteConverter.from_concrete_functions([traced], tf.Module()).convert()
    run = tf.lite.Interpreter(model_content=file, experimental_op_resolver_type=resolver)
    run.allocate_tensors()
    run.set_tensor(run.get_input_details()[0]["index"], np.array([[H, W]], np.float32))
    run.invoke()
    assert run.get_tensor(run.get_output_details()[0]["index"]) == 2  # the second anchor lies outside the image


def test_levels_follow_from_box_areas():
    sides = [4, 111, 112, 223, 224, 447, 448, 900]
    boxes = tf.constant([[0.0, 0, side, side] for side in sides])
    levels = pooling.assign_levels(boxes).numpy() + 2
    assert levels.tolist() == [twin.level(box) for box in boxes.numpy()] == [2, 2, 3, 3, 4, 4, 5, 5]
    assert pooling.assign_levels(tf.zeros([1, 4])).numpy().tolist() == [0]  # a box without area


def test_each_box_is_pooled_from_its_level():
    rng = np.random.default_rng(3)
    maps = [rng.normal(size=(2, 512 // stride, 640 // stride, 3)).astype(np.float32) for stride in (4, 8, 16, 32)]
    boxes = np.stack([random_boxes(rng, 12, 2.0, 512, 640) for _ in range(2)])
    boxes[0, :3] = [[0, 0, 640, 512], [0, 0, 3, 2], [600, 500, 640, 512]]
    boxes[1, :2] = [[-90, 400, -20, 530], [500, -300, 900, 200]]  # samples far outside are 0
    pooled = pooling.pool([tf.constant(m) for m in maps], tf.constant(boxes), (4, 8, 16, 32), 7)
    assert len({twin.level(box) for box in boxes.reshape(-1, 4)}) == 4
    for image, row in np.ndindex(2, 12):
        level = twin.level(boxes[image, row])
        expected = twin.roi_align(maps[level - 2][image], boxes[image, row], 2**level, 7)
        np.testing.assert_allclose(pooled[image, row], expected, atol=2e-4)


def test_gathered_samples_equal_crops():
    rng = np.random.default_rng(3)
    maps = [tf.constant(rng.normal(size=(2, 48 // s, 64 // s, 5)), tf.float32) for s in (1, 2, 4, 8)]
    corners = rng.uniform(-30, 290, (2, 40, 2, 2))
    boxes = tf.constant(np.concatenate([corners.min(2), corners.max(2)], -1), tf.float32)
    for levels, strides in ((maps, (4, 8, 16, 32)), (maps[2:3], (16,))):
        expected = pooling.pool(levels, boxes, strides, 7)
        with tracing_for(ONNX):
            received = pooling.pool(levels, boxes, strides, 7)
        assert np.abs(expected).max() > 1
        np.testing.assert_allclose(received, expected, atol=1e-4)


def small_pyramid():
    rng = np.random.default_rng(5)
    return [tf.constant(rng.normal(size=(2, 512 // stride, 512 // stride, 3)), tf.float32) for stride in STRIDES[:4]]


def random_boxes_of_all_levels():
    """Returns (2, 5, 4) float32 boxes, of which each image has one on P3, P4 and P5 and two on P2."""
    places = np.random.default_rng(6).uniform(0, 60, (2, 5, 2))
    sides = np.array([[450, 30, 250, 120, 50], [20, 230, 90, 440, 130]])[..., None] * [1, 1.1]
    return np.concatenate([places, places + sides], -1).astype(np.float32)


@pytest.mark.parametrize("target", [TENSORFLOW, ONNX])
def test_pooling_by_level_only_changes_the_order(target):
    features, boxes = small_pyramid(), tf.constant(random_boxes_of_all_levels())
    expected = pooling.pool(features, boxes, STRIDES[:4], 7)
    with tracing_for(target):
        pooled, places = pooling.pool_by_level(features, boxes, STRIDES[:4], 7)
    assert sorted(places.numpy().ravel()) == list(range(10)) and pooled.shape == (10, 7, 7, 3)
    assert (places.numpy().ravel() == range(10)).all() == (target == ONNX)
    np.testing.assert_allclose(tf.gather(pooled, places), expected, atol=1e-4)


def test_gradients_of_crops_equal_those_of_gathered_samples():
    features, boxes = small_pyramid(), tf.constant(random_boxes_of_all_levels())
    factors = tf.constant(np.random.default_rng(7).normal(size=(2, 5, 7, 7, 3)), tf.float32)

    def gradients(target):
        with deterministic_ops(), tf.GradientTape() as tape, tracing_for(target):
            tape.watch(features)
            total = tf.reduce_sum(factors * pooling.pool(features, boxes, STRIDES[:4], 7))
            return tape.gradient(total, features)

    for received, expected in zip(gradients(TENSORFLOW), gradients(ONNX), strict=True):
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(received, tf.convert_to_tensor(expected), atol=1e-4)


def test_grids_of_samples_wait_for_each_other():
    def pooled(maps, boxes):
        return pooling.pool([maps], boxes, (16,), 7)

    graph = tf.function(pooled).get_concrete_function(tf.TensorSpec([1, 4, 4, 8]), tf.TensorSpec([1, 5, 4])).graph
    grids = [operation for operation in graph.get_operations() if operation.type == "CropAndResize"]
    assert [[one.type for one in grid.control_inputs] for grid in grids] == [
        [],
        ["CropAndResize"],
        ["AddV2"],
        ["AddV2"],
    ]


@pytest.mark.parametrize("target", [ONNX, LITERT])
@pytest.mark.parametrize("shared", [True, False])
def test_suppression_is_equal_for_every_export_target(target, shared):
    rng = np.random.default_rng(4)
    low = rng.uniform(0, 60, (1, 50, 1 if shared else 3, 2))
    boxes = tf.constant(np.concatenate([low, low + rng.uniform(5, 40, low.shape)], -1), tf.float32)
    scores = tf.constant(rng.uniform(0, 1, (1, 50, 3)), tf.float32)
    for count in (10, 200):  # limited, and padded
        expected = suppress(boxes, scores, 0.3, 0.4, count)
        with tracing_for(target):
            received = suppress(boxes, scores, 0.3, 0.4, count)
        assert 3 < expected["num_detections"][0] < 150
        for name, value in expected.items():
            np.testing.assert_array_equal(received[name], value)


def test_gradients_reach_the_maps_and_not_the_boxes():
    maps, boxes = tf.ones([1, 8, 8, 1]), tf.constant([[[0.0, 0, 60, 60]]])
    with tf.GradientTape() as tape:
        tape.watch([maps, boxes])
        total = tf.reduce_sum(pooling.pool([maps], boxes, (8,), 2))
    of_maps, of_boxes = tape.gradient(total, [maps, boxes])
    assert of_boxes is None and float(tf.reduce_sum(of_maps)) == pytest.approx(4.0, abs=1e-5)


def test_rpn_losses_agree_with_the_twin(monkeypatch):
    rng = np.random.default_rng(4)
    table = twin.anchors(6, 8, 8, [12, 24]).astype(np.float32)
    things = [[(box, 0) for box in random_boxes(rng, 5, 8.0)], []]
    objectness, deltas = rng.normal(size=(2, len(table))), rng.normal(size=(2, len(table), 4))
    drawn = []
    monkeypatch.setattr(proposals, "sample", lambda *a: drawn.append(matching.sample(*a)) or drawn[-1])
    truth = truth_of(*things)
    arguments = (tf.constant(objectness, tf.float32), tf.constant(deltas, tf.float32), tf.constant(table), truth)
    losses = proposals.rpn_losses(*arguments, [1, 2])
    rows = [r[d] for r, d in zip(drawn[0].rows.numpy(), drawn[0].drawn.numpy(), strict=True)]
    labels, boxes = [], []
    for image, own in zip(things, rows, strict=True):
        kinds, owners = twin.match_anchors(table, [box for box, _ in image])
        labels.append(kinds[own])
        boxes.append([image[owners[row]][0] if image else table[row] for row in own])
    assert (labels[0] == 1).sum() > 2 and all(len(own) == 256 for own in rows)
    assert min(map(min, labels)) >= 0  # no ignored anchor
    np.testing.assert_allclose(losses, twin.rpn_losses(objectness, deltas, table, rows, labels, boxes), rtol=1e-5)


def test_rpn_learns_from_at_most_half_positives():
    box, far = (8.0, 8, 40, 40), (100.0, 100, 120, 120)
    table = tf.constant([box] * 300 + [far] * 300)
    # Every positive anchor equals its box, so its targets are 0. Each positive thus adds a distance of 1.
    deltas = tf.constant([[[1.0, 0, 0, 0]] * 600])
    loss = proposals.rpn_losses(tf.zeros([1, 600]), deltas, table, truth_of([(box, 0)]), [1, 2])[1]
    assert float(loss) == pytest.approx(128 / 256)


def random_weights(layer, seed):
    """Sets every weight of a layer at random, biases too, and returns them as float64."""
    rng = np.random.default_rng(seed)
    layer.set_weights([rng.normal(size=weight.shape) for weight in layer.weights])
    return [np.asarray(weight, np.float64) for weight in layer.weights]


def test_box_head_is_two_dense_layers_with_relu():
    head = PyramidRegions(6)
    head.build((None, None, None, 3))
    kernel_1, bias_1, kernel_2, bias_2 = random_weights(head, 9)
    features, boxes = small_pyramid(), tf.constant(random_boxes_of_all_levels())
    maps = pooling.pool(features, boxes, STRIDES[:4], 7).numpy()
    hidden = np.maximum(maps.reshape(2, 5, -1) @ kernel_1 + bias_1, 0)
    expected = np.maximum(hidden @ kernel_2 + bias_2, 0)
    assert (hidden == 0).any() and (expected == 0).any() and (expected > 0).any()
    vectors, shared = head.vectors(features, boxes, training=True)
    assert shared is None
    np.testing.assert_allclose(vectors, expected, rtol=1e-4, atol=1e-4)


def test_mask_head_has_relu_after_every_layer_but_the_last():
    head = MaskHead(classes=2, channels=4, convs=1)
    head.build((5, 5, 3))
    conv, up, last = np.array(random_weights(head, 11), object).reshape(3, 2)
    maps = np.random.default_rng(12).normal(size=(1, 2, 5, 5, 3))
    found = head(tf.constant(maps, tf.float32)).numpy()
    assert found.shape == (1, 2, 10, 10, 2)
    for row in range(2):
        hidden = np.maximum(twin.convolve(maps[0, row], *conv), 0)
        doubled = np.maximum(twin.upsample(hidden, *up), 0)
        assert (hidden == 0).any() and (doubled == 0).any()
        np.testing.assert_allclose(found[0, row], twin.convolve(doubled, *last), rtol=1e-4, atol=1e-3)


def test_regions_of_a_step_are_drawn_from_proposals():
    rng = np.random.default_rng(5)
    things = [[(box, label) for label, box in enumerate(random_boxes(rng, 3, 10.0))], []]
    found = np.stack([random_boxes(rng, 40) for _ in range(2)])
    valid = np.ones((2, 40), bool)
    valid[1, 6:] = False
    truth = truth_of(*things)
    drawn = regions.sample_regions(tf.constant(found), tf.constant(valid), truth, 7, 16, [1, 2])
    number = drawn.drawn.numpy().sum(1)
    assert number.tolist() == [16, 6] and drawn.positive.numpy()[0].sum() in (3, 4)
    assert set(map(tuple, drawn.boxes.numpy()[1])) == set(map(tuple, found[1, :6]))  # the rest are repeats
    pool = {tuple(box) for box in found[0]} | {tuple(np.float32(box)) for box, _ in things[0]}
    for image in range(2):
        for row in range(number[image]):
            box = drawn.boxes.numpy()[image, row]
            overlaps = [twin.iou(box, thing) for thing, _ in things[image]]
            positive = bool(overlaps) and max(overlaps) >= 0.5
            assert positive == drawn.positive.numpy()[image, row]
            assert drawn.classes.numpy()[image, row] == (np.argmax(overlaps) if positive else 7)
            assert image == 1 or tuple(box) in pool


def test_ground_truth_boxes_are_proposals_too():
    truth = truth_of([((5.0, 5, 25, 30), 2)])
    nothing = tf.zeros([1, 8, 4]), tf.zeros([1, 8], tf.bool)
    drawn = regions.sample_regions(*nothing, truth, 7, 8, [1, 2])
    assert drawn.drawn.numpy().tolist() == [[True] + [False] * 7]
    np.testing.assert_array_equal(drawn.boxes[0], [[5, 5, 25, 30]] * 8)
    assert drawn.classes.numpy()[0, 0] == 2


def test_region_losses_agree_with_the_twin():
    rng = np.random.default_rng(6)
    boxes, owners = random_boxes(rng, 12), random_boxes(rng, 12)
    classes, drawn = rng.integers(0, 4, 12), np.arange(12) % 6 < 5
    logits, deltas = rng.normal(size=(12, 4)), rng.normal(size=(12, 3, 4))
    table = regions.Regions(
        *(tf.reshape(tf.constant(x), [2, 6, *x.shape[1:]]) for x in (boxes, classes)),
        tf.constant([range(6)] * 2),
        tf.reshape(drawn, [2, 6]),
        tf.reshape(drawn & (classes < 3), [2, 6]),
    )
    truth = GroundTruth(tf.reshape(owners, [2, 6, 4]), tf.zeros([2, 6], tf.int32), tf.ones([2, 6], tf.bool))
    arguments = (
        tf.reshape(tf.cast(logits, tf.float32), [2, 6, 4]),
        tf.reshape(tf.cast(deltas, tf.float32), [2, 6, 3, 4]),
    )
    losses = regions.region_losses(*arguments, table, truth)
    np.testing.assert_allclose(losses, twin.region_losses(logits, deltas, boxes, classes, owners, drawn), rtol=1e-5)


def test_detections_agree_with_the_twin_by_class():
    rng = np.random.default_rng(7)
    found = np.stack([random_boxes(rng, 30) for _ in range(2)])
    logits, deltas = rng.normal(size=(2, 30, 4)) * 2, rng.normal(size=(2, 30, 3, 4))
    sizes, valid = np.array([[H, W], [30, 40]], np.float32), np.ones((2, 30), bool)
    valid[:, 25:] = False
    for threshold, count in ((0.05, 20), (0.5, 20), (0.0, 8)):
        result = regions.detections(
            *(tf.constant(x, tf.float32) for x in (logits, deltas, found)), valid, sizes, threshold, 0.5, count
        )
        for i in range(2):
            rows = (logits[i, :25], deltas[i, :25], found[i, :25])
            expected = twin.detections(*rows, *sizes[i], threshold, 0.5, count)
            number = int(result["num_detections"][i])
            assert number == len(expected) > 0
            np.testing.assert_allclose(result["confidence"][i, :number], [row[0] for row in expected], rtol=1e-5)
            np.testing.assert_array_equal(result["classes"][i, :number], [row[1] for row in expected])
            np.testing.assert_allclose(result["boxes"][i, :number], [row[2] for row in expected], atol=1e-3)
            for name in ("boxes", "classes", "confidence"):
                assert (result[name][i, number:].numpy() == -1).all()


def test_mask_targets_agree_with_the_twin():
    rng = np.random.default_rng(8)
    boxes, rois = random_boxes(rng, 6, 10.0), random_boxes(rng, 6, 10.0)
    rois[0] = boxes[0]
    shapes = (rng.uniform(size=(6, 5, 7)) > 0.4).astype(np.float32)
    targets = masks.mask_targets(rois, boxes, tf.constant(shapes), 9)
    for i in range(6):
        differ = targets[i].numpy() != twin.mask_target(rois[i], boxes[i], shapes[i], 9)
        assert differ.sum() <= 1  # a value at the threshold may round either way
    whole = masks.mask_targets(boxes, boxes, tf.ones([6, 56, 56]), 28)
    assert whole.numpy().all()


def test_mask_loss_counts_positives_and_their_class():
    logits = np.zeros((1, 2, 4, 4, 3), np.float32)
    logits[0, 0, ..., 2] = 100.0
    logits[0, 1] = 50.0  # not positive
    box = (8.0, 8, 40, 40)
    truth = truth_of([(box, 2)])._replace(masks=tf.ones([1, 2, 56, 56]))
    arguments = (tf.constant([[box] * 2]), tf.constant([[2, 0]]), tf.constant([[0, 0]]))
    loss = masks.mask_loss(tf.constant(logits), *arguments, tf.constant([[True, False]]), truth)
    assert float(loss) == 0.0
    other = (arguments[0], tf.constant([[1, 0]]), arguments[2])
    loss = masks.mask_loss(tf.constant(logits), *other, tf.constant([[True, False]]), truth)
    assert float(loss) == pytest.approx(np.log(2), rel=1e-5)
    assert float(masks.mask_loss(tf.zeros([1, 2, 4, 4, 3]), *other, tf.zeros([1, 2], tf.bool), truth)) == 0.0


def test_padding_rows_are_not_valid_boxes():
    truth = truth_of([((1.0, 2, 3, 4), 0), ((5.0, 5, 5, 9), 1)], [])
    assert truth.valid.numpy().tolist() == [[True, False, False], [False] * 3]
    assert (truth.boxes.numpy()[..., 2:] > truth.boxes.numpy()[..., :2]).all()
    padding = truth.boxes[:, 1:2]  # a region on a padding row matches nothing
    assert not matching.match_rois(padding, truth)[0].numpy().any()
