"""Two terms of other methods, a model that combines them with DUPR's, and batches with labels."""

import keras
import numpy as np
import tensorflow as tf

from dupr_tf.models import DUPR
from dupr_tf.models.terms import ImageContrast, PatchContrast, Term
from dupr_tf.ops import gather
from dupr_tf.training.optimizers import CoupledSGD
from tests.models.random_batches import batches
from tests.models.test_golden import CHANNELS, TinyBackbone

BATCH, GROUPS, CLASSES = 16, 4, 3


def projector(channels, dim, name):
    """Returns Dense, batch norm, ReLU, dense. They are named, since Keras' own names depend on what else was built."""
    layers = [
        keras.layers.Dense(12, name="hidden"),
        keras.layers.BatchNormalization(name="norm"),
        keras.layers.ReLU(),
        keras.layers.Dense(dim, name="output"),
    ]
    model = keras.Sequential(layers, name=name)
    model.build((None, channels))
    return model


@keras.saving.register_keras_serializable("dupr_tf_tests")
class Bootstrap(Term):
    """BYOL: a predictor predicts the key of the other view, without negatives and without a bank."""

    symmetric = True
    columns = ("loss", "cosine")

    def __init__(self, level="P5", weight=1.0, dim=6, **kwargs):
        super().__init__(level, weight, **kwargs)
        self.dim = dim
        self.predictor = projector(dim, dim, name=f"{self.name}_predictor")

    def make_projector(self, channels):
        return projector(channels, self.dim, name=self.name)

    def embed(self, features, boxes, flipped, projector):
        return projector(tf.reduce_mean(features, axis=[1, 2]))

    def compare(self, queries, keys, memory, fields):
        cosine = tf.reduce_sum(tf.math.l2_normalize(queries, -1) * tf.math.l2_normalize(keys, -1), -1)
        return {"loss": 2.0 - 2.0 * cosine, "cosine": cosine}

    def get_config(self):
        return {**super().get_config(), "dim": self.dim}


@keras.saving.register_keras_serializable("dupr_tf_tests")
class Classify(Term):
    """Cross entropy with the labels of the batch; -1 means no label."""

    needs_keys = False
    fields = ("labels",)
    columns = ("loss", "accuracy")

    def make_projector(self, channels):
        layer = keras.layers.Dense(CLASSES, name=self.name)
        layer.build((None, channels))
        return layer

    def embed(self, features, boxes, flipped, projector):
        return projector(tf.reduce_mean(features, axis=[1, 2]))

    def share(self, batch):
        labelled = tf.cast(batch["labels"] >= 0, tf.float32)
        return labelled / tf.maximum(gather.global_sum(tf.reduce_sum(labelled)), 1.0)

    def compare(self, queries, keys, memory, fields):
        labels = tf.maximum(fields["labels"], 0)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, queries)
        hits = tf.equal(tf.argmax(queries, -1, output_type=tf.int32), labels)
        return {"loss": losses, "accuracy": tf.cast(hits, tf.float32)}


def make_model(groups=GROUPS, photometric="none"):
    keras.utils.set_random_seed(1)
    terms = [
        Bootstrap("P5", 0.5, name="byol"),
        Classify("P4", 0.7, name="classes"),
        ImageContrast("P5", embedding_dim=8, bank_size=40),
        PatchContrast("P4", 0.3, size=4, embedding_dim=8, bank_size=83),
    ]
    model = DUPR(TinyBackbone(CHANNELS), terms, momentum=0.9, photometric=photometric, micro_batches=groups)
    model.compile(CoupledSGD(0.01), jit_compile=False)
    model.optimizer.build(model.query_variables)
    return model


def labelled_batches(steps):
    """Adds labels to `random_batches`. The first batch has only -1."""
    for i, batch in enumerate(batches(steps, BATCH)):
        yield {**batch, "labels": np.resize(np.array([0, 1, 2, -1, 0, -1, 2] if i else [-1], np.int32), BATCH)}
