"""Defines the base of all detectors: config, norms, batches, and the creation of all variables before `fit`."""

from __future__ import annotations

from typing import ClassVar

import keras
import tensorflow as tf

from dupr_tf.detection.scaling import pad_to_stride
from dupr_tf.errors import UserError
from dupr_tf.models.layers import norm_layers, set_norm
from dupr_tf.training.distribution import deterministic_ops


class DetectorMixin:
    """Mixin for a Keras model with a `backbone` and `class_names` that creates every variable in `compile`.

    `SETTINGS` names the other arguments of its constructor, each kept in an attribute of that name. `class_layers()`
    lists the layers with outputs for each class, which other classes cannot take over, and `class_widths()` those whose
    width may depend on the number of classes. They are methods, because Keras reads properties when it names the
    variables of a file.
    """

    SETTINGS: tuple[str, ...] = ()
    NOT_EXPORTED: ClassVar[dict[str, str]] = {}  # {export format: why the detector cannot be written in it}

    def class_widths(self) -> list:
        """Lists the layers whose width may depend on the number of classes. By default there are none."""
        return []

    @classmethod
    def from_experiment(cls, backbone, class_names, config):
        """Builds the detector of `config`: its section `detector`, `data.image_size` and `train.seed`.

        Images are squares of `data.image_size`, or of any size with `detector.short_sides`.
        """
        section = config.detector
        values = {name: getattr(section, name, None) for name in cls.SETTINGS}
        values["image_size"] = None if section.short_sides else config.data.image_size
        values |= {"test_short_side": section.side_at_test, "seed": config.train.seed}
        given = {name: value for name, value in values.items() if name in cls.SETTINGS and value is not None}
        return cls(backbone, class_names, **given)

    def compile(self, optimizer, **kwargs):
        """Compiles without XLA, from which neither NMS, nor matching, nor resizing gains."""
        super().compile(optimizer=optimizer, **({"jit_compile": False} | kwargs))
        # If the first step created variables, Keras would trace it twice, and fail on several devices.
        self.optimizer.build(self.trainable_variables)

    def fit(self, *arguments, **settings):
        """Runs Keras' `fit`; on CPUs with deterministic operations, without which region gradients are wrong."""
        with deterministic_ops():
            return super().fit(*arguments, **settings)

    def resize_input(self, size):
        """Makes the detector take images at another size at test.

        Args:
            size: px; side of the square, or the short side of images of any size.

        Raises:
            UserError: the detector cannot take this size.
        """
        if self.image_size is not None:
            check_image_size(size)
            self.image_size = size
            return
        self.test_short_side, self.max_long_side = size, max(size, self.max_long_side)

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        """Does nothing, because all variables exist already.

        Under a strategy, Keras' own method would first run the model on symbols, on the mean of the batches of all
        devices. It would also take the whole batch, including boxes, for the model's input.
        """

    def get_config(self):
        settings = {name: getattr(self, name) for name in self.SETTINGS}
        return {
            "backbone": keras.saving.serialize_keras_object(self.backbone),
            "class_names": list(self.class_names),
            **{name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()},
        }

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "backbone": keras.saving.deserialize_keras_object(config["backbone"])})

    def get_compile_config(self):
        """Returns None, because a saved detector has no optimizer."""
        return None

    def _set_norms(self, *heads):
        """Applies `norm` to the backbone; the norms of `heads`, the detector's own layers, are never frozen."""
        set_norm(self.backbone, self.norm)
        for head in heads:
            set_norm(head, "sync" if self.norm == "sync" else "train")

    def _own_norms(self):
        """Lists the batch norms outside the backbone."""
        shared = {id(layer) for layer in norm_layers(self.backbone)}
        return [layer for layer in norm_layers(self) if id(layer) not in shared]


class SumOfLosses(DetectorMixin):
    """Mixin for detectors that train on a sum of losses, each of which is logged.

    A subclass has `losses(data, training)`, which returns {name: scalar} of a batch, and calls `_create_means` with the
    names.
    """

    def train_step(self, data):
        with tf.GradientTape() as tape:
            losses = self.losses(data, training=True)
            # Keras' optimizers sum gradients over replicas, and each replica has the mean over its images.
            total = tf.add_n(list(losses.values()))
            scaled = self.optimizer.scale_loss(total / tf.distribute.get_strategy().num_replicas_in_sync)
        gradients = tape.gradient(scaled, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return self._log_losses(total, losses)

    def test_step(self, data):
        losses = self.losses(data, training=False)
        return self._log_losses(tf.add_n(list(losses.values())), losses)

    def _create_means(self, names):
        self._means = [keras.metrics.Mean(name) for name in ("loss", *names)]

    def _log_losses(self, total, losses):
        for mean, value in zip(self._means, (total, *losses.values()), strict=True):
            mean.update_state(value)
        return {mean.name: mean.result() for mean in self._means}

    @property
    def metrics(self):
        return self._means


def check_image_size(size):
    """Raises UserError if a fixed input side is no multiple of 32; None means any size."""
    if size is not None and size % 32:
        raise UserError("image_size", f"Expected a multiple of 32, received {size}.", "Use 224 or 256, for example.")


def batch_of(data):
    """Returns a Keras batch without its tuple: a dict, or images alone."""
    while isinstance(data, tuple | list):
        data = data[0]
    return data


def images_of(data):
    """Returns the images of a batch that is a dict, (images, labels), or images alone."""
    data = batch_of(data)
    return data["images"] if isinstance(data, dict) else data


def photos_of(data):
    """Returns the images of a batch for `predict`, padded to sides that suit every detector, and their own sizes.

    Args:
        data: (B, H, W, 3) images in 0–255 with any sides and dtype, or a batch whose `image_sizes` say which part of
            its images is not padding.

    Returns:
        (B, H', W', 3) float32, and (B, 2) float32 height and width of the unpadded part.
    """
    data, images = batch_of(data), tf.cast(images_of(data), tf.float32)
    if images.shape.rank != 4:
        raise UserError("images", f"Expected images (B, H, W, 3), received {images.shape}.", "Pass images[None].")
    sizes = data.get("image_sizes") if isinstance(data, dict) else None
    if sizes is not None:
        return images, tf.cast(sizes, tf.float32)
    sizes = tf.tile(tf.shape(images)[None, 1:3], [tf.shape(images)[0], 1])
    return pad_to_stride(images), tf.cast(sizes, tf.float32)
