"""Tests of DUPR: XLA, invalid pairs, groups, random draws, precision, schedules, saving and refusals.

Numbers of whole steps are compared with NumPy in `test_golden`, and those of `evaluate` in `test_keras_use`.
"""

from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from dupr_tf.errors import UserError
from dupr_tf.models import DUPR, MemoryBank, build_backbone
from dupr_tf.models.terms import ImageContrast, PatchContrast
from dupr_tf.models.terms.contrast import draw_patch_keys
from dupr_tf.ops.photometric import PRESETS, apply_and_normalise, draw
from dupr_tf.training.optimizers import CoupledSGD
from tests.models.test_golden import CHANNELS, SIZE, TinyBackbone
from tests.refusals import refusal

BATCH, BANK, DIM = 4, 37, 16
SETTINGS = {
    "image_weights": (0.1, 0.4, 0.7, 1.0), "patch_weights": (0.5, 0.0, 1.0, 1.0), "roi_sizes": (4, 3, 2, 1),
    "embedding_dim": DIM, "bank_size": BANK, "momentum": 0.9, "photometric": "none",
}  # fmt: skip
TWO_LOSSES = {"image_weights": (0, 0, 0, 1), "patch_weights": (0, 0, 0, 1)}


def make_model(backbone=None, **changes):
    keras.utils.set_random_seed(1)
    model = DUPR(backbone or TinyBackbone(CHANNELS), **{**SETTINGS, **changes})
    # As in a real step, the two encoders differ.
    for variable in model.key_variables:
        variable.assign(variable + 0.01 * tf.random.stateless_normal(variable.shape, [3, len(variable.shape)]))
    model.compile(optimizer=CoupledSGD(0.1), jit_compile=False)
    model.optimizer.build(model.query_variables)
    return model


def make_batch(valid=(True, True, False, True)):
    random = np.random.default_rng(0)
    corner = random.uniform(0, 8, (2, BATCH, 2))
    boxes = np.concatenate([corner, corner + random.uniform(16, 24, (2, BATCH, 2))], -1)
    return {
        "view_1": tf.constant(random.integers(0, 256, (BATCH, SIZE, SIZE, 3)), tf.uint8),
        "view_2": tf.constant(random.integers(0, 256, (BATCH, SIZE, SIZE, 3)), tf.uint8),
        "boxes_1": tf.constant(boxes[0], tf.float32),
        "boxes_2": tf.constant(boxes[1], tf.float32),
        "flipped_1": tf.constant(random.random(BATCH) < 0.5),
        "flipped_2": tf.constant(random.random(BATCH) < 0.5),
        "valid": tf.constant(valid),
        "index": tf.range(BATCH, dtype=tf.int64),
    }


@pytest.mark.slow  # test_golden.py compiles a network of five convolutions
def test_step_of_a_resnet_compiles_under_xla():
    """With one batch-norm group, the shuffle's draws do not change the losses. XLA draws other numbers."""
    keras.utils.set_random_seed(0)
    backbones = [build_backbone("resnet18", width=0.125) for _ in range(2)]
    backbones[1].set_weights(backbones[0].get_weights())
    plain, compiled = (make_model(backbone=backbone) for backbone in backbones)
    batch = make_batch()
    before = [v.numpy() for v in plain.query_variables]
    expected = tf.function(plain.train_step, autograph=False)(batch)
    logs = tf.function(compiled.train_step, jit_compile=True, autograph=False)(batch)
    for name, value in expected.items():
        assert float(logs[name]) == pytest.approx(float(value), rel=2e-4, abs=1e-6), name
    # A P5 of one cell has statistics over four numbers, which multiply rounding. A wrong gradient is off by far more.
    for start, a, b in zip(before, plain.query_variables, compiled.query_variables, strict=True):
        assert np.linalg.norm(a - b) <= 1e-2 * np.linalg.norm(a - start) + 1e-6, a.path


@pytest.mark.slow
def test_groups_and_photometrics_compile_under_xla():
    model, batch = make_model(micro_batches=2, photometric="moco_v2"), make_batch()
    before = [v.numpy() for v in model.query_variables]
    logs = tf.function(model.train_step, jit_compile=True, autograph=False)(batch)
    assert all(np.isfinite(float(value)) for value in logs.values())
    assert all((a != b.numpy()).any() for a, b in zip(before, model.query_variables, strict=True))


