"""Slow twins of what changes state during a step: memory bank, optimiser, schedules. They use float64 loops."""

import math

import numpy as np


def enqueue(bank_keys, next_row, keys):
    """Overwrites rows next_row, next_row + 1, … of the ring with `keys`; returns bank and next row."""
    bank_keys = np.array(bank_keys, np.float64)
    for key in keys:
        bank_keys[next_row] = key
        next_row = next_row + 1
        if next_row == len(bank_keys):
            next_row = 0
    return bank_keys, next_row


def sgd_step(weights, gradients, velocities, learning_rate, momentum=0.9, weight_decay=1e-4):
    """Updates as torch's SGD: v <- μ v + (g + λ w); w <- w - lr v. The decay enters before the momentum.

    All three are lists of arrays; velocities start at 0. Returns the new weights and velocities.
    """
    new_weights, new_velocities = [], []
    for w, g, v in zip(weights, gradients, velocities, strict=True):
        w = np.asarray(w, np.float64)
        velocity = momentum * np.asarray(v, np.float64) + np.asarray(g, np.float64) + weight_decay * w
        new_velocities.append(velocity)
        new_weights.append(w - learning_rate * velocity)
    return new_weights, new_velocities


def cosine_per_step(step, total_steps, base):
    """Returns base · (1 + cos(π step / total)) / 2, which is base at step 0 and 0 at the end."""
    return base * 0.5 * (1.0 + math.cos(math.pi * step / total_steps))


def cosine_per_epoch(step, steps_per_epoch, epochs, base):
    """Returns MoCo's cosine of the epoch's number. It is constant within an epoch; the last epoch is still above 0."""
    epoch = step // steps_per_epoch
    return base * 0.5 * (1.0 + math.cos(math.pi * epoch / epochs))


def step_decay(step, steps_per_epoch, base, milestones=(120, 160), gamma=0.1):
    """Returns MoCo v1's schedule: times gamma from the start of each milestone epoch on."""
    epoch = step // steps_per_epoch
    rate = base
    for milestone in milestones:
        if epoch >= milestone:
            rate *= gamma
    return rate
