"""Tests of the dataset that passes a reader's batches to `fit`."""

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from dupr_tf.data.reader import Block, Reader
from dupr_tf.errors import RunFailed
from dupr_tf.training.feed import feed

SIGNATURE = {"x": ((2, None), np.float32), "more": {"a": ((2,), np.int64)}}

FAULTS = """
import resource
import numpy as np
from dupr_tf.data.reader import Block, Reader
from dupr_tf.training.feed import feed

with Reader(lambda n: Block({"x": np.ones((2, 3), np.float32)}), 0, 3, {"x": ((2, 3), np.float32)}) as reader:
    assert len(list(feed(reader))) == 3
for repeat in range(2):  # glibc raises its limits at the first repeat
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        np.ones(20 << 20, np.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def block(number):
    if number == 3:
        raise RunFailed("no more images")
    return Block({"x": np.full((2, 3), number, np.float32), "more": {"a": np.array([number, -number])}})


def test_dataset_has_the_batches_of_its_reader():
    with Reader(block, 1, 3, SIGNATURE) as reader:
        dataset = feed(reader)
        assert dataset.cardinality() == 2
        assert dataset.options().autotune.enabled is False  # its thread would keep the end of `fit` waiting
        assert dataset.element_spec["x"] == tf.TensorSpec((2, None), tf.float32)
        assert dataset.element_spec["more"]["a"] == tf.TensorSpec((2,), tf.int64)
        batches = list(dataset.as_numpy_iterator())
    for number, batch in enumerate(batches, start=1):
        assert (batch["x"] == np.full((2, 3), number)).all() and batch["more"]["a"].tolist() == [number, -number]
    assert len(batches) == 2


@pytest.mark.parametrize("spec", [((3, None), np.float32), ((2, None), np.float64)])
def test_batch_that_is_not_as_its_signature_says_is_refused(spec):
    with Reader(block, 1, 3, {**SIGNATURE, "x": spec}) as reader, pytest.raises(tf.errors.InvalidArgumentError):
        list(feed(reader))


def test_reader_keeps_its_exception():
    reader = Reader(block, 2, 5, SIGNATURE)
    with reader, pytest.raises(tf.errors.OpError):
        list(feed(reader))
    assert isinstance(reader.error, RunFailed)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_dataset_leaves_the_allocator_as_it_is():
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 5120  # the pages of one of the 20 arrays
