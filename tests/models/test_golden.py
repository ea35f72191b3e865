"""Compares whole steps of DUPR with `tests.golden`, and of its MoCo v2 preset with `tests.golden_moco`.

A "relative" difference is the greater of two: the norm of a tensor's difference over the norm of the expected tensor,
and its largest element's difference over the largest expected element. `FLOOR` keeps a tensor of zeros comparable.

In float32, a ReLU input within rounding of 0 may take the other branch. A gradient then jumps by far more than the
tolerance (seen: 2e-3 from an input of 1.5e-7). Each step therefore takes the first batch whose inputs all stay `MARGIN`
away.
"""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from dupr_tf.models import DUPR
from dupr_tf.models.resnet import conv_bn
from dupr_tf.models.terms import PatchContrast
from dupr_tf.models.terms.contrast import draw_patch_keys
from dupr_tf.training.optimizers import Cosine, CoupledSGD
from tests.golden import MEAN, STAGES, STD, GoldenDUPR, embed, nearest_kink
from tests.golden_moco import FC, MoCoV2

TOLERANCE, FLOOR, MARGIN = 1e-4, 1e-8, 1e-5
MOCO_STEPS = 5
SIZE, BATCH, DIM, PER_IMAGE = 64, 8, 8, 4
CHANNELS = dict(zip(STAGES, (4, 6, 8, 10, 12), strict=True))
IMAGE_BANK_ROW, PATCH_BANK_ROW, BANK = 41, 30, 45  # 8 and 32 keys a step: every bank wraps in the first step
TRAINING = {"learning_rate": 0.03, "momentum": 0.9, "coupled_decay": 0.02}  # a decay large enough to show
SETTINGS = {
    "image_weights": (0.1, 0.4, 0.7, 1.0), "patch_weights": (0.0, 0.3, 0.6, 0.9), "roi_sizes": (9, 5, 3, 3),
    "embedding_dim": DIM, "bank_size": BANK, "patch_keys_per_image": PER_IMAGE, "momentum": 0.9,
    "temperature": 0.2, "photometric": "none", "micro_batches": 1, "seed": 5,
}  # fmt: skip
VALID = [  # which pairs are valid in each step
    [True, True, False, True, True, False, True, True],
    [False, True, True, True, False, True, True, False],
    [True] * BATCH,
    [False] * BATCH,
]


@keras.saving.register_keras_serializable("dupr_tf_tests")
class TinyBackbone(keras.Model):
    """The backbone of `tests.golden`, made of this package's convolution and batch norm."""

    def __init__(self, channels, dtype="float32", name="tiny"):
        images = keras.Input((SIZE, SIZE, 3), name="images")
        x, levels = images, {}
        for stage, filters in channels.items():
            x = conv_bn(x, filters, 3, strides=2, name=stage, dtype=dtype)
            x = levels[stage] = keras.layers.Activation("relu", dtype=dtype, name=f"{stage}_out")(x)
        super().__init__(inputs=images, outputs=x, name=name)
        self.channels, self.dtype_name = dict(channels), dtype
        self.pyramid_level_inputs = {level: f"{level}_out" for level in STAGES[1:]}
        self.pyramid_outputs = {level: levels[level] for level in STAGES[1:]}

    def get_config(self):
        return {"channels": self.channels, "dtype": self.dtype_name, "name": self.name}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        return cls(**config)


class RecordingSGD(CoupledSGD):
    """The package's optimiser, which also keeps the gradients it received."""

    def build(self, variables):
        super().build(variables)
        self.received = [self.add_variable_from_reference(v, name="received") for v in variables]

    def update_step(self, gradient, variable, learning_rate):
        self.assign(self.received[self._get_variable_index(variable)], gradient)
        super().update_step(gradient, variable, learning_rate)


# --- the same start on both sides -----------------------------------------------------------------


