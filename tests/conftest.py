"""Loaded before any test: dupr_tf comes before TensorFlow, so that this process computes as the ones it starts do."""

import dupr_tf  # noqa: F401  (it sets what TensorFlow reads when it is imported)
