"""DUPR: momentum contrast of images at four levels, and of the patches of two views' overlap (the paper's figure 3)."""

from __future__ import annotations

import math
import zlib

import keras
import tensorflow as tf

from dupr_tf.batch import ViewPair
from dupr_tf.config.terms import expand_short_form
from dupr_tf.models import twins
from dupr_tf.models.encoder import Encoder
from dupr_tf.models.inputs import check_backbone, check_batch, check_settings
from dupr_tf.models.observations import nan_if_diverged
from dupr_tf.models.terms import build_terms
from dupr_tf.ops import gather, groups
from dupr_tf.ops.photometric import PRESETS, Draws, apply_and_normalise, draw


@keras.saving.register_keras_serializable("dupr_tf")
class DUPR(keras.Model):
    """The pre-training model: two encoders, the terms of the loss with their memory banks, and the training step.

    Train it with `compile(optimizer)` and `fit(dataset of ViewPair batches)`; keep `model.backbone`.

    Args:
        backbone: a Functional Keras model with `pyramid_outputs` or `pyramid_level_inputs`.
        terms: terms of the loss (eq. 2). Each is a `Term`, or a dictionary of a kind and its arguments
            (`build_terms`). Default: DUPR's own terms, which `short_form` describes.
        momentum: m of the exponential moving average that makes the key encoder, in [0, 1).
        momentum_schedule: "constant", or "cosine" from `momentum` to 1 over `total_steps` (BYOL).
        total_steps: steps of the run; required by the cosine schedule.
        photometric: name of the colour augmentation, see `dupr_tf.ops.photometric`.
        micro_batches: number of batch-norm groups per step over all replicas, a multiple of the replica count. Keys
            are shuffled across groups (docs/method.md, Step).
        seed: seed of every random draw inside the step, in [0, 2**31).
        dtype: precision policy of the heads, if `terms` are not `Term` objects. Default: Keras' global policy.
        name: name of the model.
        **short_form: short form of DUPR's terms: `image_weights`, `patch_weights`, `roi_sizes`, `embedding_dim`,
            `head`, `temperature`, `bank_size`, `patch_keys_per_image`, `patch_reduction`, `sampling_ratio`. See
            `dupr_tf.config.terms.expand_short_form`.

    Attributes:
        terms: list of the terms.
        query_encoder, key_encoder: `Encoder`. The optimiser trains the first; the second is its moving average.
        query_variables: the variables that the optimiser trains.
        step: () int64 variable, the number of steps taken.

    Raises:
        UserError: terms in both forms, no term, two terms of one name, or a wrong value. Also if the backbone
            normalises images itself or cannot be copied, or if the replicas of the current strategy scope cannot share
            the groups evenly.
    """

    def __init__(self, backbone, terms=None, momentum=0.999, momentum_schedule="constant", total_steps=None,
                 photometric="moco_v2", micro_batches=1, seed=0, dtype=None, name=None, **short_form):  # fmt: skip
        super().__init__(name=name, autocast=False)
        check_backbone(backbone)
        check_settings(terms, short_form, momentum, momentum_schedule, total_steps, photometric, micro_batches, seed)
        self.momentum, self.momentum_schedule, self.total_steps = momentum, momentum_schedule, total_steps
        self.photometric, self.micro_batches, self.seed = photometric, micro_batches, seed
        self.terms = build_terms(expand_short_form(**short_form) if terms is None else terms, dtype)
        for term in self.terms:
            term.create_memory(self._stream(f"memory/{term.name}"))
        # (view of the queries, view of the keys, terms that compare in this direction)
        both_ways = [term for term in self.terms if term.symmetric]
        self.directions = ((1, 2, self.terms), (2, 1, both_ways))[: 2 if both_ways else 1]

        keyed, levels = [term for term in self.terms if term.needs_keys], [term.level for term in self.terms]
        self.backbone = backbone
        self.query_encoder = Encoder.of_terms(backbone, levels, self.terms, name="query_encoder")
        self.key_encoder = Encoder.of_terms(twins.clone_backbone(backbone), levels, keyed, name="key_encoder")
        for query, key in self._twins():
            key.assign(query)
        self._freeze_keys()
        columns = [f"{column}/{term.name}" for term in self.terms for column in term.columns]
        self.test_means = {name: keras.metrics.Mean(name) for name in ("loss", *columns)}  # means of `evaluate`
        self.step = self.add_weight(
            shape=(), dtype="int64", initializer="zeros", trainable=False, aggregation="only_first_replica",
            autocast=False, name="step",
        )  # fmt: skip
        self.built = True

    def _twins(self):
        """Returns pairs [(query encoder's variable, key encoder's variable)] of the variables that both have."""
        parts = self.query_encoder.twins(self.key_encoder)
        return [pair for query, key in parts for pair in twins.variable_pairs(query, key)]

    def _freeze_keys(self):
        for query, key in self.query_encoder.twins(self.key_encoder):
            twins.freeze_like(query, key)

    def make_train_function(self, force=False):
        """Builds the compiled step. Layers that are frozen by now stay fixed in both encoders."""
        self._freeze_keys()
        super().make_train_function(force)

    @property
    def query_variables(self):
        """Lists the variables that the optimiser trains: the query encoder's and those of the terms' predictors."""
        predictors = [variable for term in self.terms for variable in term.trainable_variables]
        return [*self.query_encoder.trainable_variables, *predictors]

    @property
    def moving_average(self):
        """Lists pairs [(query variable, key variable that follows it)]."""
        return [(query, key) for query, key in self._twins() if query.trainable]

    @property
    def key_variables(self):
        """Lists the variables that follow the query encoder by moving average."""
        return [key for _, key in self.moving_average]

    def train_step(self, batch: ViewPair):
        """Takes one training step in the paper's order (docs/method.md, Step).

        Args:
            batch: this replica's b pairs of views. All replicas together have B pairs.

        Returns:
            {name: () float32} to log, means over the B pairs. The loss is NaN if it or a new weight is not finite.

        Raises:
            UserError: see `check_batch`.
        """
        step, batch = tf.convert_to_tensor(self.step), check_batch(batch, self.terms, self.own_groups, training=True)
        self.update_key_encoder(step)  # theta_k <- m theta_k + (1 - m) theta_q, before the optimiser moves theta_q
        gradients, keys, logs = self.gradients(batch)
        logs["learning_rate"] = tf.cast(self.optimizer.learning_rate, tf.float32)  # before `apply` counts the step
        self.optimizer.apply(gather.agree_on_finite(gradients), self.query_variables)
        valid = gather.all_gather(batch["valid"])  # (B,)
        for term in self.terms:
            if term.needs_keys:
                term.remember(keys[2][term.name], valid, self.seed_of(f"keys/{term.name}", step))
                logs |= {f"{name}/{term.name}": value for name, value in term.describe(keys[2][term.name]).items()}
        self.step.assign_add(1)
        logs["loss"] = nan_if_diverged(logs["loss"], self.query_variables, self.optimizer)
        return logs

    def test_step(self, batch: ViewPair):
        """Computes the loss of a batch with batch norm's moving statistics. No weight and no memory changes.

        Args:
            batch: this replica's b pairs of views.

        Returns:
            {"loss", "COLUMN/TERM": () float32}, means over the batches since the metrics were reset.
        """
        step, batch = tf.convert_to_tensor(self.step), check_batch(batch, self.terms, groups=1)
        views = self.augment(batch, step)
        keys = {
            side: self.key_encoder.embed([t for t in terms if t.needs_keys], *views[side], training=False)
            for _, side, terms in self.directions
        }
        memories = {term.name: term.recall() for term in self.terms}
        scalars = self.group_loss(self._rows(batch, views, keys), memories, training=False)
        for name, value in gather.global_sums(scalars).items():
            self.test_means[name].update_state(value)
        return {name: mean.result() for name, mean in self.test_means.items()}

    @property
    def metrics(self):
        """Lists the means of `evaluate`. Keras' own tracker of a loss function is not used."""
        return list(self.test_means.values())

    def gradients(self, batch: ViewPair):
        """Computes the gradients of the loss at the current weights.

        Only batch norm's moving statistics change.

        Args:
            batch: this replica's b pairs of views.

        Returns:
            gradients: gradients of `query_variables`. Summed over replicas, they are those of the global batch's mean.
            keys: `{2: {term name: (B, ...) keys}}` of view 2. Symmetric terms also have keys of view 1, under 1.
            logs: `{"loss", "COLUMN/TERM", "valid_share": () float32}`, means over the global batch.
        """
        step = tf.convert_to_tensor(self.step)
        views = self.augment(batch, step)  # {1 or 2: ((b, H, W, 3), boxes (b, 4), flipped (b,))}
        keys = {side: self.encode_keys(views[side], terms, step) for _, side, terms in self.directions}
        gradients, logs = self.query_gradients(batch, views, keys)
        return gradients, keys, logs

    def augment(self, batch, step):
        """Augments colours; draws depend on a row's place in the global batch.

        Returns:
            {view: (images, boxes, flipped)}.
        """
        recipe, views = PRESETS[self.photometric], {}
        for side in (1, 2):
            images = batch[f"view_{side}"]
            rows = images.shape[0] * gather.replica_count()
            draws = Draws(*map(gather.own_rows, draw(rows, self.seed_of(f"view_{side}", step), self.photometric)))
            images = apply_and_normalise(images, draws, recipe)  # (b, H, W, 3) float32
            sides = tf.cast(tf.tile(tf.shape(images)[1:3], [2]), tf.float32)  # (H, W, H, W)
            views[side] = images, tf.clip_by_value(batch[f"boxes_{side}"], 0.0, sides), batch[f"flipped_{side}"]
        return views

    def update_key_encoder(self, step):
        """Updates the moving average: theta_k <- m theta_k + (1 - m) theta_q (MoCo eq. 2)."""
        momentum = self.momentum
        if self.momentum_schedule == "cosine":
            done = tf.minimum(tf.cast(step, tf.float32) / float(self.total_steps), 1.0)
            momentum = 1.0 - (1.0 - momentum) * 0.5 * (tf.cos(math.pi * done) + 1.0)
        for query, key in self.moving_average:
            key.assign_add((1.0 - momentum) * (query - key))

    def encode_keys(self, view, terms, step):
        """Encodes the keys of the global batch in shuffled groups, which differ from those of the queries.

        Args:
            view: `(images (b, H, W, 3), boxes (b, 4), flipped (b,))` of this replica.
            terms: terms that compare with these keys.
            step: () int64.

        Returns:
            {term name: (B, ...)}.
        """
        keyed = [term for term in terms if term.needs_keys]
        if not keyed:
            return {}
        rows = [gather.all_gather(x) for x in view]  # (B, ...)
        order, undo = gather.permutation(rows[0].shape[0], self.seed_of("shuffle", step))
        rows = [gather.own_rows(tf.gather(x, order)) for x in rows]  # (b, ...)
        dtypes = {term.name: term.key_dtypes for term in keyed}
        keys = groups.map_groups(lambda rows: self.key_encoder.embed(keyed, *rows), rows, self.own_groups, dtypes)
        return tf.nest.map_structure(lambda key: tf.stop_gradient(tf.gather(gather.all_gather(key), undo)), keys)

    def query_gradients(self, batch, views, keys):
        """Computes the gradients of eq. 2 and its scalars.

        Gradients are summed over batch-norm groups. Scalars are means over the global batch.

        Args:
            batch: this replica's batch.
            views: result of `augment`.
            keys: {side: result of `encode_keys`}.
        """
        memories = {term.name: term.recall() for term in self.terms}
        sources = [variable.value for variable in self.query_variables]  # zeros like a Keras variable fail when eager
        inputs = self._rows(batch, views, tf.nest.map_structure(gather.own_rows, keys))

        def group_gradients(group):
            with tf.GradientTape() as tape:
                scalars = self.group_loss(group, memories)
                scaled = self.optimizer.scale_loss(scalars["loss"])
            return tape.gradient(scaled, sources, unconnected_gradients="zero"), scalars

        names = ["loss", *(f"{column}/{term.name}" for term in self.terms for column in term.columns)]
        zeros = [tf.zeros(v.shape, v.dtype) for v in sources], dict.fromkeys(names, tf.constant(0.0))
        gradients, scalars = groups.sum_over_groups(group_gradients, inputs, self.own_groups, zeros)
        valid = tf.cast(batch["valid"], tf.float32)
        scalars["valid_share"] = tf.reduce_sum(valid) / (valid.shape[0] * gather.replica_count())
        return gradients, gather.global_sums(scalars)

    def _rows(self, batch, views, keys):
        """Returns the b rows of this replica in the form that `group_loss` takes."""
        return {
            "views": {side: views[side] for side, _, _ in self.directions},
            "keys": keys,  # (b, ...)
            "shares": {term.name: term.share(batch) / (2 if term.symmetric else 1) for term in self.terms},
            "fields": {name: batch[name] for term in self.terms for name in term.fields},
        }

    def group_loss(self, group, memories, training=True):
        """Computes eq. 2 on one batch-norm group: the weighted sum of the terms.

        The sum over all groups and replicas is the mean over the global batch.

        Args:
            group: the group's rows: `{"views": {side: (images, boxes, flipped)}, "keys": {side: {term: …}},
                "shares": {term: (g,)}, "fields": {name: (g, ...)}}`.
            memories: {term: result of its `recall`}.
            training: True for batch statistics in batch norm, False for moving ones.

        Returns:
            {"loss", "COLUMN/TERM": () float32}.
        """
        scalars = {}
        for side, other, terms in self.directions:
            queries = self.query_encoder.embed(terms, *group["views"][side], training=training)  # {term: (g, ..., C)}
            for term in terms:
                query, key = queries[term.name], group["keys"][other].get(term.name)
                query = query if term.predictor is None else term.predictor(query, training=training)
                columns = term.compare(query, key, memories[term.name], group["fields"])  # eqs. 5, 6: {column: (g,)}
                for column, values in columns.items():
                    mean = tf.reduce_sum(group["shares"][term.name] * values)
                    scalars[f"{column}/{term.name}"] = scalars.get(f"{column}/{term.name}", 0.0) + mean
        return {"loss": sum(term.weight * scalars[f"loss/{term.name}"] for term in self.terms), **scalars}

    @property
    def banks(self):
        """Returns {term name: its `MemoryBank`} for the terms that have one."""
        return {term.name: term.bank for term in self.terms if hasattr(term, "bank")}

    @property
    def own_groups(self):
        """Returns the number of batch-norm groups on each replica."""
        return self.micro_batches // gather.replica_count()

    def seed_of(self, stream, step):
        """Returns the (2,) int64 seed of a random stream at a step. A new stream does not change other draws."""
        return tf.stack([tf.constant(self._stream(stream), tf.int64), step])

    def _stream(self, name):
        return zlib.crc32(name.encode()) << 31 | self.seed

    def named_variables(self):
        """Returns {unique name: variable} of the model's whole state. Names do not depend on the other terms."""
        owners = {"query_encoder": self.query_encoder, "key_encoder": self.key_encoder}
        owners |= {f"terms/{term.name}": term for term in self.terms}
        return {"step": self.step} | {f"{owner}/{v.path}": v for owner, part in owners.items() for v in part.variables}

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        """Does nothing, because all variables are built at construction.

        Keras' own method sums a batch over replicas, which fails for bools.
        """

    def call(self, images, training=None):
        """Computes the query backbone's features, {level: (B, H/s, W/s, C)}."""
        return self.query_encoder.pyramid(images, training=training)

    def get_config(self):
        names = ("momentum", "momentum_schedule", "total_steps", "photometric", "micro_batches", "seed", "name")
        return {
            "backbone": twins.serialize_backbone(self.backbone),
            "terms": [keras.saving.serialize_keras_object(term) for term in self.terms],
            **{name: getattr(self, name) for name in names},
        }

    @classmethod
    def from_config(cls, config):
        terms = [keras.saving.deserialize_keras_object(term) for term in config["terms"]]
        return cls(**{**config, "backbone": twins.restore_backbone(config["backbone"]), "terms": terms})