def variables_by_name(encoder):
    """{golden name: variable} of every parameter of an encoder."""
    named = {}
    for stage in STAGES:
        norm = encoder.backbone.get_layer(f"{stage}_bn")
        named[f"{stage}/kernel"] = encoder.backbone.get_layer(f"{stage}_conv").kernel
        named[f"{stage}/gamma"], named[f"{stage}/beta"] = norm.gamma, norm.beta
    for name, head in encoder.projectors.items():
        for i, dense in enumerate((head.hidden, head.output_layer), start=1):
            named[f"{name}/kernel_{i}"], named[f"{name}/bias_{i}"] = dense.kernel, dense.bias
    return named


def values(named):
    return {name: np.asarray(variable, np.float64) for name, variable in named.items()}


def given_weight(name, shape, random):
    """Returns well-conditioned values: unit-size activations, no dead channel."""
    what = name.split("/")[1]
    if what == "gamma":
        return random.uniform(0.6, 1.4, shape)
    if what.startswith("kernel"):
        return random.normal(0.0, 1.0 / math.sqrt(np.prod(shape[:-1])), shape)
    return random.normal(0.0, 0.2, shape)


def make_model(learning_rate=TRAINING["learning_rate"], **changes):
    """Returns a DUPR with given weights: keys slightly different from queries, banks about to wrap."""
    model, random = DUPR(TinyBackbone(CHANNELS), **{**SETTINGS, **changes}), np.random.default_rng(0)
    keys = variables_by_name(model.key_encoder)
    for name, query in variables_by_name(model.query_encoder).items():
        value = given_weight(name, query.shape, random)
        query.assign(value)
        keys[name].assign(value + 0.1 * random.normal(0.0, np.std(value), query.shape))
    model.compile(optimizer=RecordingSGD(learning_rate, TRAINING["momentum"], TRAINING["coupled_decay"]))
    model.optimizer.build(model.query_variables)
    for name, bank in model.banks.items():
        bank.next_row.assign(IMAGE_BANK_ROW if name.startswith("image") else PATCH_BANK_ROW)
    return model


def make_golden(model):
    return GoldenDUPR(
        losses={term.name: term.weight for term in model.terms},
        sizes={term.level: term.size for term in model.terms if isinstance(term, PatchContrast)},
        weights=values(variables_by_name(model.query_encoder)),
        key_weights=values(variables_by_name(model.key_encoder)),
        banks={name: np.array(bank.keys, np.float64) for name, bank in model.banks.items()},
        next_rows={name: int(bank.next_row) for name, bank in model.banks.items()},
        temperature=SETTINGS["temperature"],
        momentum=model.momentum,
        learning_rate=TRAINING["learning_rate"],
        sgd_momentum=TRAINING["momentum"],
        decay=TRAINING["coupled_decay"],
        moving={stage: moving_statistics(model, stage) for stage in STAGES},
    )


def moving_statistics(model, stage):
    norm = model.backbone.get_layer(f"{stage}_bn")
    return [np.array(norm.moving_mean, np.float64), np.array(norm.moving_variance, np.float64)]


def make_batch(seed, valid=VALID[0]):
    """Returns images of different colours with coarse structure and noise, and small, large and edge boxes.

    Without the colours the pooled features hardly differ, and a float32 gradient is a difference of nearly equal
    numbers.
    """
    random = np.random.default_rng(seed)
    colour = random.integers(0, 60, (BATCH, 1, 1, 3))
    coarse = random.integers(0, 116, (2, BATCH, 8, 8, 3)).repeat(8, 2).repeat(8, 3)
    views = (colour + coarse + random.integers(0, 81, (2, BATCH, SIZE, SIZE, 3))).astype(np.uint8)
    low = random.uniform(0.0, 20.0, (2, BATCH, 2))
    boxes = np.concatenate([low, low + random.uniform(20.0, 44.0, (2, BATCH, 2))], -1)
    boxes[0, 0], boxes[1, 1] = (0.0, 0.0, SIZE, SIZE), (0.0, 30.0, 34.0, SIZE)
    flipped = random.permuted(np.resize([False, True], (2, BATCH)), axis=1)
    return {
        "view_1": views[0], "view_2": views[1],
        "boxes_1": boxes[0].astype(np.float32), "boxes_2": boxes[1].astype(np.float32),
        "flipped_1": flipped[0], "flipped_2": flipped[1],
        "valid": np.array(valid), "index": np.arange(BATCH),
    }  # fmt: skip


