"""Tests of RetinaNet: targets and decoding agree, frozen parts stay fixed, and saved files load unchanged."""

import keras
import keras_cv
import numpy as np
import pytest
import tensorflow as tf

from dupr_tf.data.inspection import matched_boxes
from dupr_tf.data.placing import to_original
from dupr_tf.detection.dense import labels_of
from dupr_tf.detection.parts.boxes import decode
from dupr_tf.detection.parts.pyramid import FeaturePyramid
from dupr_tf.detection.retinanet import (
    ANCHORS_PER_CELL,
    Anchors,
    PredictionHead,
    RetinaNet,
)
from dupr_tf.detection.saving import export_detector, load_detector
from dupr_tf.detection.scaling import letterbox, scaled_batch
from dupr_tf.errors import UserError
from dupr_tf.models.layers import norm_layers
from dupr_tf.models.resnet import build_backbone
from tests import oracles_rcnn as twin
from tests.detection.saved_file import check_reload, saved_names

SIZE = 64
NAMES = ("bus", "cat", "dog")
CELLS = sum((SIZE // stride) ** 2 for stride in (8, 16, 32, 64)) + 1  # P3 to P7


def make(**arguments):
    backbone = build_backbone("resnet18", width=0.125, include_normalization=True)
    defaults = {"fpn_channels": 8, "head_channels": 8, "head_convs": 1, "score_threshold": 0.001, "max_detections": 20}
    return RetinaNet(backbone, NAMES, SIZE, **(defaults | arguments))


def batch(count=2, boxes=((8, 8, 40, 40),), classes=(1,), padding=2):
    rng = np.random.default_rng(0)
    table = np.concatenate([np.array(boxes, np.float32).reshape(-1, 4), np.full((padding, 4), -1, np.float32)])
    labels = np.concatenate([np.array(classes, np.float32), np.full(padding, -1, np.float32)])
    return {
        "images": tf.constant(rng.uniform(0, 255, (count, SIZE, SIZE, 3)), tf.float32),
        "bounding_boxes": {
            "boxes": tf.constant(np.stack([table] * count)),
            "classes": tf.constant(np.stack([labels] * count)),
        },
    }


@pytest.fixture(scope="module")
def detector():
    """Returns a small detector with weights moved as by training, so that detections and statistics differ."""
    keras.utils.set_random_seed(1)
    model = make()
    model(batch()["images"], training=True)  # the backbone's moving statistics
    for layer in (*model.classification_head.hidden, *model.box_head.hidden):
        layer.kernel.assign(keras.random.normal(layer.kernel.shape, stddev=0.1, seed=2))
    for head in (model.classification_head, model.box_head):
        kernel = head.prediction.kernel
        kernel.assign(keras.random.normal(kernel.shape, stddev=0.05, seed=3))
    model.compile(keras.optimizers.SGD(0.01))
    return model


def eager(model, images):
    return model.decode_predictions(model(images, training=False), images)


def test_new_detector_predicts_the_prior_at_every_level():
    outputs = make()(batch()["images"], training=True)
    assert outputs["classification"].shape == (2, CELLS * ANCHORS_PER_CELL, 3)
    assert outputs["box"].shape == (2, CELLS * ANCHORS_PER_CELL, 4)
    probabilities = tf.sigmoid(outputs["classification"]).numpy()
    assert np.median(probabilities) == pytest.approx(0.01, rel=0.1) and np.mean(probabilities) < 0.02


@pytest.mark.parametrize(("channels", "deviation"), [(256, 0.01), (64, 0.02), (16, 0.04)])
def test_heads_of_any_width_start_with_the_papers_signal(channels, deviation):
    head = PredictionHead(36, channels, 2)
    head.build((None, None, None, channels))
    for layer in (*head.hidden, head.prediction):
        assert np.std(layer.kernel) == pytest.approx(deviation, rel=0.05)
        assert np.abs(layer.kernel).max() > 2.5 * deviation  # normal, not truncated


def test_parameter_count_is_that_of_the_papers_size():
    # P3 to P5: 1x1 from 128, 256, 512 and 3x3, without bias, BN of 4. P6, P7 have bias. Heads: 4 shared convolutions.
    backbone = build_backbone("resnet18", include_normalization=True)
    model = RetinaNet(backbone, NAMES, SIZE)
    pyramid = 256 * (128 + 256 + 512) + 3 * 9 * 256**2 + 6 * 4 * 256 + 9 * 256 * (512 + 256) + 2 * 256
    heads = 2 * 4 * (9 * 256**2 + 256) + 9 * 256 * 9 * (3 + 4) + 9 * (3 + 4)
    assert model.count_params() == backbone.count_params() + pyramid + heads


def test_box_in_the_padding_alone_is_no_detection():
    model, data = make(score_threshold=0.5), batch(boxes=[[6, 9, 40, 45], [50, 2, 62, 30]], classes=[2, 0], padding=3)
    deltas, targets = model.label_encoder(data["images"], dict(data["bounding_boxes"]))
    outputs = {"box": deltas, "classification": tf.one_hot(tf.cast(targets, tf.int32), 3) * 20.0 - 10.0}
    assert model.decode_predictions(outputs, data["images"])["num_detections"].numpy().tolist() == [2, 2]
    found = model.decode_predictions(outputs, data["images"], tf.constant([[64.0, 48.0], [64.0, 51.0]]))
    assert found["num_detections"].numpy().tolist() == [1, 2]
    assert found["classes"][0, :2].numpy().tolist() == [2, -1]


@pytest.mark.parametrize("scale", [3.0, 4.0])
def test_encoded_truth_decodes_to_itself(scale):
    boxes, classes = [[6, 9, 40, 45], [30, 2, 62, 30]], [2, 0]
    model = make(anchor_scale=scale, score_threshold=0.5)
    data = batch(boxes=boxes, classes=classes, padding=3)
    deltas, targets = model.label_encoder(data["images"], dict(data["bounding_boxes"]))
    assert (targets.numpy() >= 0).sum() > 0
    logits = tf.one_hot(tf.cast(targets, tf.int32), 3) * 20.0 - 10.0
    found = model.decode_predictions({"box": deltas, "classification": logits}, data["images"])
    for i in range(2):
        count = int(found["num_detections"][i])
        assert count == 2
        order = np.argsort(found["classes"][i, :count])
        np.testing.assert_array_equal(found["classes"][i, :count].numpy()[order], [0, 2])
        np.testing.assert_allclose(found["boxes"][i, :count].numpy()[order], boxes[::-1], atol=1e-3)


def loss_of(model, data, outputs=None):
    outputs = model(data["images"], training=False) if outputs is None else outputs
    return float(model.compute_loss(data["images"], data["bounding_boxes"], outputs, None))


def test_padding_does_not_change_the_loss(detector):
    assert loss_of(detector, batch(padding=5)) == pytest.approx(loss_of(detector, batch(padding=1)), rel=1e-5)
    assert loss_of(detector, batch()) > 0


def test_loss_without_boxes_is_focal_loss_of_background(detector):
    """The sum is divided by 1, since no anchor is positive, and the box loss is 0."""
    data = batch(boxes=(), classes=(), padding=3)
    targets = detector.label_encoder(data["images"], dict(data["bounding_boxes"]))[1].numpy()
    assert (targets == -1).all()
    logits = np.random.default_rng(3).normal(size=(*targets.shape, 3)) - 2
    outputs = {"box": tf.ones([*targets.shape, 4]), "classification": tf.constant(logits, tf.float32)}
    expected = twin.focal_loss(logits, np.zeros(logits.shape))
    assert loss_of(detector, data, outputs) == pytest.approx(expected, rel=1e-4)


def test_images_without_boxes_lower_all_scores():
    model, data = make(), batch(boxes=(), classes=(), padding=3)
    model.compile(keras.optimizers.SGD(0.01))
    kernel = model.classification_head.prediction.kernel.numpy()
    losses = [model.train_on_batch(data, return_dict=True)["loss"] for _ in range(4)]
    assert 0 < losses[-1] < losses[0]
    assert (model.classification_head.prediction.kernel.numpy() != kernel).any()


def test_box_loss_is_smooth_l1_with_a_cutoff_of_1(detector):
    data = batch(boxes=[[8, 8, 40, 40]], classes=[1])
    targets, classes = detector.label_encoder(data["images"], dict(data["bounding_boxes"]))
    logits = tf.zeros([*classes.shape, 3])

    def loss(error):
        outputs = {"box": targets + error, "classification": logits}
        return float(detector.compute_loss(data["images"], data["bounding_boxes"], outputs, None))

    # A mean over the four deltas and over the positive anchors: half the square up to 1, the distance minus ½ beyond.
    for error, expected in ((0.5, 0.125), (-0.9, 0.405), (2.0, 1.5)):
        assert loss(error) - loss(0.0) == pytest.approx(expected, abs=1e-3)


def test_class_loss_is_focal_loss_over_positive_anchors(detector):
    data = batch(boxes=[[8, 8, 40, 40]], classes=[1])
    deltas, classes = detector.label_encoder(data["images"], dict(data["bounding_boxes"]))
    logits = np.random.default_rng(3).normal(size=(*classes.shape, 3)) * 2
    outputs = {"box": deltas, "classification": tf.constant(logits, tf.float32)}
    loss = float(detector.compute_loss(data["images"], data["bounding_boxes"], outputs, None))
    counted, classes = classes.numpy() != -2, classes.numpy()
    expected = twin.focal_loss(logits[counted], np.eye(4)[classes.astype(int)][..., :3][counted])
    assert loss == pytest.approx(expected / (classes >= 0).sum(), rel=1e-4)


def test_fit_accepts_batches_without_boxes():
    empty, full = batch(padding=0, boxes=(), classes=()), batch(padding=0)
    spec = tf.nest.map_structure(lambda x: tf.TensorSpec([None, None, *x.shape[2:]], x.dtype), full)
    model = make()
    model.compile(keras.optimizers.SGD(0.01))
    dataset = tf.data.Dataset.from_generator(lambda: [empty, full], output_signature=spec)
    loss = model.fit(dataset, steps_per_epoch=2, verbose=0, shuffle=False).history["loss"][0]
    assert 0 < loss < 100 and all(np.isfinite(weight).all() for weight in model.get_weights())


def test_single_image_trains_if_norms_are_frozen():
    model, data = make(norm="frozen", fpn_norm=False), batch(count=1)
    norms = [layer.get_weights() for layer in norm_layers(model)]
    model.compile(keras.optimizers.SGD(0.01))
    kernel = model.backbone.get_layer("conv1_conv").kernel
    before = kernel.numpy()
    assert np.isfinite(model.train_on_batch(data, return_dict=True)["loss"])
    assert (kernel.numpy() != before).any() and np.isfinite(kernel.numpy()).all()
    for layer, old in zip(norm_layers(model), norms, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(layer.get_weights(), old, strict=True))


@pytest.mark.parametrize("labels", [{}, {"bounding_boxes": batch(padding=0, boxes=(), classes=())["bounding_boxes"]}])
def test_labels_without_boxes_have_one_row_of_padding(labels):
    _, boxes, classes = labels_of({"images": batch()["images"], **labels})
    assert boxes.numpy().tolist() == [[[-1.0] * 4]] * 2 and classes.numpy().tolist() == [[-1.0]] * 2


def test_feature_pyramid_matches_its_numpy_twin():
    pyramid, rng = FeaturePyramid(3, norm=False), np.random.default_rng(0)
    levels = {name: rng.normal(size=(1, 2**n, 2**n, n + 1)) for name, n in (("P3", 4), ("P4", 3), ("P5", 2))}
    pyramid.build({name: maps.shape for name, maps in levels.items()})
    pyramid.set_weights([rng.normal(size=weight.shape) for weight in pyramid.weights])

    def twin_of(part, maps, stride=1):
        (conv,) = part.layers
        return twin.convolve(maps, np.asarray(conv.kernel), np.asarray(conv.bias), stride)

    def doubled(maps):
        return maps.repeat(2, axis=0).repeat(2, axis=1)

    lateral = {name: twin_of(pyramid.lateral[name], maps[0]) for name, maps in levels.items()}
    p5 = lateral["P5"]
    p4 = lateral["P4"] + doubled(p5)
    p3 = lateral["P3"] + doubled(p4)
    expected = [twin_of(pyramid.output_convs[name], maps) for name, maps in (("P3", p3), ("P4", p4), ("P5", p5))]
    p6 = twin_of(pyramid.p6, levels["P5"][0], 2)
    assert (p6 < 0).any() and (p6 > 0).any()
    expected += [p6, twin_of(pyramid.p7, np.maximum(p6, 0), 2)]
    found = pyramid({name: tf.constant(maps, tf.float32) for name, maps in levels.items()})
    for level, twins in zip(found, expected, strict=True):
        np.testing.assert_allclose(level[0], twins, rtol=1e-4, atol=1e-3)


def test_nms_is_per_class():
    model = make(score_threshold=0.5)
    data = batch(boxes=[[8, 8, 40, 40]], classes=[1])
    deltas, targets = model.label_encoder(data["images"], dict(data["bounding_boxes"]))
    positive = tf.cast(targets >= 0, tf.float32)[..., None]
    logits = positive * tf.constant([10.0, 12.0, 0.0]) * 2 - 10.0  # two classes on the same box
    found = model.decode_predictions({"box": deltas, "classification": logits}, data["images"])
    assert found["num_detections"].numpy().tolist() == [2, 2]
    assert set(found["classes"][0, :2].numpy()) == {0, 1}


@pytest.mark.parametrize("frozen", [True, False])
def test_only_frozen_norms_keep_all_their_values(frozen):
    model = make(norm="frozen" if frozen else "train")
    backbone, pyramid = norm_layers(model.backbone), norm_layers(model.feature_pyramid)
    assert len(backbone) == 20 and len(pyramid) == 6
    before = [layer.moving_mean.numpy() for layer in (*backbone, *pyramid)]
    model(batch()["images"], training=True)
    same = [np.array_equal(a, layer.moving_mean) for a, layer in zip(before, (*backbone, *pyramid), strict=True)]
    assert same == [frozen] * 20 + [False] * 6
    trained = {id(variable) for variable in model.trainable_variables}
    assert all((id(layer.gamma) in trained) != frozen and (id(layer.beta) in trained) != frozen for layer in backbone)
    assert all(id(layer.gamma) in trained for layer in pyramid)
    assert id(model.backbone.get_layer("conv1_conv").kernel) in trained


def test_loaded_detector_detects_the_same(detector, tmp_path):
    images = batch()["images"]
    _, expected = check_reload(detector, lambda model: eager(model, images), tmp_path)
    assert expected["num_detections"].numpy().min() > 0
    named, paths = saved_names(tmp_path / "detector.keras")
    assert named == ("dupr_tf.detection.retinanet", "RetinaNet", "dupr_tf>RetinaNet") and len(paths) == 142
    norm = "layers/feature_pyramid/output_convs/sequential_2/layers/fused_batch_normalization/vars/3"
    assert {norm, "layers/feature_pyramid/p7/layers/conv2d/vars/1"} < paths


def test_saved_model_detects_the_same(detector, tmp_path):
    export_detector(detector, tmp_path / "saved_model")
    served = tf.saved_model.load(str(tmp_path / "saved_model"))
    images = tf.constant(np.random.default_rng(0).integers(0, 256, (3, 50, 90, 3)), tf.uint8)
    square, size = letterbox(images, SIZE)
    assert size.numpy().tolist() == [36, 64]  # of 50 x 90
    expected = detector.predict(square, verbose=0)
    full = served.signatures["serving_default"](images)
    np.testing.assert_array_equal(full["classes"], expected["classes"])
    np.testing.assert_allclose(full["scores"], expected["confidence"], atol=1e-6)
    clipped = to_original(expected["boxes"], [36 / 50, 64 / 90], (50, 90))
    np.testing.assert_allclose(full["boxes"], np.where(expected["classes"][..., None] >= 0, clipped, -1), atol=1e-3)
    assert [name.decode() for name in served.class_names().numpy()] == list(NAMES)


def test_pyramid_without_norms_has_none():
    assert norm_layers(make(fpn_norm=False).feature_pyramid) == []


def test_retinanet_refuses_sides_not_multiple_of_32():
    with pytest.raises(UserError) as error:
        RetinaNet(build_backbone("resnet18", width=0.125), NAMES, 100)
    assert error.value.field == "image_size"


def test_loading_another_file_as_a_detector_is_refused(tmp_path):
    with pytest.raises(UserError) as error:
        load_detector("nowhere.keras")
    assert error.value.field == "detector" and "nowhere.keras" in error.value.problem
    keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]).save(tmp_path / "detector.keras")
    with pytest.raises(UserError) as error:
        load_detector(tmp_path)
    assert error.value.field == "detector"
    assert str(tmp_path) in error.value.problem and "Sequential" in error.value.problem


