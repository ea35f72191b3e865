"""Takes R-CNN steps by `fit` on N logical devices and saves the results.

    python -m tests.detection.rcnn.replica_run DEVICES OUTPUT.npz

It runs in a separate process, because logical devices are set before TensorFlow starts and one process holds one
strategy.
"""

import sys

import keras
import numpy as np
import tensorflow as tf

from dupr_tf.models.layers import norm_layers
from dupr_tf.training.distribution import scope
from tests.detection.rcnn.small import batch, make

# All proposals and all anchors are drawn: there are enough regions, and the images are small. No draw of a replica can
# therefore differ from that of one device.
ALL = {"rois_per_image": 256, "rpn_post_nms": (40, 20)}


def trained(strategy, kind, neck, rate, twice, **arguments):
    """Returns the detector and its losses after two steps on a batch of two images, equal ones if `twice`."""
    with scope(strategy):
        detector = make(kind, neck, **ALL, **arguments)
        detector.compile(keras.optimizers.SGD(rate))
    data = batch(kind, 2, 32, 32, things=[[((4, 4, 28, 30), 1), ((16, 8, 31, 30), 0)]] * 2)
    if twice:
        data = tf.nest.map_structure(lambda x: tf.repeat(x[:1], 2, 0), data)
    # `fit` splits a batch over the replicas.
    batches = tf.data.Dataset.from_tensors(data).repeat(2).unbatch().batch(2, drop_remainder=True)
    logs = detector.fit(batches, verbose=0, shuffle=False).history
    return detector, np.array([logs[name][-1] for name in sorted(logs)])


def main(devices, output):
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * devices)
    names = [f"CPU:{i}" for i in range(devices)]
    strategy = tf.distribute.MirroredStrategy(names) if devices > 1 else None
    # No batch statistics: those of one device are not the mean of those of two devices.
    frozen, losses = trained(strategy, "mask", "fpn", 0.05, True, norm="frozen", fpn_norm=False)
    weights = np.concatenate([np.ravel(v) for v in frozen.get_weights()])
    norm = "sync" if devices > 1 else "train"
    synced, _ = trained(strategy, "faster", "fpn", 0.0, False, norm=norm)
    layers = norm_layers(synced)
    means = np.concatenate([np.ravel(layer.moving_mean) for layer in layers])
    np.savez(output, losses=losses, weights=weights, means=means)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