def test_step_without_valid_pairs_keeps_patch_banks():
    model, batch = make_model(), make_batch(valid=(False,) * BATCH)
    before = {name: bank.keys.numpy() for name, bank in model.banks.items()}
    logs = model.train_step(batch)
    assert float(logs["valid_share"]) == 0.0 and np.isfinite(float(logs["loss"]))
    for name, bank in model.banks.items():
        if name.startswith("patch"):
            assert float(logs[f"loss/{name}"]) == 0.0
            np.testing.assert_array_equal(bank.keys.numpy(), before[name])
        else:
            assert int(bank.next_row) == BATCH


def test_key_batch_norm_uses_batch_statistics():
    model, batch = make_model(), make_batch()
    far = [v for v in model.key_encoder.non_trainable_variables if v.path.endswith("moving_mean")]
    logs = make_model().train_step(batch)["loss"]
    for variable in far:
        variable.assign(variable + 100.0)
    assert float(model.train_step(batch)["loss"]) == pytest.approx(float(logs), rel=1e-5)


def test_levels_of_weight_zero_are_not_computed():
    model = make_model(image_weights=(0, 0, 0, 1), patch_weights=(0, 0, 0, 0))
    assert list(model.banks) == list(model.query_encoder.projectors) == ["image_P5"]
    assert list(model.key_encoder.projectors) == ["image_P5"] and model.query_encoder.levels == ["P5"]
    assert isinstance(model.banks["image_P5"], MemoryBank)


def test_two_equal_groups_give_the_loss_of_one_group():
    """Two groups of the same four images have the same statistics, so the loss is exactly that of one group."""
    one, two = make_model(), make_model(micro_batches=2)
    batch = make_batch()
    doubled = {name: tf.concat([value, value], 0) for name, value in batch.items()}
    step = tf.constant(0, tf.int64)
    keys = {2: one.encode_keys(one.augment(batch, step)[2], one.terms, step)}
    keys_twice = tf.nest.map_structure(lambda key: tf.concat([key, key], 0), keys)
    single = one.query_gradients(batch, one.augment(batch, step), keys)
    double = two.query_gradients(doubled, two.augment(doubled, step), keys_twice)
    for a, b in zip(single[0], double[0], strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), atol=2e-5 * max(1.0, float(tf.reduce_max(tf.abs(a)))))
    for name in single[1]:
        assert float(single[1][name]) == pytest.approx(float(double[1][name]), rel=1e-5, abs=1e-6), name


