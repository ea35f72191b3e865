"""DUPR's two terms: InfoNCE of images (eq. 6) and of the patches of the overlap (eq. 5), each with a memory bank."""

from __future__ import annotations

import keras
import tensorflow as tf

from dupr_tf.config.terms import STRIDE_OF
from dupr_tf.errors import UserError
from dupr_tf.models.heads import ProjectionHead
from dupr_tf.models.memory_bank import MemoryBank
from dupr_tf.models.observations import match_accuracy, similarities, spread
from dupr_tf.models.terms.base import Cost, Term
from dupr_tf.ops import gather, roi_align
from dupr_tf.ops.info_nce import block_bytes, info_nce_with_accuracy


class Contrast(Term):
    """InfoNCE of embeddings against their keys and a memory bank (MoCo eq. 1; DUPR eq. 1).

    Args:
        level, weight, name: see `Term`.
        embedding_dim: C, width of an embedding.
        head: "mlp" (MoCo v2, DUPR) or "linear" (MoCo v1).
        temperature: tau, above 0.
        bank_size: K, keys in the memory bank.

    Attributes:
        cells: number of embeddings per image.
        bank: the `MemoryBank`, set by `create_memory`.
    """

    PREFIX = ""  # of the default name
    columns = ("loss", "accuracy", "positive", "negative")
    cells = 1

    def __init__(self, level="P5", weight=1.0, embedding_dim=128, head="mlp", temperature=0.2, bank_size=65536,
                 name=None, **kwargs):  # fmt: skip
        super().__init__(level, weight, name or f"{self.PREFIX}_{level}", **kwargs)
        if not temperature > 0:
            raise UserError("temperature", f"Expected a number above 0, received {temperature!r}.", "Use 0.2.")
        self.embedding_dim, self.head = int(embedding_dim), head
        self.temperature, self.bank_size = float(temperature), int(bank_size)

    def create_memory(self, seed):
        self.bank = MemoryBank(self.bank_size, self.embedding_dim, seed=seed, name="bank")

    def make_projector(self, channels):
        head = ProjectionHead(self.embedding_dim, self.head, name=self.name, dtype=self.dtype_policy)
        head.build((None, channels))  # the dense layer acts on the last axis, so the leading axes do not matter
        return head

    def recall(self):
        keys = self.bank.read()  # (K, C)
        return keys, tf.reduce_mean(keys, axis=0)

    def compare(self, queries, keys, memory, fields):
        bank, bank_mean = memory
        rows, positives = (tf.reshape(x, [-1, self.embedding_dim]) for x in (queries, keys))  # (b * cells, C)
        losses, hits = info_nce_with_accuracy(rows, positives, bank, self.temperature)  # (b * cells,)
        positive, negative = similarities(rows, positives, bank_mean)
        each = {"loss": losses, "accuracy": hits, "positive": positive, "negative": negative}
        return {name: tf.reduce_mean(tf.reshape(x, [-1, self.cells]), axis=1) for name, x in each.items()}  # (b,)

    def describe(self, keys):
        return {"std": spread(keys)}  # of all pairs, whether their views overlap or not

    def cost(self, channels, images, block_keys=None):
        products = channels * self.embedding_dim + (channels**2 if self.head == "mlp" else 0)
        return Cost(
            key_bytes=4 * self.cells * self.embedding_dim,
            projector_flops=2 * self.cells * products,
            # Counts similarities with every key, the weighted sum of keys that is their gradient, and the logged
            # similarity with the mean key.
            compare_flops=2 * self.cells * (2 * self.bank_size + 1) * self.embedding_dim,
            compare_bytes=block_bytes(images * self.cells, self.bank_size, block_keys),
        )

    def get_config(self):
        names = ("embedding_dim", "head", "temperature", "bank_size")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


@keras.saving.register_keras_serializable("dupr_tf")
class ImageContrast(Contrast):
    """Contrasts whole images (DUPR eq. 6) by global average pooling and the image head. Arguments: see `Contrast`."""

    PREFIX = "image"

    def embed(self, features, boxes, flipped, projector):
        # Sums of 16-bit features of a large map would overflow.
        return projector(tf.reduce_mean(tf.cast(features, tf.float32), axis=[1, 2]))  # (b, channels) -> (b, C)

    def remember(self, keys, valid, seed):
        self.bank.enqueue(keys)


