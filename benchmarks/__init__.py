"""What is claimed about speed and memory, measured beside peers: `dupr-tf bench NAME`, or `python -m benchmarks NAME`.

Every contestant runs in a process of its own (two frameworks in one disturb each other), builds and warms up, and is
then asked in turn for one repeat after the other, so that whatever slows the machine slows all of them. Those that wait
are stopped, so that no pipeline fills its buffers in the time of another.
"""

import dupr_tf  # noqa: F401  (before any benchmark imports TensorFlow: it sets what TensorFlow reads then)
