"""The text beside an export: what the network is, what it takes and gives, how to read it."""

import json
from pathlib import Path

from dupr_tf.models.resnet import IMAGENET_MEAN, IMAGENET_STD

_READING = {
    "saved_model": """model = tf.saved_model.load("<this directory>")
features = model.signatures["uint8"](images=images)  # {"P2": …, "P5": …}; "serving_default" takes float32""",
    "keras": """backbone = dupr_tf.weights.loading.load_backbone("<this directory>")
features = dupr_tf.models.resnet.pyramid(backbone)(images)  # {"P2": …, "P5": …}""",
    "detectron2": """# in a detectron2 config: MODEL.WEIGHTS, with the settings of README.md""",
    "torchvision": """model = torchvision.models.{architecture}(weights=None)
state = safetensors.torch.load_file("backbone.safetensors")
model.load_state_dict(state, strict=False)  # it has no fc and no counters of batches""",
}


def model_card(backbone, to, difference, facts):
    """Return the model card of an export, in Markdown.

    Args:
        backbone: the model that was written.
        to: the format, as `export` takes it.
        difference: the largest difference found when it was read again.
        facts: further rows, `{name: value}`.
    """
    rows = {
        "network": _network(backbone),
        "parameters": f"{sum(int(variable.value.shape.num_elements()) for variable in backbone.weights):,}",
        "input": _input(backbone, to),
        "output": "P2..P5 at strides 4, 8, 16, 32" if to in ("keras", "saved_model") else "res2..res5 (layer1..layer4)",
        "layout": "torchvision's: stride in the 3×3, symmetric padding, batch norm epsilon 1e-5",
        "verified": f"read again; largest difference {difference:.1e}",
        **facts,
    }
    table = "\n".join(f"| {name} | {_cell(value)} |" for name, value in rows.items())
    reading = _READING[to].replace("{architecture}", str(getattr(backbone, "architecture", "")))
    return (
        f"# {backbone.name} ({to})\n\nA backbone written by `dupr_tf`, without heads.\n\n"
        f"| | |\n|---|---|\n{table}\n\n```python\n{reading}\n```\n\n"
        "`manifest.json` has the sha256 of every file here.\n"
    )


def run_facts(run):
    """Return the rows a pre-training run adds to a card: config, steps, last losses; none for a mere file.

    Args:
        run: what `load_backbone` takes.
    """
    run, facts = Path(run), {}
    if (run / "config.yaml").is_file():
        facts["pre-training config"] = "`" + " ".join((run / "config.yaml").read_text(encoding="utf-8").split()) + "`"
    if (run / "metrics.jsonl").is_file():
        last = json.loads((run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
        facts["steps"] = last["step"]
        facts["last losses"] = ", ".join(f"{k} {v:.3f}" for k, v in last.items() if k.startswith("loss") and v)
    return facts


def _network(backbone):
    if not hasattr(backbone, "architecture"):
        return f"{type(backbone).__name__} `{backbone.name}`"
    return f"{backbone.architecture}, width {backbone.width:g}"


def _input(backbone, to):
    raw = to == "saved_model" or (to == "keras" and getattr(backbone, "include_normalization", False))
    numbers = f"mean {IMAGENET_MEAN}, std {IMAGENET_STD}"
    if raw:
        return f"RGB images in 0–255, uint8 or float, any size; normalised inside ({numbers})"
    return f"RGB images in 0–255, to be normalised before ({numbers}), any size"


def _cell(value):
    """One table cell: a line break or a bar in it would break the table."""
    return " ".join(str(value).split()).replace("|", "\\|")
