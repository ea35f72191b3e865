"""Trains a linear classifier on frozen features (MoCo's protocol, and one for small sets)."""

from __future__ import annotations

from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

from dupr_tf.config import LinearConfig
from dupr_tf.data.views import DRAWS, uniform
from dupr_tf.probing.features import extract_paths, pool
from dupr_tf.probing.image_views import centre_view, random_view, read_each
from dupr_tf.probing.knn import top_accuracies


class LinearClassifier:
    """Computes logits `x @ weights + bias`, and trains them by SGD on the mean cross-entropy.

    Args:
        dim: D, width of a feature.
        classes: number of classes.
        settings: section whose momentum and weight_decay are read.
        seed: seed of the weights.
    """

    def __init__(self, dim: int, classes: int, settings: LinearConfig, seed: int = 0):
        start = tf.random.stateless_normal([dim, classes], seed=[seed, 0x11], stddev=0.01)
        self.weights = keras.Variable(start, name="weights")
        self.bias = keras.Variable(tf.zeros([classes]), name="bias")
        self.optimizer = keras.optimizers.SGD(0.0, momentum=settings.momentum)
        self.optimizer.build([self.weights, self.bias])
        self.decay = settings.weight_decay

    @tf.function(reduce_retracing=True, autograph=False)
    def step(self, rows, labels):
        """Takes one step on (b, D) features and (b,) labels, and returns the loss."""
        with tf.GradientTape() as tape:
            logits = tf.matmul(rows, self.weights.value) + self.bias.value
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
        by_weights, by_bias = tape.gradient(loss, [self.weights.value, self.bias.value])
        self.optimizer.apply([by_weights + self.decay * self.weights.value, by_bias], [self.weights, self.bias])
        return loss

    def scores(self, rows) -> np.ndarray:
        """Returns (M, classes) logits."""
        return np.asarray(rows) @ self.weights.numpy() + self.bias.numpy()


def learning_rate(settings: LinearConfig, epoch: float) -> float:
    """Returns the learning rate at an epoch, which counts from 0 and may be a fraction.

    It falls tenfold at each milestone. Without milestones it is a cosine to 0.
    """
    if settings.milestones:
        return settings.learning_rate * 0.1 ** sum(epoch >= milestone for milestone in settings.milestones)
    return settings.learning_rate * 0.5 * (1 + float(np.cos(np.pi * min(epoch / settings.epochs, 1.0))))


def train_cached(rows, labels, classes: int, settings: LinearConfig, seed: int = 0) -> LinearClassifier:
    """Trains on (N, D) cached features, in a new order each epoch."""
    classifier = LinearClassifier(rows.shape[1], classes, settings, seed)
    rng, batch = np.random.default_rng(seed), min(settings.batch_size, len(rows))
    steps = len(rows) // batch
    for epoch in range(settings.epochs):
        order = rng.permutation(len(rows))
        for k in range(steps):
            classifier.optimizer.learning_rate = learning_rate(settings, epoch + k / steps)
            chosen = order[k * batch : (k + 1) * batch]
            classifier.step(tf.constant(rows[chosen], tf.float32), tf.constant(labels[chosen], tf.int64))
    return classifier


def standardization(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and deviation (D,) of training features; a constant feature has deviation 1."""
    deviation = rows.std(0)
    return rows.mean(0), np.where(deviation > 1e-6 * max(float(deviation.max()), 1e-30), deviation, 1.0)


def linear(maps, splits, settings: LinearConfig, seed: int = 0, section=None) -> dict:
    """Trains and evaluates a classifier on one level of a frozen backbone.

    Args:
        maps: from `feature_maps`, of `settings.level`.
        splits: from `read_class_folders`.
        settings: settings of the classifier.
        seed: seed of weights, orders and crops.
        section: settings for decoding images, as for `read_each`.

    Returns:
        {"top1", "top5", "chance", "train_top1"}.
    """
    train, val = splits["train"], splits["val"]
    cells, size = {settings.level: settings.cells}, settings.image_size
    kept, features = extract_paths(maps, val.paths, lambda image: centre_view(image, size), cells, section=section)
    rows, truth = features[settings.level], val.labels[kept]
    classes = len(train.class_names)
    if settings.augment:
        classifier = _train_augmented(maps, train, classes, rows.shape[1], settings, seed, section)
        return {**top_accuracies(classifier.scores(rows), truth), "train_top1": None}
    kept, features = extract_paths(maps, train.paths, lambda image: centre_view(image, size), cells, section=section)
    train_rows, labels = features[settings.level], train.labels[kept]
    mean, deviation = standardization(train_rows) if settings.standardize else (0.0, 1.0)
    train_rows, rows = (train_rows - mean) / deviation, (rows - mean) / deviation
    classifier = train_cached(train_rows, labels, classes, settings, seed)
    fitted = top_accuracies(classifier.scores(train_rows), labels)["top1"]
    return {**top_accuracies(classifier.scores(rows), truth), "train_top1": fitted}


def _train_augmented(maps, train, classes, dim, settings, seed, section) -> LinearClassifier:
    classifier = LinearClassifier(dim, classes, settings, seed)
    steps = -(-len(train.paths) // settings.batch_size)
    for epoch in range(settings.epochs):
        for k, (images, labels) in enumerate(_augmented(train, settings, seed, epoch, section)):
            classifier.optimizer.learning_rate = learning_rate(settings, epoch + k / steps)
            pooled = pool(maps(images)[settings.level], settings.cells)
            classifier.step(tf.reshape(pooled, [pooled.shape[0], dim]), tf.constant(labels))
    return classifier


def _augmented(train, settings, seed, epoch, section) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields one epoch of crops in a new order; each crop is drawn from (seed, epoch, image)."""
    order = np.random.default_rng([seed, epoch]).permutation(len(train.paths))

    def make(place, image):
        u = uniform(seed, epoch, int(order[place]), DRAWS)
        return random_view(image, settings.image_size, u, settings.crop_area)

    for places, images in read_each([train.paths[i] for i in order], make, settings.batch_size, section):
        yield images, train.labels[order[places]]
