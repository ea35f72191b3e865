"""Benchmarks of speed and memory against other libraries: `dupr-tf bench NAME`, or `python -m benchmarks NAME`.

Every contestant runs in its own process, since two frameworks in one process disturb each other. It builds its work and
warms up. Then the contestants take turns, one repeat each, so that whatever slows the machine slows all of them.
Waiting contestants are stopped, so that no pipeline fills its buffers while another is timed.
"""

import dupr_tf  # noqa: F401  (must precede TensorFlow: it sets environment variables that TensorFlow reads at import)