@keras.saving.register_keras_serializable("dupr_tf")
class PatchContrast(Contrast):
    """Re-identifies the S x S patches of the overlap (DUPR eqs. 3-5) by RoIAlign and the patch head.

    Args:
        size: S; the overlap is cut into S x S patches.
        sampling_ratio: samples per side that RoIAlign averages in each patch.
        keys_per_image: keys that each image adds to the bank per step.
        reduction: "mean" over the cells of eq. 5, or "sum" as in the printed equation.

    The other arguments are those of `Contrast`.
    """

    PREFIX = "patch"
    columns = (*Contrast.columns, "match")

    def __init__(self, level="P5", weight=1.0, size=7, sampling_ratio=1, keys_per_image=4, reduction="mean", **kwargs):
        super().__init__(level, weight, **kwargs)
        if reduction not in ("mean", "sum"):
            raise UserError("reduction", f"Expected 'mean' or 'sum', received {reduction!r}.")
        for field, value in {"size": size, "sampling_ratio": sampling_ratio, "keys_per_image": keys_per_image}.items():
            if value < 1:
                raise UserError(field, f"Expected 1 or more, received {value!r}.", "Use 1 or more.")
        self.size, self.sampling_ratio = int(size), int(sampling_ratio)
        self.keys_per_image, self.reduction = int(keys_per_image), reduction
        self.cells = self.size**2

    def embed(self, features, boxes, flipped, projector):
        scale = 1.0 / STRIDE_OF[self.level]
        patches = roi_align(features, boxes, self.size, scale, self.sampling_ratio, flipped)  # (b, S, S, channels)
        return projector(patches)  # (b, S, S, C)

    def share(self, batch):
        valid = tf.cast(batch["valid"], tf.float32)
        return valid / tf.maximum(gather.global_sum(tf.reduce_sum(valid)), 1.0)

    def compare(self, queries, keys, memory, fields):
        columns = super().compare(queries, keys, memory, fields)
        if self.reduction == "sum":
            columns["loss"] *= self.cells
        return {**columns, "match": match_accuracy(queries, keys)}

    def remember(self, keys, valid, seed):
        drawn = draw_patch_keys(keys, valid, self.keys_per_image, seed)
        self.bank.enqueue(drawn, where=tf.reduce_any(valid))

    def get_config(self):
        names = ("size", "sampling_ratio", "keys_per_image", "reduction")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


def draw_patch_keys(keys, valid, count, seed):
    """Draws the patch keys that a step stores: `count` cells of each image (docs/method.md, Losses).

    Args:
        keys: (B, S, S, C) patch keys of the global batch.
        valid: (B,) bool. A random valid image replaces each invalid one, so the number of keys is fixed.
        count: cells per image. No cell is drawn a second time before every cell was drawn.
        seed: (2,) integer.

    Returns:
        (B * count, C); the rows are arbitrary if no pair is valid.
    """
    images, side, dim = keys.shape[0], keys.shape[1], keys.shape[3]
    u = tf.random.stateless_uniform([images, 1 + side * side], seed=seed)
    number = tf.reduce_sum(tf.cast(valid, tf.int32))
    chosen = tf.cast(u[:, 0] * tf.cast(number, tf.float32), tf.int32)  # index among the valid images
    valid_first = tf.argsort(tf.cast(~valid, tf.int32), stable=True)  # valid images first
    substitute = tf.gather(valid_first, tf.clip_by_value(chosen, 0, images - 1))
    source = tf.where(valid, tf.range(images), substitute)  # (B,)
    cells = tf.gather(tf.argsort(u[:, 1:]), tf.range(count) % (side * side), axis=1)  # (B, count), without replacement
    picked = tf.gather(tf.reshape(keys, [images, side * side, dim]), source)
    return tf.reshape(tf.gather(picked, cells, batch_dims=1), [images * count, dim])
