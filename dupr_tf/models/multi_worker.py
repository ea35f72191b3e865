"""DUPR on several workers: the changes to Keras' `fit` loop that they need. `DUPR.train_step` is unchanged.

Under `MultiWorkerMirroredStrategy`, Keras' own train function fails when it reduces the logs of the replicas. Keras'
building of a model by running it would fail too, but `DUPR` already disables that. The overridden methods are not part
of Keras' documented interface, so only the versions in `TESTED_KERAS` are accepted.
"""

from __future__ import annotations

import keras
import tensorflow as tf

from dupr_tf.errors import UserError
from dupr_tf.models.dupr import DUPR

TESTED_KERAS = ("3.15",)  # major and minor versions


class MultiWorkerDUPR(DUPR):
    """A `DUPR` that `fit` can train on several workers. Arguments are those of `DUPR`.

    Raises:
        UserError: a Keras version that was not tested.
    """

    def __init__(self, *args, **kwargs):
        check_keras()
        super().__init__(*args, **kwargs)

    @property
    def metrics(self):
        """Is empty, because reading the means of `evaluate` would wait for the other workers between epochs."""
        return []

    def make_train_function(self, force=False):
        """Sets the function that takes a step. `fit` calls it with the iterator of a distributed dataset.

        Layers that are frozen by now stay fixed in both encoders.
        """
        self._freeze_keys()
        if self.train_function is not None and not force:
            return
        strategy = self.distribute_strategy

        @tf.function(reduce_retracing=True)
        @tf.autograph.experimental.do_not_convert
        def on_all_replicas(batch):
            logs = strategy.run(self.train_step, args=(batch,))
            # Logs are sums over all replicas and equal on each, so they need no communication.
            return {name: strategy.experimental_local_results(value)[0] for name, value in logs.items()}

        self.train_function = lambda iterator: on_all_replicas(next(iterator))

    def evaluate(self, *args, **kwargs):
        """Raises UserError, because Keras' own loop fails when it reduces the logs of the replicas."""
        raise UserError(
            "validation_data",
            "`evaluate` and `validation_data` do not work on several workers.",
            "Load the weights in one process, and call `evaluate` there.",
        )


def check_keras(version: str = keras.__version__) -> None:
    """Rejects Keras versions whose train function was not tested."""
    if ".".join(version.split(".")[:2]) not in TESTED_KERAS:
        tested = " or ".join(f"{version}.x" for version in TESTED_KERAS)
        raise UserError(
            "keras",
            f"Training on several workers was tested with Keras {tested}, and Keras {version} is installed.",
            f"Run: pip install 'keras=={TESTED_KERAS[-1]}.*'.",
        )
