"""Makes comparisons and finished cells by hand, without training."""

import json

from dupr_tf.comparing.grid import Backbone
from dupr_tf.comparing.record import Comparison
from dupr_tf.config import parse_config

CONFIG = {"optimizer": {"learning_rate": 0.001}, "detector": {"kind": "retinanet"}}


def comparison(**changes) -> Comparison:
    settings = {
        "config": parse_config(CONFIG),
        "data": "/data",
        "labels": {"train": "a" * 64, "val": "b" * 64},
        "contents": {"train": "e" * 64, "val": "f" * 64},
        "counts": {"train": 400, "val": 50},
        "backbones": (Backbone("random", ("random",)), Backbone("dupr", ("/runs/dupr",))),
        "shares": (0.25, 1.0),
        "steps": (100, 100),
        "seeds": 3,
        "rates": (0.001,),
        "rate_share": 0.25,
        "reference": "random",
    }
    return Comparison(**{**settings, **changes})


def finish(folder, cell, score, name="AP", **more):
    """Writes the metrics of a cell, as its fine-tuning would."""
    place = folder / cell.folder
    place.mkdir(parents=True)
    (place / "metrics.json").write_text(json.dumps({name: score, **more}))