@pytest.mark.parametrize(("height", "width"), [(64, 96), (256, 160), (32, 32)])
def test_anchors_of_fixed_and_dynamic_size_equal_kerascv(height, width):
    theirs = keras_cv.models.RetinaNet.default_anchor_generator("xyxy")(image_shape=(height, width, 3))
    ours = Anchors(4.0)
    unknown = tf.function(lambda image: ours(tf.shape(image)), input_signature=[tf.TensorSpec((None, None, 3))])
    for found in (ours((height, width, 3)), unknown(tf.zeros([height, width, 3]))):
        assert found.keys() == theirs.keys()
        for level, boxes in theirs.items():
            np.testing.assert_allclose(found[level], boxes, atol=1e-3)


def of_any_size(**arguments):
    keras.utils.set_random_seed(1)
    backbone = build_backbone("resnet18", width=0.125, include_normalization=True)
    defaults = {"fpn_channels": 8, "head_channels": 8, "head_convs": 1, "score_threshold": 0.001, "max_detections": 20}
    return RetinaNet(backbone, NAMES, None, **(defaults | arguments))


def test_dynamic_size_detector_equals_one_of_fixed_size(detector):
    twin = of_any_size()
    twin.set_weights(detector.get_weights())
    images = batch()["images"]
    for name, value in eager(detector, images).items():
        np.testing.assert_array_equal(eager(twin, images)[name], value)
    wide = tf.pad(images, [[0, 0], [0, 32], [0, 96], [0, 0]])  # (2, 96, 160, 3)
    sizes = tf.constant([[64.0, 64.0], [50.0, 150.0]])
    found = twin.predict_on_batch({"images": wide, "image_sizes": sizes})
    bare = twin.predict_on_batch(wide)
    assert found["num_detections"].min() > 0
    for i, (height, width) in enumerate(sizes.numpy()):
        count = found["num_detections"][i]
        clipped = np.clip(bare["boxes"][i], 0, [width, height, width, height])
        expected = clipped[(clipped[:, 2:] > clipped[:, :2]).all(1)][:count]  # the others are in the padding alone
        assert len(expected) > 0
        np.testing.assert_allclose(found["boxes"][i, : len(expected)], expected, atol=1e-4)
        assert (found["boxes"][i, :count, 2:] > found["boxes"][i, :count, :2]).all()
        assert (found["boxes"][i, count:] == -1).all() and (found["classes"][i, count:] == -1).all()


