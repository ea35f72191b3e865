"""Names inside a detector's `.keras` file. Files of earlier versions load only while these names stay."""

import io
import json
import zipfile

import h5py


def saved_names(file):
    """Returns the class as (module, name, registered name), and the paths of all weights."""
    with zipfile.ZipFile(file) as archive:
        config = json.loads(archive.read("config.json"))
        weights = h5py.File(io.BytesIO(archive.read("model.weights.h5")))
    paths = set()
    weights.visititems(lambda path, item: paths.add(path) if isinstance(item, h5py.Dataset) else None)
    return (config["module"], config["class_name"], config["registered_name"]), paths
