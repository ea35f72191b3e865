"""Whether losses look like guessing, or keys like one key: the rules alone, for runs that go on and runs that are over.

Nothing here imports TensorFlow.
"""

from __future__ import annotations

import math

from dupr_tf.config import Config

PINNED = 0.98  # of ln(K + 1)
CHANCE = 10  # times the accuracy of guessing, below which a window counts as guessing
SAME = 0.02  # spread of the keys, of 1, below which they count as the same
WINDOW = 50  # steps a judgement is over


def signs_of_collapse(mean: dict[str, float], keys: dict[str, int]) -> list[str]:
    """What in the means of a window looks like collapse, a clause each; none where it looks healthy.

    Guessing gives a loss of ln(K + 1) and an accuracy of 1 / (K + 1).

    Args:
        mean: of the logged scalars `loss/TERM`, `accuracy/TERM`, `std/TERM`; a term without all three is passed over.
        keys: {term: K of its memory bank}; a term without one is passed over.
    """
    signs = []
    for name, size in keys.items():
        if not all(f"{what}/{name}" in mean for what in ("loss", "accuracy", "std")):
            continue
        loss, accuracy, spread = (mean[f"{what}/{name}"] for what in ("loss", "accuracy", "std"))
        if loss > PINNED * math.log(size + 1) and accuracy < CHANCE / (size + 1):
            signs.append(f"{name} guesses: loss {loss:.3f}, ln(K + 1) is {math.log(size + 1):.3f}")
        if spread < SAME:
            signs.append(f"all keys of {name} are the same: std {spread:.4f} of 1")
    return signs


def patience(config: Config, most_keys: float = math.inf) -> int:
    """Steps after which a healthy run no longer guesses: warm-up, four turns of the banks, two of the average.

    Args:
        config: of the run.
        most_keys: as if no bank were larger.
    """
    model, batch = config.model, config.train.batch_size
    turns = [
        math.ceil(min(term.bank_size, most_keys) / term.keys_per_step(batch))
        for term in model.term_list
        if hasattr(term, "bank_size")
    ]
    return config.optimizer.warmup_steps + 4 * max(turns, default=0) + round(2 / (1 - model.momentum))