@pytest.mark.slow
def test_sizes_may_differ_between_training_batches():
    model = of_any_size(norm="sync")
    assert all(layer.synchronized for layer in norm_layers(model))
    model.compile(keras.optimizers.SGD(0.001))
    square = batch(boxes=[[8, 8, 40, 40]], classes=[1], padding=0)
    masks = tf.zeros([2, 1, 56, 56])
    square["bounding_boxes"]["masks"] = masks  # masks, as read for Mask R-CNN, are ignored
    wide = {**square, "images": tf.pad(square["images"], [[0, 0], [0, 0], [0, 32], [0, 0]])}
    losses = [model.train_on_batch(one, return_dict=True) for one in (square, wide)]
    for logs in losses:
        assert np.isfinite(logs["loss"])
        assert logs["loss"] == pytest.approx(logs["classification_loss"] + logs["box_loss"], rel=1e-4)


@pytest.mark.slow
def test_saved_model_of_any_size_scales_as_in_evaluation(detector, tmp_path):
    twin = of_any_size(test_short_side=48, max_long_side=80)
    twin.set_weights(detector.get_weights())
    image = np.random.default_rng(0).integers(0, 256, (1, 40, 100, 3), np.uint8)
    padded, size = scaled_batch(image, 48, 80)  # the long side decides: 80 / 100
    assert padded.shape == (1, 32, 96, 3) and size.numpy().tolist() == [32, 80]
    expected = twin.predict_on_batch({"images": padded, "image_sizes": [[32.0, 80.0]]})
    export_detector(twin, tmp_path)
    served = tf.saved_model.load(str(tmp_path))
    found = served.serve(tf.constant(image))
    count = int(found["num_detections"][0])
    assert count == expected["num_detections"][0] > 0
    boxes = np.clip(expected["boxes"][0, :count] / 0.8, 0, [100, 40, 100, 40])
    np.testing.assert_allclose(found["boxes"][0, :count], boxes, atol=1e-3)


@pytest.mark.parametrize("scale", [2.0, 4.0])
def test_matched_boxes_agree_with_the_encoder(scale):
    model, rng, seen = make(anchor_scale=scale), np.random.default_rng(0), []
    anchors = tf.concat(list(model.anchor_generator((SIZE, SIZE, 3)).values()), 0)
    for _ in range(8):
        corners = np.sort(rng.uniform(0, SIZE, (6, 2, 2)), 1)
        boxes = corners.reshape(6, 4).astype(np.float32)
        deltas, classes = model.label_encoder(
            tf.zeros([1, SIZE, SIZE, 3]), {"boxes": boxes[None], "classes": np.zeros([1, 6], np.float32)}
        )
        targets = decode(deltas, anchors, order="center_yxhw")[0].numpy()[classes[0].numpy() >= 0]  # (positives, 4)
        expected = (np.abs(targets[:, None] - boxes).max(-1) < 0.1).any(0)
        np.testing.assert_array_equal(matched_boxes(boxes, (SIZE, SIZE), scale, 0.5), expected)
        seen += expected.tolist()
    assert 0.2 < np.mean(seen) < 0.95
