"""The memory bank of one loss: a ring of keys (MoCo's queue; DUPR section 3.2 keeps one for each loss)."""

from __future__ import annotations

import keras
import tensorflow as tf

from dupr_tf.errors import UserError


@keras.saving.register_keras_serializable("dupr_tf")
class MemoryBank(keras.layers.Layer):
    """Stores L2-normalised keys in a ring; new keys overwrite the oldest.

    Under a strategy every replica enqueues the same gathered keys, so the copies stay bit-identical. The variables are
    never aggregated.

    Args:
        size: K, number of keys; need not be a multiple of the number enqueued per step.
        dim: C, width of a key.
        seed: seed of the noise that fills the bank at the start.

    Attributes:
        keys: (K, C) float32 variable.
        next_row: () int32 variable, the row that receives the next key.

    Raises:
        UserError: a size or dim below 1, or a step that enqueues more keys than the bank holds.
    """

    def __init__(self, size, dim, seed=0, **kwargs):
        super().__init__(trainable=False, dtype="float32", **kwargs)
        self.size, self.dim, self.seed = int(size), int(dim), int(seed)
        if self.size < 1 or self.dim < 1:
            raise UserError("bank_size", f"Expected a size and a dim of at least 1, received {size} and {dim}.")
        self.build()

    def build(self, input_shape=None):
        """Creates the variables. Rows start as L2-normalised Gaussian noise."""
        fixed = {"trainable": False, "aggregation": "only_first_replica", "autocast": False}
        self.keys = self.add_weight(
            shape=(self.size, self.dim), dtype="float32", initializer=self._noise, name="keys", **fixed
        )
        self.next_row = self.add_weight(shape=(), dtype="int32", initializer="zeros", name="next_row", **fixed)
        self.built = True

    def _noise(self, shape, dtype=None):
        noise = tf.random.stateless_normal(shape, seed=[self.seed, 0x6B65], dtype=dtype or "float32")
        return tf.math.l2_normalize(noise, axis=-1)

    def enqueue(self, keys, where=True):
        """Writes keys over the oldest rows, wrapping at the end.

        Args:
            keys: (n, C) float32, n <= K; the same on every replica.
            where: scalar bool; if False, the bank does not change.
        """
        count = keys.shape[0]
        if count > self.size:
            raise UserError("bank_size", f"A step stores {count} keys, more than the {self.size} of its memory bank.",
                            f"Use a bank_size of {count} or more.")  # fmt: skip
        where = tf.convert_to_tensor(where)
        start = tf.convert_to_tensor(self.next_row)
        rows = tf.math.floormod(start + tf.range(count), self.size)  # (n,)
        bank = tf.convert_to_tensor(self.keys)
        keys = tf.where(where, tf.cast(tf.stop_gradient(keys), bank.dtype), tf.gather(bank, rows))
        self.keys.assign(tf.tensor_scatter_nd_update(bank, rows[:, None], keys))
        self.next_row.assign(tf.math.floormod(start + count * tf.cast(where, tf.int32), self.size))

    def read(self):
        """Returns the (K, C) keys."""
        return tf.convert_to_tensor(self.keys)

    def get_config(self):
        return {"size": self.size, "dim": self.dim, "seed": self.seed, "name": self.name}
