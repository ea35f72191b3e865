"""Loads the files of `test_round_trips.py` after `import dupr_tf` alone: python round_trip.py FOLDER."""

import json
import sys
from pathlib import Path

import dupr_tf

assert not {"tensorflow", "keras", "dupr_tf.models"} & set(sys.modules)

import keras  # noqa: E402
import numpy as np  # noqa: E402


def main(folder):
    configs = json.loads((folder / "layers.json").read_text())
    layers = {name: keras.saving.deserialize_keras_object(config) for name, config in configs.items()}
    files = {name: keras.saving.load_model(folder / f"{name}.keras") for name in ("backbone", "model", "detector")}
    model = files["model"]
    batch = dict(np.load(folder / "batch.npz"))
    answer = {
        "types": {name: type(part).__name__ for name, part in {**layers, **files}.items()},
        "configs": {name: keras.saving.serialize_keras_object(layer)["config"] for name, layer in layers.items()},
        "loss": float(model.test_on_batch(batch, return_dict=True)["loss"]),
        "optimizer": type(model.optimizer).__name__,
        "attributes": callable(dupr_tf.ops.roi_align) and dupr_tf.models.DUPR is type(model),
    }
    np.savez(folder / "weights.npz", **{f"{n}/{i}": w for n, f in files.items() for i, w in enumerate(f.get_weights())})
    (folder / "answer.json").write_text(json.dumps(answer))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
