"""Makes the tests a package, so that `tests.oracles` is not taken from another distribution's `tests`."""
