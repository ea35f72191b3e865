"""Checks of any detector: its `.keras` file, and its batch norms. Files load only while the names in them stay."""

import io
import json
import zipfile

import h5py
import numpy as np
import tensorflow as tf

from dupr_tf.detection.saving import load_detector, save_detector
from dupr_tf.models.layers import norm_layers


def saved_names(file):
    """Returns the class as (module, name, registered name), and the paths of all weights."""
    with zipfile.ZipFile(file) as archive:
        config = json.loads(archive.read("config.json"))
        weights = h5py.File(io.BytesIO(archive.read("model.weights.h5")))
    paths = set()
    weights.visititems(lambda path, item: paths.add(path) if isinstance(item, h5py.Dataset) else None)
    return (config["module"], config["class_name"], config["registered_name"]), paths


def check_reload(detector, call, folder):
    """Saves and loads a detector: `call(detector)` must return equal arrays, and configs must be equal.

    Returns:
        The loaded detector, and the arrays.
    """
    save_detector(detector, folder / "detector.keras")
    loaded, expected = load_detector(folder), call(detector)
    tf.nest.map_structure(np.testing.assert_array_equal, call(loaded), expected)
    configs = [{**model.get_config(), "backbone": None} for model in (loaded, detector)]
    assert configs[0] == configs[1] and type(loaded) is type(detector)
    return loaded, expected


def check_norms(detector, total, synchronized, frozen):
    """Checks the numbers of batch norms: all, those with statistics of all devices, and the frozen ones."""
    layers = norm_layers(detector)
    counts = len(layers), sum(layer.synchronized for layer in layers), sum(not layer.trainable for layer in layers)
    assert counts == (total, synchronized, frozen)
