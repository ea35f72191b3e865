"""DUPR's step against the NumPy twins, on a backbone small enough to follow by hand."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from dupr_tf.models import DUPR, MemoryBank, build_backbone
from dupr_tf.models.dupr import draw_patch_keys
from dupr_tf.training.optimizers import CoupledSGD
from tests import oracles, oracles_step

SIZE, BATCH, BANK, DIM = 32, 4, 37, 16
LEVELS = ("P2", "P3", "P4", "P5")
STRIDES = dict(zip(LEVELS, (4, 8, 16, 32), strict=True))
SETTINGS = {
    "image_weights": (0.1, 0.4, 0.7, 1.0), "patch_weights": (0.5, 0.0, 1.0, 1.0), "roi_sizes": (4, 3, 2, 1),
    "embedding_dim": DIM, "bank_size": BANK, "momentum": 0.9, "photometric": "none",
}  # fmt: skip


def make_model(learning_rate=0.1, **changes):
    keras.utils.set_random_seed(1)
    model = DUPR(build_backbone("resnet18", width=0.125), **{**SETTINGS, **changes})
    # A real step starts with encoders that differ; so does this one.
    for variable in model.key_variables:
        variable.assign(variable + 0.01 * tf.random.stateless_normal(variable.shape, [3, len(variable.shape)]))
    model.compile(optimizer=CoupledSGD(learning_rate), jit_compile=False)
    model.optimizer.build(model.query_variables)
    return model


def make_batch(seed=0, valid=(True, True, False, True), count=BATCH):
    random = np.random.default_rng(seed)
    corner = random.uniform(0, 8, (2, count, 2))
    boxes = np.concatenate([corner, corner + random.uniform(16, 24, (2, count, 2))], -1)
    return {
        "view_1": tf.constant(random.integers(0, 256, (count, SIZE, SIZE, 3)), tf.uint8),
        "view_2": tf.constant(random.integers(0, 256, (count, SIZE, SIZE, 3)), tf.uint8),
        "boxes_1": tf.constant(boxes[0], tf.float32),
        "boxes_2": tf.constant(boxes[1], tf.float32),
        "flipped_1": tf.constant(random.random(count) < 0.5),
        "flipped_2": tf.constant(random.random(count) < 0.5),
        "valid": tf.constant(np.resize(valid, count)),
        "index": tf.range(count, dtype=tf.int64),
    }


def oracle_embeddings(encoder, view, boxes, flipped):
    """Features from the backbone in batch-statistics mode, everything after it from the oracles."""
    images = oracles.normalize(np.asarray(view, np.float64) / 255.0)
    features = encoder.pyramid(tf.constant(images, tf.float32), training=True)
    embeddings = {}
    for name, head in encoder.heads.items():
        kind, level = name.split("_")
        weights = [np.asarray(w, np.float64) for w in head.get_weights()]
        maps = features[level].numpy().astype(np.float64)
        if kind == "image":
            embeddings[name] = np.stack([oracles.image_head(f[None], *weights)[0] for f in maps])
        else:
            size = encoder.patch_sizes[level]
            rois = oracles.roi_align(
                maps,
                np.asarray(boxes, np.float64)[:, None],
                size,
                1 / STRIDES[level],
                1,
                flipped=np.asarray(flipped),
            )
            embeddings[name] = oracles.patch_head(rois[:, 0], *weights)
    return embeddings


def oracle_losses(model, batch, queries, keys, banks):
    """{name: loss} of eqs. 5 and 6, reduced over the batch."""
    losses = {}
    for name in model.loss_weights:
        flat = [np.reshape(x[name], (-1, DIM)) for x in (queries, keys)]
        each = oracles.info_nce(*flat, banks[name], model.temperature)
        if name.startswith("image"):
            losses[name] = each.mean()
        else:
            cells = each.reshape(BATCH, -1)
            losses[name] = oracles.reduce_patch_loss(cells, np.asarray(batch["valid"]), model.patch_reduction)
    return losses


TWO_LOSSES = {"image_weights": (0, 0, 0, 1), "patch_weights": (0, 0, 0, 1)}


@pytest.mark.parametrize(
    "changes", [{}, pytest.param({"patch_reduction": "sum", **TWO_LOSSES}, marks=pytest.mark.slow)], ids=["mean", "sum"]
)
def test_losses_and_keys_are_the_oracles(changes):
    model, batch = make_model(**changes), make_batch()
    banks = {name: bank.keys.numpy().astype(np.float64) for name, bank in model.banks.items()}
    queries = oracle_embeddings(model.query_encoder, batch["view_1"], batch["boxes_1"], batch["flipped_1"])
    moved = [
        oracles_step.ema(np.asarray(k, np.float64), np.asarray(q, np.float64), 0.9)
        for k, q in zip(model.key_variables, model.query_variables, strict=True)
    ]
    logs = {k: float(v) for k, v in tf.function(model.train_step, autograph=False)(batch).items()}
    for variable, expected in zip(model.key_variables, moved, strict=True):
        np.testing.assert_allclose(variable.numpy(), expected, atol=1e-6, err_msg=variable.path)
    keys = oracle_embeddings(model.key_encoder, batch["view_2"], batch["boxes_2"], batch["flipped_2"])
    losses = oracle_losses(model, batch, queries, keys, banks)
    for name, expected in losses.items():
        assert logs[f"loss/{name}"] == pytest.approx(expected, rel=2e-4), name
    total = sum(model.loss_weights[name] * loss for name, loss in losses.items())
    assert logs["loss"] == pytest.approx(total, rel=2e-4)
    assert logs["valid_share"] == 0.75
    for name in model.loss_weights:
        rows = model.banks[name].keys.numpy()[: BATCH * (1 if name.startswith("image") else 4)]
        if name.startswith("image"):
            np.testing.assert_allclose(rows, keys[name], atol=1e-4)
        else:  # every row is some cell of a valid pair
            cells = keys[name][np.asarray(batch["valid"])].reshape(-1, DIM)
            nearest = np.abs(rows[:, None] - cells[None]).max(-1).min(-1)
            assert nearest.max() < 1e-4


def test_gradient_is_the_losss_slope():
    model, batch = make_model(), make_batch()
    views = model._augment(batch, tf.constant(0, tf.int64))
    keys = model._encode_keys(views[1], batch["boxes_2"], batch["flipped_2"], tf.constant(0, tf.int64))
    gradients, _ = model._query_gradients(views[0], batch, keys)
    tape_norm = np.sqrt(sum(float(tf.reduce_sum(g**2)) for g in gradients))
    step = 1e-2 / tape_norm

    def loss_at(sign):
        for variable, gradient in zip(model.query_variables, gradients, strict=True):
            variable.assign_add(sign * step / tape_norm * gradient)
        return float(model._query_gradients(views[0], batch, keys)[1]["loss"])

    up = loss_at(1.0)
    down = loss_at(-2.0)
    assert (up - down) / (2 * step) == pytest.approx(tape_norm, rel=2e-2)


def test_update_is_torchs_sgd_with_coupled_decay():
    weights = [np.array([1.0, -2.0, 3.0])]
    variable = keras.Variable(weights[0])
    optimizer = CoupledSGD(0.1, momentum=0.9, coupled_decay=0.01)
    velocities = [np.zeros(3)]
    for i in range(4):
        gradient = [np.array([0.5, 0.1 * i, -0.2])]
        weights, velocities = oracles_step.sgd_step(weights, gradient, velocities, 0.1, 0.9, 0.01)
        optimizer.apply([tf.constant(gradient[0], tf.float32)], [variable])
    np.testing.assert_allclose(variable.numpy(), weights[0], rtol=1e-6)


def test_a_step_moves_queries_by_the_optimiser_and_keys_by_the_average_only():
    model, batch = make_model(momentum=0.0), make_batch()
    before = [v.numpy() for v in model.query_variables]
    model.train_step(batch)
    for key, query_before, query in zip(model.key_variables, before, model.query_variables, strict=True):
        np.testing.assert_allclose(key.numpy(), query_before, atol=1e-6)  # momentum 0: theta_q before the update
        assert not np.array_equal(query.numpy(), query_before), query.path  # decay moves even unused biases


@pytest.mark.slow  # test_golden.py compiles a network of five convolutions
def test_the_step_of_a_resnet_compiles_under_xla():
    """One batch-norm group: the shuffle's draws, other under XLA, then change nothing in the losses."""
    plain, compiled, batch = make_model(), make_model(), make_batch()
    before = [v.numpy() for v in plain.query_variables]
    expected = tf.function(plain.train_step, autograph=False)(batch)
    logs = tf.function(compiled.train_step, jit_compile=True, autograph=False)(batch)
    for name, value in expected.items():
        assert float(logs[name]) == pytest.approx(float(value), rel=5e-5, abs=1e-6), name
    # Statistics over the four numbers of a P5 of one cell multiply rounding; a wrong gradient is off by far more.
    for start, a, b in zip(before, plain.query_variables, compiled.query_variables, strict=True):
        assert np.linalg.norm(a - b) <= 1e-2 * np.linalg.norm(a - start) + 1e-6, a.path