def clear_batch(first_seed, valid, margin):
    """Returns the first batch whose ReLU inputs all keep clear of 0."""
    for seed in range(1000 * first_seed, 1000 * first_seed + 100):
        batch = make_batch(seed, valid)
        if margin(batch) > MARGIN:
            return batch
    raise AssertionError("no batch keeps clear of every kink")


def golden_tape(golden, batch):
    """Returns what the query encoder keeps of a batch for its backward pass."""
    first = batch["view_1"], batch["boxes_1"], batch["flipped_1"]
    return embed(golden.weights, golden.losses, golden.sizes, *first)[1]


def drawn_cells(model, valid):
    """Returns {patch loss: (B * 4,) cells that the next step enqueues}, by drawing from a map of cell numbers."""
    drawn = {}
    for term in model.terms:
        if isinstance(term, PatchContrast):
            name, side = term.name, term.size
            numbers = tf.reshape(tf.range(BATCH * side * side, dtype=tf.float32), [BATCH, side, side, 1])
            seed = model.seed_of(f"keys/{name}", tf.convert_to_tensor(model.step))
            drawn[name] = draw_patch_keys(numbers, tf.constant(valid), PER_IMAGE, seed).numpy().astype(int)[:, 0]
            images = drawn[name].reshape(BATCH, PER_IMAGE) // side**2
            assert not np.any(valid) or np.all(valid[images])
            assert np.all(images[valid] == np.flatnonzero(valid)[:, None])  # a valid image draws from itself
    return drawn


# --- comparing ------------------------------------------------------------------------------------


def relative(actual, expected):
    """Returns the relative difference that the module's docstring defines."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    difference = np.abs(actual - expected)
    by_norm = np.linalg.norm(difference) / (np.linalg.norm(expected) + FLOOR / TOLERANCE)
    return max(by_norm, difference.max() / (np.abs(expected).max() + FLOOR / TOLERANCE))


def of_optimiser(model, what):
    """Returns {golden name: array} of the optimiser's `velocities` or `received` gradients."""
    named = variables_by_name(model.query_encoder)
    by_path = dict(zip((v.path for v in model.query_variables), getattr(model.optimizer, what), strict=True))
    assert {v.path for v in named.values()} == by_path.keys()
    return values({name: by_path[v.path] for name, v in named.items()})


def state_of(model):
    """Returns {label: array} of the state after a step."""
    state = {f"query {name}": value for name, value in values(variables_by_name(model.query_encoder)).items()}
    state |= {f"key {name}": value for name, value in values(variables_by_name(model.key_encoder)).items()}
    state |= {f"velocity {name}": value for name, value in of_optimiser(model, "velocities").items()}
    state |= {f"bank {name}": bank.keys.numpy() for name, bank in model.banks.items()}
    for stage in STAGES:
        state[f"moving mean {stage}"], state[f"moving variance {stage}"] = moving_statistics(model, stage)
    return state


def golden_state(golden):
    state = {f"query {name}": value for name, value in golden.weights.items()}
    state |= {f"key {name}": value for name, value in golden.key_weights.items()}
    state |= {f"velocity {name}": value for name, value in golden.velocities.items()}
    state |= {f"bank {name}": bank for name, bank in golden.banks.items()}
    for stage, (mean, variance) in golden.moving.items():
        state[f"moving mean {stage}"], state[f"moving variance {stage}"] = mean, variance
    return state


