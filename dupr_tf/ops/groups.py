"""Processes the batch of one device in batch-norm groups, each with its own statistics.

Groups on one device compute what as many devices would (docs/method.md, Step). Only the activations of one group are
held at a time.
"""

from __future__ import annotations

import tensorflow as tf


def map_groups(function, inputs, groups, dtypes):
    """Applies a function to each group and joins the results.

    Args:
        function: nest of (b / groups, ...) -> nest of tensors with the same first axis.
        inputs: nest of (b, ...) tensors.
        groups: number of groups that b is divided into.
        dtypes: nest of the dtypes of the results.

    Returns:
        Nest of (b, ...) tensors.
    """
    if groups == 1:
        return function(inputs)
    results = tf.map_fn(function, split(inputs, groups), fn_output_signature=dtypes, parallel_iterations=1)
    return tf.nest.map_structure(lambda x: tf.reshape(x, [-1, *x.shape[2:]]), results)


def sum_over_groups(function, inputs, groups, zeros):
    """Sums the results of a function over the groups.

    Args:
        function: nest of (b / groups, ...) -> nest of tensors, of the same shapes for each group.
        inputs: nest of (b, ...) tensors.
        groups: number of groups that b is divided into.
        zeros: nest of zeros like the result of `function`.
    """
    if groups == 1:
        return function(inputs)
    parts = split(inputs, groups)

    def add_group(i, total):
        result = function(tf.nest.map_structure(lambda x: x[i], parts))
        return i + 1, tf.nest.map_structure(tf.add, total, result)

    return tf.while_loop(
        lambda i, _: i < groups, add_group, (0, zeros), parallel_iterations=1, maximum_iterations=groups
    )[1]


def split(inputs, groups):
    """Reshapes (b, ...) to (groups, b / groups, ...) for every tensor in a nest; b must be a multiple of groups."""
    return tf.nest.map_structure(lambda x: tf.reshape(x, [groups, x.shape[0] // groups, *x.shape[1:]]), inputs)
