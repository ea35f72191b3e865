"""Tests of the R-CNNs as Keras models: inputs, outputs, saving and refusals."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf

from dupr_tf.config import parse_config
from dupr_tf.data.placing import to_original
from dupr_tf.detection import rcnn
from dupr_tf.detection.rcnn import FasterRCNN
from dupr_tf.detection.registry import build_detector
from dupr_tf.detection.saving import export_detector
from dupr_tf.detection.scaling import scaled_batch
from dupr_tf.errors import UserError
from dupr_tf.models.layers import norm_layers
from dupr_tf.models.resnet import build_backbone
from tests.detection.rcnn.small import NAMES, ChainBackbone, batch, make
from tests.detection.saved_file import check_reload, saved_names

NECKS = pytest.mark.parametrize("neck", ["fpn", "c4"])
# A Mask R-CNN runs all parts of a Faster R-CNN.
EVERY = [("mask", "fpn"), ("mask", "c4"), *(pytest.param(("faster", n), marks=pytest.mark.slow) for n in ("fpn", "c4"))]


@pytest.fixture(scope="module", params=EVERY, ids="-".join)
def made(request):
    kind, neck = request.param
    return kind, neck, make(kind, neck, test_short_side=64, max_long_side=96)


def inputs(data):
    return {name: data[name] for name in ("images", "image_sizes")}


def same(found, expected, atol=1e-4):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=atol, err_msg=name)


def test_detections_lie_in_the_picture_padded_with_minus_one(made):
    kind, neck, detector = made
    found = detector(inputs(batch(kind, sizes=[(64, 96), (40, 50)])))
    number = found["num_detections"].numpy()
    assert number.min() >= 1 and number.max() < 30
    assert found["boxes"].shape == (2, 30, 4) and found["classes"].shape == found["confidence"].shape == (2, 30)
    assert found["boxes"].numpy()[1].max(0).tolist()[2] <= 50 and found["boxes"].numpy()[1].max(0).tolist()[3] <= 40
    assert found["boxes"].numpy()[0].max() > 50
    side = {"fpn": 28, "c4": 14}[neck]
    assert ("masks" in found) == (kind == "mask")
    if kind == "mask":
        assert found["masks"].shape == (2, 30, side, side) and found["masks"].numpy().max() <= 1
        assert all(masks[:count].min() > 0 for masks, count in zip(found["masks"].numpy(), number, strict=True))
    for i, count in enumerate(number):
        for name in set(found) - {"num_detections"}:
            assert (found[name][i, count:].numpy() == -1).all()
            assert (found[name][i, :count].numpy() >= 0).all()


def test_image_alone_and_in_a_batch_has_equal_detections(made):
    kind, _, detector = made
    data = inputs(batch(kind, sizes=[(64, 96), (40, 50)]))
    whole = detector(data)
    alone = detector({name: value[1:] for name, value in data.items()})
    same(alone, {name: value[1:] for name, value in whole.items()}, atol=3e-4)  # px; sums round differently
    everything = detector(data["images"][:1])  # without sizes the whole frame is picture
    same(everything, {name: value[:1] for name, value in whole.items()}, atol=3e-4)


def test_no_detections_are_all_minus_one(made, monkeypatch):
    kind, _, detector = made
    monkeypatch.setattr(detector, "score_threshold", 1.0)
    found = tf.function(detector.call)(inputs(batch(kind)))
    assert found.pop("num_detections").numpy().tolist() == [0, 0]
    assert all((value.numpy() == -1).all() and value.shape[:2] == (2, 30) for value in found.values())


def test_mask_loss_of_object_regions_equals_that_of_all(made, monkeypatch):
    kind, _, detector = made
    if kind == "faster":
        pytest.skip("has no masks")
    data = batch(kind, things=[[((8, 8, 60, 50), 1)], [((50, 20, 90, 60), 0), ((0, 0, 30, 30), 2)]])
    own = detector.losses(data, training=False)["mask_loss"]
    monkeypatch.setattr(rcnn.model, "most_positives", lambda regions: regions.boxes.shape[1])
    np.testing.assert_allclose(detector.losses(data, training=False)["mask_loss"], own, rtol=1e-5)
    assert float(own) > 0


def test_no_gradient_crosses_the_proposals(made):
    kind, _, detector = made
    with tf.GradientTape() as tape:
        losses = detector.losses(batch(kind), training=True)
        total = tf.add_n([value for name, value in losses.items() if not name.startswith("rpn")])
    of_rpn, of_backbone = tape.gradient(total, [detector.rpn.trainable_variables, detector.backbone.layers[2].kernel])
    assert of_rpn == [None] * 6 and float(tf.reduce_max(tf.abs(of_backbone))) > 0
    assert list(losses) == ["rpn_objectness_loss", "rpn_box_loss", "classification_loss", "box_loss"] + (
        ["mask_loss"] if kind == "mask" else []
    )


def test_every_weight_learns(made):
    kind, _, detector = made
    with tf.GradientTape() as tape:
        losses = detector.losses(batch(kind), training=True)
        total = tf.add_n(list(losses.values()))
    gradients = tape.gradient(total, detector.trainable_variables)
    dead = [v.path for v, g in zip(detector.trainable_variables, gradients, strict=True) if g is None]
    assert dead == []


def test_loaded_detector_detects_the_same(made, tmp_path):
    kind, neck, detector = made
    _, expected = check_reload(detector, lambda model: model(inputs(batch(kind))), tmp_path)
    assert expected["num_detections"].numpy().min() > 0
    named, paths = saved_names(tmp_path / "detector.keras")
    name = type(detector).__name__
    assert named == ("dupr_tf.detection.rcnn.model", name, f"dupr_tf>{name}")
    layer = "pyramid_neck/output_convs/sequential_3/layers/conv2d" if neck == "fpn" else "res5_regions/norm"
    assert {f"layers/{layer}/vars/0", "layers/rpn_head/conv/vars/1", "layers/box_predictor/deltas/vars/0"} < paths


def test_saved_model_detects_the_same(made, tmp_path):
    _, _, detector = made
    export_detector(detector, tmp_path / "saved_model")
    served = tf.saved_model.load(str(tmp_path / "saved_model"))
    images = tf.constant(np.random.default_rng(0).integers(0, 256, (2, 90, 120, 3)), tf.uint8)
    padded, size = scaled_batch(images, detector.test_short_side, detector.max_long_side)
    assert padded.shape == (2, 64, 96, 3) and size.numpy().tolist() == [64, 85]
    expected = detector({"images": padded, "image_sizes": tf.constant([[64.0, 85.0]] * 2)})
    full = served.signatures["serving_default"](images)
    same({**full, "confidence": full["scores"], "boxes": expected["boxes"]}, {**expected, "scores": full["scores"]})
    boxes = to_original(expected["boxes"], [64 / 90, 85 / 120], (90, 120))
    np.testing.assert_allclose(full["boxes"], np.where(expected["classes"][..., None] >= 0, boxes, -1), atol=1e-3)
    assert full["boxes"].numpy().max() > 96 and full["classes"].dtype == tf.int32
    assert [name.decode() for name in served.class_names().numpy()] == list(NAMES)


def odd_batches(kind):
    """Yields batches that no photographs give, each of a different size, with as many rows as its fullest image."""
    far, tiny = ((8, 8, 60, 50), 1), ((30, 30, 31, 31), 2)
    crowd = [((x, y, x + 5, y + 4), (x + y) % 2) for x in range(0, 90, 6) for y in range(0, 60, 3)][:300]
    yield batch(kind, things=[[], []], rows=300)
    yield batch(kind, things=[[far], []], rows=300)
    yield batch(kind, things=[[tiny], [tiny, ((0, 0, 1, 1), 0)]], rows=300)
    yield batch(kind, things=[crowd, [far]], rows=300)
    yield batch(kind, 2, 96, 96, [[far], [far]], 300, sizes=[(96, 50), (50, 96)])  # portrait and landscape
    yield batch(kind, 1, 32, 128, [[((5, 5, 5, 20), 1), ((90, 10, 127, 31), 1)]], 300)  # a box without width


@pytest.mark.parametrize("which", [EVERY[1], pytest.param(EVERY[0], marks=pytest.mark.slow), *EVERY[2:]], ids="-".join)
def test_odd_batches_train_in_fit(which):
    kind, neck = which
    detector = make(kind, neck)
    detector.compile(keras.optimizers.SGD(1e-3))
    signature = tf.nest.map_structure(
        lambda x: tf.TensorSpec([None] * (x.shape.rank - 1) + x.shape[-1:], x.dtype), batch(kind, rows=300)
    )
    batches = tf.data.Dataset.from_generator(lambda: odd_batches(kind), output_signature=signature)
    losses = []
    log = keras.callbacks.LambdaCallback(on_train_batch_end=lambda _, logs: losses.append(dict(logs)))
    before = detector.get_weights()
    detector.fit(batches, verbose=0, shuffle=False, callbacks=[log])
    assert len(losses) == 6 and all(np.isfinite(list(entry.values())).all() for entry in losses)
    assert all(np.isfinite(value).all() for value in detector.get_weights())
    assert any((a != b).any() for a, b in zip(before, detector.get_weights(), strict=True))
    for name in ("rpn_box_loss", "box_loss"):
        assert losses[0][name] == 0 and losses[-1][name] > 0
    assert losses[-1]["loss"] == pytest.approx(sum(v for k, v in losses[-1].items() if k != "loss"), rel=1e-4)


@NECKS
def test_batches_without_rows_or_labels_are_accepted(neck):
    detector = make("mask", neck)
    empty = {"boxes": tf.zeros([2, 0, 4]), "classes": tf.zeros([2, 0]), "masks": tf.zeros([2, 0, 56, 56])}
    without = {name: value for name, value in batch("mask").items() if name != "bounding_boxes"}
    a = detector({**without, "bounding_boxes": empty}, training=True)
    b = detector(without, training=True)
    assert a.keys() == b.keys() and np.isfinite(list(a.values())).all()
    assert float(a["box_loss"]) == float(a["mask_loss"]) == float(b["mask_loss"]) == 0.0


def test_drawn_samples_follow_the_seed_and_the_step():
    detector = make("faster", "fpn")
    detector.compile(keras.optimizers.SGD(0.0))
    data = batch("faster", 1, 128, 128)  # there are more anchors than are drawn

    def loss():
        return float(detector.losses(data, training=False)["rpn_objectness_loss"])

    first = loss()
    assert loss() == first
    detector.optimizer.iterations.assign_add(1)
    assert loss() != first
    detector.optimizer.iterations.assign(0)
    detector.seed = 5
    assert loss() != first


@NECKS
@pytest.mark.parametrize("norm", ["train", "sync", "frozen"])
def test_norms_train_as_configured(neck, norm):
    detector = make("faster", neck, norm=norm)
    own = norm_layers(detector.pyramid_neck) if neck == "fpn" else [detector.regions.norm]
    backbone = norm_layers(detector.backbone)
    assert len(backbone) == 4 and len(own) == (8 if neck == "fpn" else 1)
    assert len(norm_layers(detector)) == len(backbone) + len(own)  # heads have no further norms
    assert all(layer.synchronized == (norm == "sync") for layer in (*backbone, *own))
    before = [layer.moving_mean.numpy() for layer in (*backbone, *own)]
    detector.losses(batch("faster"), training=True)
    kept = [np.array_equal(a, layer.moving_mean) for a, layer in zip(before, (*backbone, *own), strict=True)]
    assert kept == [norm == "frozen"] * 4 + [False] * len(own)
    trained = {id(variable) for variable in detector.trainable_variables}
    assert all((id(layer.gamma) in trained) != (norm == "frozen") for layer in backbone)
    assert all(id(layer.gamma) in trained for layer in own)


def test_c4_head_is_the_last_stage_of_the_backbone():
    backbone = build_backbone("resnet18", width=0.125, include_normalization=True)
    detector = make("faster", "c4", backbone=backbone)
    conv = backbone.get_layer("stack3_block0_1_conv")
    assert any(conv is layer for layer in detector.regions.res5.layers)
    assert not any(conv is layer for layer in detector.trunk.layers)
    assert not {layer.name for layer in detector.regions.res5.layers} & {"conv1_conv", "stack2_block1_2_conv"}
    pooled = keras.random.normal((3, 14, 14, backbone.get_layer("stack2_block1_out").output.shape[-1]), seed=1)
    assert detector.regions.res5(pooled).shape[:3] == (3, 7, 7)
    assert len({id(v) for v in detector.trainable_variables}) == len(detector.trainable_variables)
    assert set(map(id, backbone.trainable_variables)) <= set(map(id, detector.trainable_variables))


def test_parameter_count_is_that_of_the_papers_sizes():
    # Lateral 1x1 and output 3x3 have no bias and a BN of 4. Then: RPN of 3 anchors, dense layers, predictors, masks.
    section = {"kind": "mask_rcnn", "fpn_channels": 16, "head_channels": 24, "box_head_width": 40}
    backbone = ChainBackbone()
    detector = build_detector(backbone, NAMES, parse_config({"detector": section}))
    pyramid = 16 * (8 + 12 + 16 + 20) + 4 * 9 * 16**2 + 8 * 4 * 16
    rpn = 9 * 16**2 + 16 + 17 * 3 * 5
    box = 49 * 16 * 40 + 40 + 40**2 + 40 + 41 * (4 + 12)
    mask = 9 * 16 * 24 + 24 + 3 * (9 * 24**2 + 24) + 4 * 24**2 + 24 + 25 * 3
    assert detector.count_params() == backbone.count_params() + pyramid + rpn + box + mask
    defaults = {name: value.default for name, value in inspect.signature(FasterRCNN).parameters.items()}
    assert (defaults["fpn_channels"], defaults["head_channels"], defaults["head_convs"]) == (256, 256, 4)
    assert (defaults["box_head_width"], defaults["rois_per_image"], defaults["max_detections"]) == (1024, 512, 100)
    assert (detector.rpn_pre_nms, detector.rpn_post_nms) == ((2000, 1000), (1000, 1000))
    assert [size for _, (size,) in detector.anchor_levels] == [32, 64, 128, 256, 512]


def test_sizes_and_anchors_follow_from_the_config():
    section = {"kind": "faster_rcnn", "neck": "c4", "anchor_scale": 3, "short_sides": [320, 480]}
    detector = build_detector(ChainBackbone(), NAMES, parse_config({"detector": section}))
    assert (detector.image_size, detector.test_short_side, detector.max_long_side) == (None, 480, 1333)
    assert detector.rpn_post_nms == (2000, 1000)
    assert detector.anchor_levels == [(16, [12.0, 24.0, 48.0, 96.0, 192.0])]
    square = build_detector(ChainBackbone(), NAMES, parse_config({"detector": {"kind": "faster_rcnn"}}))
    assert square.image_size == 224 and square.test_short_side is None


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"neck": "dc5"}, "neck"),
        ({"norm": "half"}, "norm"),
        ({"rois_per_image": 3}, "rois_per_image"),
        ({"image_size": 100}, "image_size"),
    ],
)
def test_rcnn_refuses_wrong_arguments(arguments, field):
    with pytest.raises(UserError) as error:
        FasterRCNN(ChainBackbone(), NAMES, **arguments)
    assert error.value.field == field and str(arguments[field]) in error.value.problem


def test_c4_refuses_a_p5_not_computed_from_p4():
    with pytest.raises(UserError) as error:
        FasterRCNN(ChainBackbone(around=True), NAMES, neck="c4")
    assert error.value.field == "backbone" and "chain" in error.value.problem


def test_mask_rcnn_refuses_boxes_without_masks():
    with pytest.raises(UserError) as error:
        make("mask", "fpn").losses(batch("faster"), training=True)
    assert error.value.field == "bounding_boxes"
