"""The command line with a network of five convolutions: python -m tests.training.worker_run DEVICES DUMP ARGUMENTS.

DEVICES are logical ones of the CPU. DUMP is a file for banks, weights and losses of this worker at the end, or `-`.
Settings of the environment make a worker misbehave: SLOW (seconds a step of its own it wastes), LEAVE (any text: it is
gone when TensorFlow's servers are to meet).
"""

import os
import sys
import time

import numpy as np
import tensorflow as tf

from dupr_tf.cli import main
from dupr_tf.models.multi_worker import MultiWorkerDUPR
from dupr_tf.training import pretrain as pretrain_module
from tests.models.test_golden import STAGES, TinyBackbone
from tests.training.devices import use_logical_devices

CHANNELS = dict(zip(STAGES, (4, 4, 4, 8, 8), strict=True))


def use_tiny_backbone() -> None:
    pretrain_module.build_backbone = lambda name, width: TinyBackbone(CHANNELS)


def be_slow(seconds: float) -> None:
    """Wastes time where gradients are computed."""
    loss = MultiWorkerDUPR.group_loss

    def slow_loss(self, *inputs):
        def wait(_value):
            time.sleep(seconds)
            return np.float32(0)

        scalars = loss(self, *inputs)
        # Of the value, so that the time is wasted behind the exchange of keys and not beside it.
        scalars["loss"] += tf.numpy_function(wait, [scalars["loss"]], tf.float32)
        return scalars

    MultiWorkerDUPR.group_loss = slow_loss


def leave_before_servers_meet() -> None:
    """Ends without a word where the strategy is made; the others are inside TensorFlow by then, or soon."""
    pretrain_module.choose_strategy = lambda *settings: os._exit(9)


def keep_models(kept: list) -> None:
    compiled_model = pretrain_module.compiled_model

    def compiled_and_kept(*arguments, **named):
        kept.append(compiled_model(*arguments, **named))
        return kept[-1]

    pretrain_module.compiled_model = compiled_and_kept


def dump(model, path) -> None:
    banks = {f"bank_{name}": bank.keys.numpy() for name, bank in model.banks.items()}
    weights = np.concatenate([v.numpy().ravel() for v in model.query_variables + model.key_variables])
    np.savez(path, weights=weights, agree=copies_agree(model), **banks)


def copies_agree(model) -> bool:
    """Whether every device of this worker has the same bits in every bank and parameter."""
    variables = [v for bank in model.banks.values() for v in bank.variables]
    for variable in variables + model.query_variables + model.key_variables:
        first, *others = [copy.numpy() for copy in getattr(variable.value, "values", [variable.value])]
        if any((copy != first).any() for copy in others):
            return False
    return True


if __name__ == "__main__":
    devices, where, *arguments = sys.argv[1:]
    use_logical_devices(int(devices))
    use_tiny_backbone()
    if "SLOW" in os.environ:
        be_slow(float(os.environ["SLOW"]))
    if "LEAVE" in os.environ:
        leave_before_servers_meet()
    models = []
    keep_models(models)
    code = main(arguments)
    if not code and where != "-":
        dump(models[0], where)
    sys.exit(code)
