"""Reads images and labels and makes batches, in NumPy. Imports no TensorFlow."""

import logging


def _is_wanted(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("Failed to load jax profiler")


# Grain warns on import that JAX is missing, but no part of this package uses JAX. Each input process imports Grain
# anew.
logging.getLogger("absl").addFilter(_is_wanted)