def test_drawn_patch_keys_are_cells_of_valid_images():
    keys = tf.reshape(tf.range(5 * 2 * 2, dtype=tf.float32), [5, 2, 2, 1]) * tf.ones([1, 1, 1, 3])
    valid = tf.constant([True, False, True, False, False])
    drawn = draw_patch_keys(keys, valid, 50, tf.constant([1, 2], tf.int64)).numpy()[:, 0].reshape(5, 50)
    assert set(np.unique(drawn)) == {0, 1, 2, 3, 8, 9, 10, 11}
    assert set(drawn[0] // 4) == {0} and set(drawn[2] // 4) == {2}  # a valid image draws from itself
    assert all(
        sorted(np.bincount(row % 4)) == [12, 12, 13, 13] for row in drawn.astype(int)
    )  # a cell repeats only after all others


@pytest.mark.parametrize("changes, field", [
    ({"image_weights": (1, 1)}, "image_weights"),
    ({"image_weights": (0,) * 4, "patch_weights": (0,) * 4}, "image_weights"),
    ({"patch_reduction": "max"}, "reduction"),
    ({"head": "deep"}, "head"),
    ({"temperature": 0.0}, "temperature"),
    ({"momentum_schedule": "cosine"}, "momentum_schedule"),
    ({"terms": [ImageContrast()]}, "terms"),
])  # fmt: skip
def test_wrong_settings_are_refused_at_construction(changes, field):
    with pytest.raises(UserError) as error:
        make_model(**changes)
    assert error.value.fields == (field,)


def test_groups_that_replicas_cannot_share_evenly_are_refused(monkeypatch):
    backbone = TinyBackbone(CHANNELS)
    assert refusal(DUPR, backbone, micro_batches=0).fields == ("micro_batches",)
    monkeypatch.setattr(tf.distribute, "get_strategy", lambda: SimpleNamespace(num_replicas_in_sync=4))
    for groups in (1, 3, 6):
        assert refusal(DUPR, backbone, micro_batches=groups).fields == ("micro_batches",)


# --- random draws -----------------------------------------------------------------------------------


def augmented(step=0, photometric="moco_v2", **batch):
    """Returns both views of a batch in which the two views are the same images."""
    model = make_model(photometric=photometric, **TWO_LOSSES)
    views = model.augment({**make_batch(), **batch}, tf.constant(step, tf.int64))
    return model, [views[side][0].numpy() for side in (1, 2)]


def test_views_and_steps_have_different_colour_draws():
    same = make_batch()["view_1"]
    _, (first, second) = augmented(view_1=same, view_2=same)
    _, (later, _) = augmented(1, view_1=same, view_2=same)
    for image in range(BATCH):
        assert np.abs(first[image] - second[image]).max() > 0.01
        assert np.abs(first[image] - later[image]).max() > 0.01


def test_photometric_preset_reaches_the_views():
    images = make_batch()["view_1"]
    model, (first, _) = augmented(photometric="moco_v1", view_1=images)
    draws = draw(BATCH, model.seed_of("view_1", tf.constant(0, tf.int64)), "moco_v1")
    expected = apply_and_normalise(images, draws, PRESETS["moco_v1"])
    np.testing.assert_allclose(first, expected.numpy(), atol=1e-5)


def test_banks_start_with_different_noise():
    banks = [bank.keys.numpy() for bank in make_model().banks.values()]
    other_seed = make_model(seed=1).banks["image_P2"].keys.numpy()
    assert all(np.abs(a - b).max() > 0.1 for i, a in enumerate(banks) for b in [*banks[:i], other_seed])


def test_added_term_keeps_the_draws_of_other_terms():
    few, more = make_model(**TWO_LOSSES), make_model()
    batch, step = make_batch(), tf.constant(0, tf.int64)
    for name in few.banks:
        np.testing.assert_array_equal(few.banks[name].keys.numpy(), more.banks[name].keys.numpy())
        np.testing.assert_array_equal(few.seed_of(f"keys/{name}", step), more.seed_of(f"keys/{name}", step))
    few_names, more_names = few.named_variables(), more.named_variables()
    assert len(more_names) == len(more.variables) and few_names.keys() < more_names.keys()
    assert batch["valid"].shape[0] == BATCH


def test_patch_keys_of_two_banks_are_drawn_independently():
    model, step = make_model(), tf.constant(3, tf.int64)
    numbers = tf.reshape(tf.range(BATCH * 100, dtype=tf.float32), [BATCH, 10, 10, 1])
    valid = tf.ones([BATCH], tf.bool)
    drawn = [
        draw_patch_keys(numbers, valid, 4, model.seed_of(f"keys/{term.name}", step)).numpy()
        for term in model.terms
        if isinstance(term, PatchContrast)
    ]
    assert not np.array_equal(drawn[0], drawn[1])


# --- precision, schedules, saving ---------------------------------------------------------------------


def test_loss_scale_multiplies_the_gradients():
    model, batch = make_model(**TWO_LOSSES), make_batch()
    expected, _, _ = model.gradients(batch)
    model.compile(keras.optimizers.LossScaleOptimizer(CoupledSGD(0.1), initial_scale=64.0), jit_compile=False)
    model.optimizer.build(model.query_variables)
    scaled, _, _ = model.gradients(batch)
    for a, b in zip(expected, scaled, strict=True):
        np.testing.assert_allclose(b.numpy(), 64.0 * a.numpy(), rtol=1e-4, atol=1e-4)


def test_cosine_schedule_raises_the_momentum_to_one():
    model = make_model(momentum=0.5, momentum_schedule="cosine", total_steps=10, **TWO_LOSSES)
    query, key = model.moving_average[0]
    for step, momentum in ((0, 0.5), (2, 0.5477457), (5, 0.75), (10, 1.0), (12, 1.0)):
        key.assign(tf.zeros_like(key))
        model.update_key_encoder(tf.constant(step, tf.int64))
        np.testing.assert_allclose(key.numpy(), (1.0 - momentum) * query.numpy(), atol=1e-6)


def test_fit_saves_and_reloads_as_one_model(tmp_path):
    model = make_model(**TWO_LOSSES)
    history = model.fit(tf.data.Dataset.from_tensors(make_batch()).repeat(2), epochs=1, verbose=0)
    assert np.isfinite(history.history["loss"][0])
    path = tmp_path / "dupr.keras"
    model.save(path)
    loaded = keras.saving.load_model(path)
    images = tf.random.stateless_normal([2, SIZE, SIZE, 3], [1, 1])
    for level, features in model(images).items():
        np.testing.assert_allclose(loaded(images)[level].numpy(), features.numpy(), atol=1e-6)
    np.testing.assert_array_equal(loaded.banks["patch_P5"].keys.numpy(), model.banks["patch_P5"].keys.numpy())
