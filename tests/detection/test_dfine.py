"""Tests of KerasHub's D-FINE: its bins, a step, images without boxes, files, and images of another size."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from dupr_tf.config import parse_config
from dupr_tf.config.detectors import DETECTORS
from dupr_tf.detection.export import export_file
from dupr_tf.detection.parts.set_losses import BINS, REACH, SPAN, WEIGHTS, bin_values
from dupr_tf.detection.registry import build_detector
from dupr_tf.detection.saving import save_detector
from dupr_tf.errors import UserError
from dupr_tf.models.layers import norm_layers
from dupr_tf.models.resnet import build_backbone
from tests.detection.saved_file import check_reload

if DETECTORS["kerashub_dfine"].missing:
    pytest.skip("the extra is not installed: pip install 'dupr_tf[kerashub]'", allow_module_level=True)
from dupr_tf.detection.dfine import _attend, without_graph_rewriting

SIZE, NAMES = 64, ("bus", "cat", "dog")


def make(**detector):
    keras.utils.set_random_seed(1)
    section = {"kind": "kerashub_dfine", "fpn_channels": 16, "score_threshold": 0.001, "max_detections": 20, **detector}
    config = parse_config({"data": {"image_size": SIZE}, "detector": section})
    return build_detector(build_backbone("resnet18", width=0.125, include_normalization=True), NAMES, config)


@pytest.fixture(scope="module")
def model():
    return make()


def batch(*boxes):
    images = np.random.default_rng(0).uniform(0, 255, (2, SIZE, SIZE, 3)).astype(np.float32)
    boxes = np.array([boxes] * 2, np.float32).reshape(2, -1, 4)
    labels = {"boxes": boxes, "classes": np.ones(boxes.shape[:2], np.float32)}
    return tf.nest.map_structure(tf.constant, {"images": images, "bounding_boxes": labels})


def test_building_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        make()


def test_bins_are_those_of_the_graph(model):
    from keras_hub.src.models.d_fine.d_fine_utils import weighting_function

    decoder = model.network.decoder
    assert (decoder.max_num_bins, decoder.reg_scale_val) == (BINS, SPAN)
    assert float(decoder.upsampling_factor[0]) == REACH
    theirs = weighting_function(BINS, decoder.upsampling_factor, decoder.reg_scale)
    np.testing.assert_allclose(bin_values(), theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_attention_samples_as_kerashub_does(dtype):
    from keras_hub.src.models.d_fine.d_fine_utils import multi_scale_deformable_attention_v2

    rng, points, shapes = np.random.default_rng(0), [3, 6, 3], [(8, 8), (4, 4), (2, 2)]
    values, locations, weights = (
        tf.constant(rng.uniform(low, high, shape), dtype)
        for low, high, shape in ((-1, 1, (2, 84, 4, 5)), (-0.2, 1.2, (2, 7, 4, 12, 2)), (0, 1, (2, 7, 4, 12)))
    )
    cells = [height * width for height, width in shapes]
    arguments = (values, shapes, locations, weights, points, cells, shapes, 3, 7, "default")
    own, theirs = _attend(*arguments), multi_scale_deformable_attention_v2(*arguments)
    assert own.dtype == dtype and own.shape == (2, 7, 20)
    tolerance = {"float32": 1e-5, "bfloat16": 0.15}[dtype]  # KerasHub computes the places in bfloat16
    np.testing.assert_allclose(tf.cast(own, tf.float32), tf.cast(theirs, tf.float32), atol=tolerance)


def test_every_attention_samples_all_levels_at_once(model):
    assert len(model.network.decoder.decoder_layers) == model.decoder_layers
    assert all(layer.encoder_attn.ms_deformable_attn_core is _attend for layer in model.network.decoder.decoder_layers)


def test_graphs_are_rewritten_again_after_fit():
    def disabled():
        return tf.config.optimizer.get_experimental_options().get("disable_meta_optimizer", False)

    assert not disabled()
    with pytest.raises(ZeroDivisionError), without_graph_rewriting():
        assert disabled()
        1 / 0  # noqa: B018
    assert not disabled()


def test_layers_end_with_what_is_predicted(model):
    outputs = model(batch()["images"], training=False)
    layers = model._predictions(outputs)
    assert len(layers) == 2 + model.decoder_layers
    np.testing.assert_array_equal(layers[-1].logits, outputs["logits"])
    np.testing.assert_array_equal(layers[-1].boxes, outputs["pred_boxes"])
    assert layers[0].bins is layers[1].bins is None and layers[-1].bins.shape[2:] == (4, BINS + 1)


def test_steps_lower_the_loss():
    model = make()
    model.compile(keras.optimizers.Adam(0.001))
    data = batch([8, 8, 40, 40], [20, 4, 60, 60])
    sums = []
    for _ in range(4):
        logs = model.train_step(data)
        sums.append(float(logs["loss"]))
        model.reset_metrics()
    assert logs.keys() == {"loss", *WEIGHTS} and np.isfinite(sums).all() and sums[-1] < 0.8 * sums[0]


def test_images_without_boxes_train_the_background(model):
    for data in (batch(), {"images": batch()["images"]}):
        losses = {name: float(value) for name, value in model.losses(data, training=False).items()}
        assert losses["score_loss"] > 0 and losses["box_loss"] == losses["overlap_loss"] == losses["bin_loss"] == 0


@pytest.mark.parametrize(("norm", "frozen"), [("train", 0), ("frozen", 20)])
def test_norms_train_as_configured(norm, frozen):
    layers = norm_layers(make(norm=norm))
    assert sum(not layer.trainable for layer in layers) == frozen < len(layers)
    assert {layer.momentum for layer in layers} == {0.9}


def test_file_detects_the_same(model, tmp_path):
    _, expected = check_reload(model, lambda model: model.predict_step(batch()["images"]), tmp_path)
    assert expected["num_detections"].numpy().min() > 0
    assert 0 <= tf.reduce_max(expected["boxes"]) <= SIZE


@pytest.mark.slow
def test_litert_detects_the_same(model, tmp_path):
    save_detector(model, tmp_path / "detector.keras")
    export_file(tmp_path / "detector.keras", "litert", tmp_path / "out")  # an error if the detections differ
    assert (tmp_path / "out/detector.tflite").stat().st_size > 1e5


def test_onnx_is_refused_before_anything_is_written(model, tmp_path):
    pytest.importorskip("tf2onnx")
    save_detector(model, tmp_path / "detector.keras")
    with pytest.raises(UserError) as error:
        export_file(tmp_path / "detector.keras", "onnx", tmp_path / "out")
    assert error.value.field == "--to" and not (tmp_path / "out").exists()


def test_other_sizes_are_refused(model):
    with pytest.raises(UserError):
        model.predict_step(tf.zeros([1, 96, 96, 3]))
    with pytest.raises(UserError):
        model.resize_input(96)
