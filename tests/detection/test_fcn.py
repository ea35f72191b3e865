"""Tests of the FCN: its loss and gradients, and that saved files give equal results."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from dupr_tf.config import parse_config
from dupr_tf.detection.fcn import FCN, pixel_cross_entropy, segmentation_head
from dupr_tf.detection.precise_bn import measure_norms
from dupr_tf.detection.registry import build_detector
from dupr_tf.detection.saving import export_detector
from dupr_tf.detection.scaling import scaled_batch
from dupr_tf.errors import UserError
from dupr_tf.models.resnet import build_backbone, pyramid
from tests.detection.saved_file import check_norms, check_reload

NAMES = ("road", "sky", "tree")


def make(**arguments):
    backbone = build_backbone("resnet18", width=0.125, include_normalization=True)
    return FCN(backbone, NAMES, head_channels=8, **arguments)


def batch(sizes=(2, 64, 96), seed=0):
    rng = np.random.default_rng(seed)
    segments = rng.integers(0, 3, sizes).astype(np.int32)
    segments[:, :8] = 255
    images = rng.uniform(0, 100, (*sizes, 3)) + np.linspace(0, 155, sizes[2])[:, None]  # different values everywhere
    return {"images": tf.constant(images, tf.float32), "segments": tf.constant(segments)}


@pytest.fixture(scope="module")
def fcn():
    keras.utils.set_random_seed(1)
    model = make()
    measure_norms(model, [batch()])
    kernel = model.head.layers[-1].kernel
    kernel.assign(keras.random.normal(kernel.shape, stddev=0.5, seed=2))
    model.compile(keras.optimizers.SGD(0.05))
    return model


def test_loss_is_the_mean_over_pixels_with_a_class():
    logits = np.random.default_rng(0).normal(size=(2, 3, 4, 3)).astype(np.float32)
    segments = np.array([[[0, 1, 2, 255]] * 3, [[255] * 4, [2, 2, 255, 1], [0, 0, 0, 0]]], np.int32)
    losses = []
    for index in np.ndindex(segments.shape):
        if segments[index] != 255:
            row = logits[index].astype(np.float64)
            losses.append(np.log(np.exp(row).sum()) - row[segments[index]])
    assert len(losses) == 16
    assert float(pixel_cross_entropy(logits, segments)) == pytest.approx(np.mean(losses), rel=1e-5)
    assert float(pixel_cross_entropy(logits, np.full_like(segments, 255))) == 0.0


def test_stride_16_cells_are_resized_at_half_pixel_centres(fcn):
    images = batch()["images"]
    cells = fcn.head(fcn.features(images)["P5"])
    assert cells.shape == (2, 4, 6, 3)
    out = fcn(images).numpy()
    rows, columns = np.arange(64), np.arange(96)
    for y, x in ((8, 8), (24, 40), (31, 50)):  # between the centres 8, 24, … (less 0.5) of the cells
        at = [(y + 0.5) / 16 - 0.5, (x + 0.5) / 16 - 0.5]
        low = [int(np.floor(a)) for a in at]
        (fy, fx), (i, j) = [a - b for a, b in zip(at, low, strict=True)], low
        corner = [[cells[0, i, j], cells[0, i, j + 1]], [cells[0, i + 1, j], cells[0, i + 1, j + 1]]]
        expected = sum(
            weight_y * weight_x * np.asarray(corner[a][b])
            for a, weight_y in ((0, 1 - fy), (1, fy))
            for b, weight_x in ((0, 1 - fx), (1, fx))
        )
        np.testing.assert_allclose(out[0, rows[y], columns[x]], expected, atol=1e-4)


def test_head_has_the_convolutions_of_moco():
    head = segmentation_head(5, 256, 2)
    head.build((None, None, None, 2048))
    convs = [layer for layer in head.layers if isinstance(layer, keras.layers.Conv2D)]
    assert [(c.filters, c.kernel_size, c.dilation_rate) for c in convs] == [
        (256, (3, 3), (6, 6)),
        (256, (3, 3), (6, 6)),
        (5, (1, 1), (1, 1)),
    ]
    assert head.count_params() == 9 * 256 * (2048 + 256) + 2 * 4 * 256 + 256 * 5 + 5


def test_every_weight_learns_and_ignored_pixels_do_not_count(fcn):
    data = batch()
    other = {**data, "segments": tf.where(data["segments"] == 255, 255, data["segments"])}
    with tf.GradientTape() as tape:
        loss = fcn.compute_loss(data, y_pred=fcn(data, training=True))
    gradients = tape.gradient(loss, fcn.trainable_variables)
    assert all(g is not None and float(tf.reduce_max(tf.abs(g))) > 0 for g in gradients)
    with tf.GradientTape() as tape:
        logits = fcn(other, training=False)
        tape.watch(logits)
        loss = fcn.compute_loss(other, y_pred=logits)
    of_logits = tape.gradient(loss, logits).numpy()
    assert np.abs(of_logits[:, :8]).max() == 0 and np.abs(of_logits[:, 8:]).min() > 0


@pytest.mark.slow
def test_fcn_fits_its_training_images():
    keras.utils.set_random_seed(0)
    model, data = make(), batch((2, 64, 64))
    half = np.arange(64)[None, :, None] < 32
    segments = tf.constant(np.broadcast_to(np.where(half, 0, 2), (2, 64, 64)).astype(np.int32))
    images = tf.where(segments[..., None] == 0, [[200.0, 30, 30]], [[20.0, 40, 220]]) + data["images"] / 20
    model.compile(keras.optimizers.Adam(0.01))
    shown = tf.data.Dataset.from_tensors({"images": images, "segments": segments}).repeat(40)
    logs = model.fit(shown, verbose=0).history
    assert set(logs) == {"loss"} and logs["loss"][0] < 0.9
    assert (model.predict_on_batch({"images": images}) == segments.numpy()).mean() > 0.9


def test_saved_and_exported_fcn_predicts_the_same(fcn, tmp_path):
    loaded, expected = check_reload(fcn, lambda model: model.predict_on_batch(batch()), tmp_path)
    assert expected.shape == (2, 64, 96) and len(np.unique(expected)) > 1
    assert loaded.backbone.output_stride == 16
    export_detector(fcn, tmp_path / "saved_model")
    served = tf.saved_model.load(str(tmp_path / "saved_model"))
    images = tf.constant(np.random.default_rng(0).integers(0, 256, (1, 50, 90, 3)), tf.uint8)
    padded, _ = scaled_batch(images, None, 1333)
    assert padded.shape == (1, 64, 96, 3)
    segments = served.signatures["serving_default"](images)["segments"].numpy()
    np.testing.assert_array_equal(segments, fcn.predict_on_batch({"images": padded})[:, :50, :90])
    assert [name.decode() for name in served.class_names().numpy()] == list(NAMES)


@pytest.mark.parametrize(("norm", "synchronized", "frozen"), [("train", 0, 0), ("sync", 22, 0), ("frozen", 0, 20)])
def test_norms_train_as_configured(norm, synchronized, frozen):
    check_norms(make(norm=norm), 22, synchronized, frozen)


def test_fcn_leaves_the_features_of_its_backbone_unchanged():
    backbone = build_backbone("resnet18", width=0.125, include_normalization=True)
    model = build_detector(backbone, NAMES, parse_config({"detector": {"kind": "fcn", "test_short_side": 96}}))
    assert model.test_short_side == 96
    plain = pyramid(backbone)(batch()["images"])["P4"]
    np.testing.assert_array_equal(pyramid(model.backbone)(batch()["images"])["P4"], plain)


def test_backbone_without_a_pyramid_is_refused():
    with pytest.raises(UserError) as error:
        FCN(keras.Sequential([keras.Input((32, 32, 3))]), NAMES)
    assert error.value.field == "backbone"
