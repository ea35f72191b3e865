"""Runs the command line with a network of five convolutions.

    python -m tests.training.worker_run DEVICES DUMP ARGUMENTS

DEVICES is the number of logical devices of the CPU. DUMP is a file for banks, weights and losses of this worker at the
end, or `-`.
"""

import sys

import numpy as np

from dupr_tf.cli import main
from dupr_tf.training import pretrain as pretrain_module
from tests.models.test_golden import STAGES, TinyBackbone
from tests.training.devices import use_logical_devices

CHANNELS = dict(zip(STAGES, (4, 4, 4, 8, 8), strict=True))


def use_tiny_backbone() -> None:
    pretrain_module.build_backbone = lambda name, width, dtype: TinyBackbone(CHANNELS)


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
    """Compares the banks and parameters of all devices of this worker; returns true if they are equal bit for bit."""
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
    models = []
    keep_models(models)
    code = main(arguments)
    if not code and where != "-":
        dump(models[0], where)
    sys.exit(code)
