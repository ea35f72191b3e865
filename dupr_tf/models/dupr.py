"""DUPR: momentum contrast of images at four levels, and of the patches of two views' overlap (the paper's figure 3)."""

from __future__ import annotations

import keras
import tensorflow as tf

from dupr_tf.batch import ViewPair
from dupr_tf.models.encoder import Encoder
from dupr_tf.models.memory_bank import MemoryBank
from dupr_tf.models.observations import bank_ages, match_accuracy, similarities, spreads
from dupr_tf.models.resnet import LEVELS
from dupr_tf.ops import gather
from dupr_tf.ops.info_nce import info_nce_with_accuracy
from dupr_tf.ops.photometric import PRESETS, Draws, apply_and_normalise, draw

ARGUMENTS = (
    "image_weights", "patch_weights", "roi_sizes", "embedding_dim", "head", "temperature", "momentum", "bank_size",
    "patch_keys_per_image", "patch_reduction", "sampling_ratio", "photometric", "micro_batches", "seed",
)  # fmt: skip
PURPOSES = {"view_1": 1, "view_2": 2, "shuffle": 3, "cells": 4}  # streams of random numbers within a step


@keras.saving.register_keras_serializable("dupr_tf")
class DUPR(keras.Model):
    """The pre-training model: two encoders, a memory bank for each loss, and the step that trains them.

    Train it with `compile(optimizer)` and `fit(dataset of ViewPair batches)`; keep `model.backbone`.

    Args:
        backbone: a Functional Keras model with `pyramid_outputs` or `pyramid_level_inputs`.
        image_weights: alpha of P2..P5 (eq. 2). A level with weight 0 has no head, no bank and costs nothing.
        patch_weights: beta of P2..P5 (eq. 2).
        roi_sizes: S of P2..P5: the overlap is cut into S x S patches.
        embedding_dim: C, width of every embedding.
        head: "mlp" (MoCo v2, DUPR) or "linear" (MoCo v1).
        temperature: tau of every loss.
        momentum: m of the exponential moving average that makes the key encoder.
        bank_size: K, keys in each memory bank.
        patch_keys_per_image: patch keys an image contributes to a bank in a step.
        patch_reduction: "mean" over the cells of eq. 5, or "sum" as it is printed.
        sampling_ratio: of RoIAlign.
        photometric: name of the colour augmentation, see `dupr_tf.ops.photometric`.
        micro_batches: batch-norm groups of a step over all devices; keys are shuffled over them (METHOD section 6).
        seed: of every random draw inside the step; a draw is a function of (seed, step, row).

    Raises:
        ValueError: for weights or sizes of another length than the levels, or no loss at all.
    """

    def __init__(
        self,
        backbone,
        image_weights=(0.1, 0.4, 0.7, 1.0),
        patch_weights=(0.0, 0.0, 1.0, 1.0),
        roi_sizes=(56, 28, 14, 7),
        embedding_dim=128,
        head="mlp",
        temperature=0.2,
        momentum=0.999,
        bank_size=65536,
        patch_keys_per_image=4,
        patch_reduction="mean",
        sampling_ratio=1,
        photometric="moco_v2",
        micro_batches=1,
        seed=0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        _check_levels(image_weights=image_weights, patch_weights=patch_weights, roi_sizes=roi_sizes)
        if patch_reduction not in ("mean", "sum"):
            raise ValueError(f"Expected patch_reduction 'mean' or 'sum', received {patch_reduction!r}. Fix: 'mean'")
        self.image_weights, self.patch_weights = tuple(image_weights), tuple(patch_weights)
        self.roi_sizes, self.embedding_dim, self.head = tuple(roi_sizes), embedding_dim, head
        self.temperature, self.momentum, self.bank_size = temperature, momentum, bank_size
        self.patch_keys_per_image, self.patch_reduction = patch_keys_per_image, patch_reduction
        self.sampling_ratio, self.photometric = sampling_ratio, photometric
        self.micro_batches, self.seed = micro_batches, seed

        self.loss_weights = {  # {loss name: alpha or beta}, zeros left out
            f"{kind}_{level}": float(weight)
            for kind, weights in (("image", image_weights), ("patch", patch_weights))
            for level, weight in zip(LEVELS, weights, strict=True)
            if weight
        }
        if not self.loss_weights:
            raise ValueError("Expected a weight above 0, received none. Fix: image_weights=(0.1, 0.4, 0.7, 1.0)")
        self.backbone = backbone
        self.query_encoder = self._encoder(backbone, "query_encoder")
        self.key_encoder = self._encoder(type(backbone).from_config(backbone.get_config()), "key_encoder")
        self._start_key_encoder()
        self.banks = {
            name: MemoryBank(bank_size, embedding_dim, seed=seed + i, name=f"bank_{name}")
            for i, name in enumerate(self.loss_weights)
        }
        self.step = self.add_weight(  # steps taken; the optimiser's own count leaves out those float16 skips
            shape=(), dtype="int64", initializer="zeros", trainable=False, aggregation="only_first_replica",
            autocast=False, name="step",
        )  # fmt: skip
        self.built = True

    def _encoder(self, backbone, name):
        image_levels = [level for level, weight in zip(LEVELS, self.image_weights, strict=True) if weight]
        patch_sizes = {
            level: size
            for level, weight, size in zip(LEVELS, self.patch_weights, self.roi_sizes, strict=True)
            if weight
        }
        return Encoder(
            backbone, image_levels, patch_sizes, self.embedding_dim, self.head, self.sampling_ratio, name=name
        )

    def _start_key_encoder(self):
        """Copies every weight, and takes the key parameters from the optimiser's sight.

        `trainable = False` goes on the *variables*: set on the layer it would switch its batch norm to inference.
        """
        self.query_variables = self.query_encoder.trainable_variables
        self.key_variables = self.key_encoder.trainable_variables
        self.key_encoder.set_weights(self.query_encoder.get_weights())
        for variable in self.key_variables:
            variable.trainable = False

    def train_step(self, batch: ViewPair):
        """One step in the paper's order (METHOD sections 1 and 6); B images over all replicas, b on this one."""
        step = tf.convert_to_tensor(self.step)
        views_1, views_2 = self._augment(batch, step)  # (b, H, W, 3) float32 each
        before = self._state()
        self._update_key_encoder()  # theta_k <- m theta_k + (1 - m) theta_q, before the optimiser moves theta_q
        keys = self._encode_keys(views_2, batch["boxes_2"], batch["flipped_2"], step)  # (B, ..., C) by loss name
        gradients, logs = self._query_gradients(views_1, batch, keys)  # of the global mean, summed over groups
        self.optimizer.apply(gather.agree_on_finite(gradients), self.query_variables)
        finite = self._take_back_unless_finite(before, logs)
        self._enqueue(keys, gather.all_gather(batch["valid"]), step, finite)
        self.step.assign_add(tf.cast(finite, tf.int64))
        return {**logs, **spreads(keys), **bank_ages(step, self._enqueued(keys), self.bank_size)}

    def _state(self):
        """[(variable, its value now)] of both encoders and the optimiser; a value costs a copy only once written."""
        variables = [*self.query_encoder.variables, *self.key_encoder.variables, *self.optimizer.variables]
        return [(variable, tf.convert_to_tensor(variable.value)) for variable in variables]

    def _take_back_unless_finite(self, before, logs):
        """Whether the step's loss and new weights are finite; if not, all is as before it and `logs` has a loss of NaN.

        Weights tell of gradients: what is not finite stays so through the optimiser, and what float16's loss scaling
        has skipped is no divergence, until the gradients overflow unscaled too (a scale below 1).
        """
        weights = [tf.reduce_all(tf.math.is_finite(v.value)) for v in self.query_variables]
        finite = tf.math.is_finite(logs["loss"]) & tf.reduce_all(weights)
        if isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer):
            finite &= self.optimizer.dynamic_scale.value >= 1.0
        counts = [(variable, old) for variable, old in before if variable.aggregation != "none"]
        for variable, old in counts:  # scalars; replicas meet to write them, which a branch does not allow
            variable.assign(tf.where(finite, variable.value, old))

        def take_back():
            for variable, old in before:
                if variable.aggregation == "none":
                    variable.assign(old)

        tf.cond(finite, lambda: None, take_back)
        logs["loss"] = tf.where(finite, logs["loss"], float("nan"))
        return finite

    def _augment(self, batch, step):
        """Photometrics of both views, each row with the draws of its place in the global batch."""
        recipe, views = PRESETS[self.photometric], []
        for name in ("view_1", "view_2"):
            images = batch[name]
            draws = draw(images.shape[0] * gather.replica_count(), self._seed(step, name), self.photometric)
            views.append(apply_and_normalise(images, Draws(*map(gather.own_rows, draws)), recipe))
        return views

    def _update_key_encoder(self):
        for query, key in zip(self.query_variables, self.key_variables, strict=True):
            key.assign_add((1.0 - self.momentum) * (query - key))

    def _encode_keys(self, views, boxes, flipped, step):
        """Keys of the whole batch, encoded in shuffled groups so that no key shares batch statistics with its query."""
        inputs = [gather.all_gather(x) for x in (views, boxes, flipped)]  # (B, ...)
        order, undo = gather.permutation(inputs[0].shape[0], self._seed(step, "shuffle"))
        inputs = [gather.own_rows(tf.gather(x, order)) for x in inputs]  # (b, ...)
        keys = self._in_groups(lambda *group: self.key_encoder(*group, training=True), inputs)
        return {name: tf.stop_gradient(tf.gather(gather.all_gather(key), undo)) for name, key in keys.items()}

    def _query_gradients(self, views, batch, keys):
        """Gradients of the global mean loss w.r.t. the query encoder, and the scalars to log."""
        pairs = gather.global_sum(tf.reduce_sum(tf.cast(batch["valid"], tf.float32)))
        images = float(views.shape[0] * gather.replica_count())
        positives = {name: gather.own_rows(key) for name, key in keys.items()}
        inputs = (views, batch["boxes_1"], batch["flipped_1"], batch["valid"], positives)
        bank_means = {name: tf.reduce_mean(bank.read(), axis=0) for name, bank in self.banks.items()}

        def group_gradients(inputs):
            with tf.GradientTape() as tape:
                loss, terms = self._loss(*inputs, images, pairs, bank_means)
                scaled = self.optimizer.scale_loss(loss)
            gradients = tape.gradient(scaled, self.query_variables, unconnected_gradients="zero")
            return gradients, tf.stack([loss, *terms.values()])

        gradients, scalars = self._sum_over_groups(group_gradients, inputs)
        return gradients, self._logs(gather.global_sum(scalars), pairs / images)

    def _loss(self, views, boxes, flipped, valid, positives, images, pairs, bank_means):
        """This group's share of eq. 2, and of each term's scalars: summed over all groups they are global means."""
        queries = self.query_encoder(views, boxes, flipped, training=True)
        loss, terms = 0.0, {}
        for name, weight in self.loss_weights.items():
            losses, hits = self._contrast(name, queries[name], positives[name])  # (b,) or (b, S * S)
            if name.startswith("image"):
                share = tf.ones_like(losses) / images
            else:
                cells = 1.0 if self.patch_reduction == "sum" else float(losses.shape[1])
                share = tf.cast(valid, tf.float32)[:, None] / (tf.maximum(pairs, 1.0) * cells)
                hits /= float(losses.shape[1]) / cells
            terms[f"loss/{name}"] = tf.reduce_sum(share * losses)
            terms[f"accuracy/{name}"] = tf.reduce_sum(share * hits)
            loss += weight * terms[f"loss/{name}"]
            terms |= self._observed(name, queries[name], positives[name], bank_means[name], valid, images, pairs)
        return loss, terms

    def _observed(self, name, queries, positives, bank_mean, valid, images, pairs):
        """What `_term_names` has of a loss beside its own: means over images, or over the cells of valid pairs."""
        is_image = name.startswith("image")
        share = tf.ones_like(pairs) / images if is_image else tf.cast(valid, tf.float32) / tf.maximum(pairs, 1.0)
        positive, negative = similarities(queries, positives, bank_mean)  # (b, cells)
        observed = {"positive": tf.reduce_mean(positive, -1), "negative": tf.reduce_mean(negative, -1)}
        if not is_image:
            observed["match"] = match_accuracy(queries, positives)
        return {f"{what}/{name}": tf.reduce_sum(share * values) for what, values in observed.items()}

    def _term_names(self):
        """The scalars of `_loss`, in its order."""
        for name in self.loss_weights:
            whats = ("loss", "accuracy", "positive", "negative", "match")
            yield from (f"{what}/{name}" for what in (whats if name.startswith("patch") else whats[:-1]))

    def _contrast(self, name, queries, positives):
        """InfoNCE (eqs. 5, 6) and hits of one loss, (b,) for images and (b, S * S) for patches."""
        dim, bank = self.embedding_dim, self.banks[name].read()
        losses, hits = info_nce_with_accuracy(
            tf.reshape(queries, [-1, dim]), tf.reshape(positives, [-1, dim]), bank, self.temperature
        )
        shape = [queries.shape[0]] if name.startswith("image") else [queries.shape[0], -1]
        return tf.reshape(losses, shape), tf.reshape(hits, shape)

    def _enqueue(self, keys, valid, step, where):
        """All image keys; of patch keys, random cells of each image, invalid pairs replaced by valid ones.

        Nothing where `where`, () bool, is false.
        """
        for name, bank in self.banks.items():
            if name.startswith("image"):
                bank.enqueue(keys[name], where)
            else:
                seed = self._seed(step, "cells", extra=list(self.banks).index(name))
                drawn = draw_patch_keys(keys[name], valid, self.patch_keys_per_image, seed)
                bank.enqueue(drawn, where & tf.reduce_any(valid))

    def _enqueued(self, keys):
        """{kind: keys a step puts into each bank}."""
        images = {name.split("_")[0]: key.shape[0] for name, key in keys.items()}
        return {kind: n * (self.patch_keys_per_image if kind == "patch" else 1) for kind, n in images.items()}

    def _in_groups(self, function, inputs):
        """Applies `function` to each batch-norm group of `inputs` (b, ...) and joins the outputs."""
        groups = self.micro_batches // gather.replica_count()
        if groups == 1:
            return function(*inputs)
        split = tf.nest.map_structure(lambda x: _split(x, groups), inputs)
        spec = {name: tf.float32 for name in self.loss_weights}
        outputs = tf.map_fn(lambda group: function(*group), split, fn_output_signature=spec, parallel_iterations=1)
        return {name: tf.reshape(x, [-1, *x.shape[2:]]) for name, x in outputs.items()}

    def _sum_over_groups(self, function, inputs):
        """Sum of `function(group)` over the batch-norm groups; only one group's activations are alive at a time."""
        groups = self.micro_batches // gather.replica_count()
        if groups == 1:
            return function(inputs)
        split = tf.nest.map_structure(lambda x: _split(x, groups), inputs)
        start = (
            [tf.zeros(v.shape, v.dtype) for v in self.query_variables],
            tf.zeros(1 + len(list(self._term_names()))),
        )

        def add_group(i, total):
            outputs = function(tf.nest.map_structure(lambda x: x[i], split))
            return i + 1, tf.nest.map_structure(tf.add, total, outputs)

        return tf.while_loop(
            lambda i, _: i < groups, add_group, (0, start), parallel_iterations=1, maximum_iterations=groups
        )[1]

    def _logs(self, scalars, valid_share):
        logs = dict(zip(["loss", *self._term_names()], tf.unstack(scalars), strict=True))
        return {
            **logs,
            "valid_share": valid_share,
            "learning_rate": tf.cast(self.optimizer.learning_rate, tf.float32),
        }

    def _seed(self, step, purpose, extra=0):
        """(2,) seed of one stream of one step."""
        return tf.stack([tf.constant(self.seed + (PURPOSES[purpose] << 32) + (extra << 40), tf.int64), step])

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        """Nothing: all is built at construction. Keras' own sums a batch over replicas, which bools do not allow."""

    def call(self, images, training=None):
        """The query backbone's features, {level: (B, H/s, W/s, C)}."""
        return self.query_encoder.pyramid(images, training=training)

    def get_config(self):
        config = {name: getattr(self, name) for name in ARGUMENTS}
        return {**config, "backbone": keras.saving.serialize_keras_object(self.backbone), "name": self.name}

    @classmethod
    def from_config(cls, config):
        backbone = keras.saving.deserialize_keras_object(config.pop("backbone"))
        return cls(backbone, **config)