def differences(actual, expected):
    assert actual.keys() == expected.keys()
    return {label: relative(actual[label], expected[label]) for label in expected}


def assert_small(found, label):
    too_large = {name: f"{value:.1e}" for name, value in found.items() if not value <= TOLERANCE}
    assert not too_large, f"{label}: {too_large}"


# --- the tests ------------------------------------------------------------------------------------


def golden_steps():
    """Returns {what: {tensor: relative difference}} of each of four steps; the fourth has no valid pair."""
    model = make_model()
    golden, step = make_golden(model), tf.function(model.train_step, autograph=False)
    for i, valid in enumerate(VALID):
        batch = clear_batch(i, valid, lambda batch: nearest_kink(golden_tape(golden, batch)))
        drawn = drawn_cells(model, batch["valid"])
        logs = step({name: tf.constant(value) for name, value in batch.items()})
        golden_logs, golden_gradients = golden.step(batch, drawn)
        logs = {name: float(value) for name, value in logs.items()}
        assert logs.pop("valid_share") == np.mean(valid)
        assert logs.pop("learning_rate") == pytest.approx(TRAINING["learning_rate"])
        for name in [name for name in logs if name.startswith("negative/")]:  # near 0, so the difference is absolute
            assert logs.pop(name) == pytest.approx(golden_logs.pop(name), abs=1e-6)
        assert {name: int(bank.next_row) for name, bank in model.banks.items()} == golden.next_rows
        yield {
            "logs": differences(logs, golden_logs),
            "gradients": differences(of_optimiser(model, "received"), golden_gradients),
            "state": differences(state_of(model), golden_state(golden)),
        }
    assert len(golden.banks) == 7


def test_four_steps_agree_with_the_golden_steps():
    """Compares terms, gradients, weights, keys, banks and moving statistics after each step."""
    for i, found in enumerate(golden_steps()):
        for what, of_tensors in found.items():
            assert_small(of_tensors, f"{what} of step {i + 1}")


def test_whole_step_compiles_under_xla():
    """XLA draws other numbers. In a first step of one group they affect only the stored patch keys."""
    found = []
    for compiled in (False, True):
        model = make_model(image_weights=(0, 0, 0, 1), patch_weights=(0, 0, 0.5, 0))
        step = tf.function(model.train_step, jit_compile=compiled, autograph=False)
        logs = step({name: tf.constant(value) for name, value in make_batch(0).items()})
        found.append((logs, of_optimiser(model, "received")))
    (plain, expected), (logs, received) = found
    for name, value in plain.items():
        assert float(logs[name]) == pytest.approx(float(value), rel=TOLERANCE, abs=1e-6), name
    assert_small(differences(received, expected), "gradients")


@pytest.mark.slow
def test_golden_gradients_are_finite_differences():
    """Takes central differences in float64, for the weight of largest gradient and a random one in each tensor."""
    golden, batch = make_golden(make_model()), make_batch(0)
    second = (batch["view_2"], batch["boxes_2"], batch["flipped_2"])
    keys, _ = embed(golden.key_weights, golden.losses, golden.sizes, *second)
    _, gradients, _ = golden.loss_and_gradients(batch, keys)
    random, width = np.random.default_rng(1), 1e-6
    for name, gradient in gradients.items():
        for at in (np.abs(gradient).argmax(), random.integers(gradient.size)):
            above, below = (loss_at(golden, batch, keys, name, at, by) for by in (width, -width))
            slope = (above - below) / (2 * width)
            assert slope == pytest.approx(gradient.flat[at], rel=1e-6, abs=1e-8), (name, at)
    assert gradients.keys() == golden.weights.keys()


def loss_at(golden, batch, keys, name, at, by):
    """Returns the loss with one weight moved."""
    kept = golden.weights[name]
    golden.weights[name] = kept.copy()
    golden.weights[name].flat[at] += by
    loss = golden.loss_and_gradients(batch, keys)[0]["loss"]
    golden.weights[name] = kept
    return loss