@pytest.mark.slow
def test_groups_and_photometrics_compile_under_xla():
    model, batch = make_model(micro_batches=2, photometric="moco_v2"), make_batch()
    before = [v.numpy() for v in model.query_variables]
    logs = tf.function(model.train_step, jit_compile=True, autograph=False)(batch)
    assert all(np.isfinite(float(value)) for value in logs.values())
    assert all((a != b.numpy()).any() for a, b in zip(before, model.query_variables, strict=True))


def test_no_valid_pair_gives_no_patch_loss_and_leaves_patch_banks_alone():
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


def test_banks_wrap_over_steps():
    model = make_model()
    for i in range(4):
        model.train_step(make_batch(seed=i))
    assert int(model.banks["image_P5"].next_row) == 4 * BATCH % BANK
    assert int(model.banks["patch_P4"].next_row) == 4 * 4 * BATCH % BANK  # 64 keys went round a ring of 37


def test_levels_without_weight_cost_nothing():
    model = make_model(image_weights=(0, 0, 0, 1), patch_weights=(0, 0, 0, 0))
    assert list(model.banks) == list(model.query_encoder.heads) == ["image_P5"]
    assert isinstance(model.banks["image_P5"], MemoryBank)


def test_micro_batches_equal_one_group_of_a_model_without_batch_norm_leaks():
    """Two groups of the same four images give each group's own statistics: the loss of one group, exactly."""
    one, two = make_model(), make_model(micro_batches=2)
    batch = make_batch()
    doubled = {name: tf.concat([value, value], 0) for name, value in batch.items()}
    single = one._query_gradients(*_views_and_keys(one, batch))
    double = two._query_gradients(*_views_and_keys(two, doubled, keys_of=one, half=batch))
    for a, b in zip(single[0], double[0], strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), atol=2e-5 * max(1.0, float(tf.reduce_max(tf.abs(a)))))
    for name in single[1]:
        assert float(single[1][name]) == pytest.approx(float(double[1][name]), rel=1e-5, abs=1e-6), name


