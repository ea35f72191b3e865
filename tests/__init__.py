"""A package, so that `tests.oracles` is ours and not from a `tests` that some distribution installed."""