def moco_steps():
    """Returns {tensor: relative difference} of five iterations of MoCo v2, two an epoch, with the queue wrapping."""
    per_epoch, epochs, size = 2, 4, 4 * BATCH
    schedule = Cosine(TRAINING["learning_rate"], per_epoch * epochs, hold_steps=per_epoch)
    model = make_model(schedule, image_weights=(0, 0, 0, 1), patch_weights=(0, 0, 0, 0), bank_size=size)
    bank = model.banks["image_P5"]
    bank.next_row.assign(0)
    twin = MoCoV2(
        moco_names(values(variables_by_name(model.query_encoder))),
        moco_names(values(variables_by_name(model.key_encoder))),
        np.array(bank.keys, np.float64).T,
        T=SETTINGS["temperature"], m=model.momentum, lr=TRAINING["learning_rate"], epochs=epochs,
        momentum=TRAINING["momentum"], weight_decay=TRAINING["coupled_decay"],
    )  # fmt: skip
    step = tf.function(model.train_step, autograph=False)
    for i in range(MOCO_STEPS):
        batch = clear_batch(100 + i, VALID[2], lambda batch: twin.nearest_kink((batch["view_1"] / 255.0 - MEAN) / STD))
        logs = step({name: tf.constant(value) for name, value in batch.items()})
        loss = twin.train(*((batch[name] / 255.0 - MEAN) / STD for name in ("view_1", "view_2")), i // per_epoch)
        actual = {"loss": float(logs["loss"]), "queue": bank.keys.numpy().T}
        expected = {"loss": loss, "queue": twin.queue}
        for which, encoder, params in (
            ("query", model.query_encoder, twin.params_q),
            ("key", model.key_encoder, twin.params_k),
        ):
            found = moco_names(values(variables_by_name(encoder)))
            actual |= {f"{which} {name}": value for name, value in found.items()}
            expected |= {f"{which} {name}": value for name, value in params.items()}
        assert int(bank.next_row) == twin.queue_ptr
        yield differences(actual, expected)
    assert twin.queue_ptr == MOCO_STEPS * BATCH - size


def test_moco_preset_agrees_with_moco_v2():
    """With alpha = (0, 0, 0, 1) and beta = 0, DUPR is the authors' algorithm."""
    for i, found in enumerate(moco_steps()):
        assert_small(found, f"step {i + 1}")


def moco_names(weights):
    """Returns our head's names by torchvision's names."""
    ours = ("kernel_1", "bias_1", "kernel_2", "bias_2")
    renamed = {f"image_P5/{name}": theirs for name, theirs in zip(ours, FC, strict=True)}
    return {renamed.get(name, name): value for name, value in weights.items()}


def test_patch_keys_are_drawn_evenly():
    """Cells of an image are drawn equally often. Each valid image fills the place of an invalid one equally often."""
    valid, count = np.array([True, False, True, True]), 2000
    numbers = tf.reshape(tf.range(4 * 9, dtype=tf.float32), [4, 3, 3, 1])
    draws = [draw_patch_keys(numbers, valid, 4, tf.constant([3, i], tf.int64)).numpy() for i in range(count // 4)]
    drawn = np.stack(draws).astype(int).reshape(-1, 4, 4)
    assert all(len(set(row)) == 4 for row in drawn.reshape(-1, 4))  # drawn without replacement
    for image in (0, 2, 3):
        share = np.bincount(drawn[:, image].ravel() - 9 * image, minlength=9) / count
        np.testing.assert_allclose(share, 1 / 9, atol=0.02)
    stand_ins = np.bincount(drawn[:, 1, 0] // 9, minlength=4) / len(drawn)
    assert stand_ins[1] == 0.0
    np.testing.assert_allclose(stand_ins[[0, 2, 3]], 1 / 3, atol=0.1)