def _views_and_keys(model, batch, keys_of=None, half=None):
    """Normalised first views, the batch, and keys (of another model and batch, repeated, where given)."""
    step = tf.constant(0, tf.int64)
    views = model._augment(batch, step)
    if keys_of is None:
        keys = model._encode_keys(views[1], batch["boxes_2"], batch["flipped_2"], step)
    else:
        second = keys_of._augment(half, step)[1]
        keys = keys_of._encode_keys(second, half["boxes_2"], half["flipped_2"], step)
        keys = {name: tf.concat([key, key], 0) for name, key in keys.items()}
    return views[0], batch, keys


def test_drawn_patch_keys_come_from_valid_images_and_their_own_cells():
    keys = tf.reshape(tf.range(5 * 2 * 2, dtype=tf.float32), [5, 2, 2, 1]) * tf.ones([1, 1, 1, 3])
    valid = tf.constant([True, False, True, False, False])
    drawn = draw_patch_keys(keys, valid, 50, tf.constant([1, 2], tf.int64)).numpy()[:, 0].reshape(5, 50)
    assert set(np.unique(drawn)) == {0, 1, 2, 3, 8, 9, 10, 11}
    assert set(drawn[0] // 4) == {0} and set(drawn[2] // 4) == {2}  # a valid image draws from itself


@pytest.mark.parametrize("changes, message", [
    ({"image_weights": (1, 1)}, "one number for each of P2, P3, P4, P5"),
    ({"image_weights": (0,) * 4, "patch_weights": (0,) * 4}, "a weight above 0"),
    ({"patch_reduction": "max"}, "'mean' or 'sum'"),
    ({"head": "deep"}, "'mlp' or 'linear'"),
])  # fmt: skip
def test_wrong_settings_are_refused_at_construction(changes, message):
    with pytest.raises(ValueError, match=message):
        make_model(**changes)


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