def draw_patch_keys(keys, valid, count, seed):
    """Draws the patch keys a step enqueues: `count` cells of each image (METHOD section 5).

    Args:
        keys: (B, S, S, C) patch keys of the global batch.
        valid: (B,) bool; an image whose pair is invalid is replaced by a random valid one, so the count is fixed.
        count: cells an image.
        seed: (2,) integer.

    Returns:
        (B * count, C); arbitrary rows where no pair is valid.
    """
    images, side, dim = keys.shape[0], keys.shape[1], keys.shape[3]
    u = tf.random.stateless_uniform([images, count + 1], seed=seed)
    number = tf.reduce_sum(tf.cast(valid, tf.int32))
    chosen = tf.cast(u[:, 0] * tf.cast(number, tf.float32), tf.int32)  # among the valid ones
    valid_first = tf.argsort(tf.cast(~valid, tf.int32), stable=True)  # valid images, then the others
    substitute = tf.gather(valid_first, tf.clip_by_value(chosen, 0, images - 1))
    source = tf.where(valid, tf.range(images), substitute)  # (B,)
    cells = tf.minimum(tf.cast(u[:, 1:] * float(side * side), tf.int32), side * side - 1)  # (B, count)
    picked = tf.gather(tf.reshape(keys, [images, side * side, dim]), source)
    return tf.reshape(tf.gather(picked, cells, batch_dims=1), [images * count, dim])


def _split(rows, groups):
    return tf.reshape(rows, [groups, rows.shape[0] // groups, *rows.shape[1:]])


def _check_levels(**per_level):
    for name, values in per_level.items():
        if len(values) != len(LEVELS):
            raise ValueError(
                f"Expected {name} to hold one number for each of {', '.join(LEVELS)}, received {values}. "
                f"Fix: give {len(LEVELS)} numbers"
            )
