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
    files = {
        name: keras.saving.load_model(folder / f"{name}.keras") for name in ("backbone", "model", "detector", "own")
    }
    model, own, rebuilt = files["model"], files["own"], layers["rebuilt"]
    rebuilt.load_weights(folder / "model.weights.h5")
    batch = dict(np.load(folder / "batch.npz"))
    answer = {
        "types": {name: type(part).__name__ for name, part in {**layers, **files}.items()},
        "configs": {name: keras.saving.serialize_keras_object(layer)["config"] for name, layer in layers.items()},
        "losses": {
            name: float(part.test_on_batch(batch, return_dict=True)["loss"])
            for name, part in (("model", model), ("own", own), ("rebuilt", rebuilt))
        },
        "frozen": [
            [layer.name for layer in part.backbone.layers if not layer.trainable]
            for part in (own.query_encoder, own.key_encoder)
        ],
        "optimizer": type(model.optimizer).__name__,
        "attributes": callable(dupr_tf.ops.roi_align) and dupr_tf.models.DUPR is type(model),
    }
    np.savez(folder / "weights.npz", **{f"{n}/{i}": w for n, f in files.items() for i, w in enumerate(f.get_weights())})
    (folder / "answer.json").write_text(json.dumps(answer))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
