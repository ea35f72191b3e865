"""Writes the model card of an export: the network, its inputs and outputs, and how to load it."""

import logging
from pathlib import Path, PurePath

from dupr_tf.config import dump_config, load_config
from dupr_tf.environment import describe_environment, read_environments
from dupr_tf.errors import UserError
from dupr_tf.models.resnet import IMAGENET_MEAN, IMAGENET_STD
from dupr_tf.records import listing, read_lines, read_metrics_line, read_record, text, whole
from dupr_tf.text import one_line
from dupr_tf.weights.catalogue import find_public, is_public
from dupr_tf.weights.checkpoint_files import step_of
from dupr_tf.weights.download import origin_of
from dupr_tf.weights.formats import EXPORTS
from dupr_tf.weights.paths import EXCLUDED_FILE, KERAS_FILE, START_FILE
from dupr_tf.weights.unfinished import undamaged_checkpoints

log = logging.getLogger(__name__)
NO_LICENSE = "not stated"
CONFIG = "pre-training config"

_READING = {
    "keras": """backbone = dupr_tf.load_backbone("<this directory>")
features = dupr_tf.models.resnet.pyramid(backbone)(images)  # {"P2": …, "P5": …}""",
    "saved_model": """model = tf.saved_model.load("<this directory>")
features = model.signatures["uint8"](images=images)  # {"P2": …, "P5": …}; "serving_default" takes float32""",
    "onnx": """session = onnxruntime.InferenceSession("backbone.onnx")
p2, p3, p4, p5 = session.run(["P2", "P3", "P4", "P5"], {"images": images})  # float32 (B, H, W, 3), any size""",
    "torchvision": """model = torchvision.models.{architecture}(weights=None)
state = safetensors.torch.load_file("backbone.safetensors")  # or torch.load("backbone.pth", weights_only=True)
model.load_state_dict(state, strict=False)  # it has no fc and no counters of batches""",
    "timm": """name = "local-dir:<this directory>"  # its config.json says how images are normalised
model = timm.create_model(name, pretrained=True, features_only=True, out_indices=(1, 2, 3, 4))
model = timm.create_model("{architecture}", num_classes=0, checkpoint_path="model.safetensors")  # pooled features""",
    "detectron2": """# in a detectron2 config: MODEL.WEIGHTS, with the settings of README.md""",
    "kerashub": """backbone = keras_hub.models.ResNetBackbone.from_preset("<this directory>")
converter = keras_hub.layers.ResNetImageConverter.from_preset("<this directory>")  # normalises
features = keras.Model(backbone.input, backbone.pyramid_outputs)(converter(images))""",
    "kerascv": """import dupr_tf.models  # the one import: it registers the backbone's class
backbone = keras.saving.load_model("backbone.keras")
detector = keras_cv.models.RetinaNet(num_classes=20, bounding_box_format="xyxy", backbone=backbone)""",
}


def model_card(backbone, to, written, facts, license=None):
    """Return the model card of an export, in Markdown.

    Args:
        backbone: the model that was written.
        to: the format, as for `export`.
        written: result of reading it again, a `Written`.
        facts: further rows, `{name: value}`. `CONFIG` is YAML, which gets its own block.
        license: license of the weights, as their owner states it.
    """
    facts = dict(facts)
    config = facts.pop(CONFIG, "")
    rows = {
        "licence of the weights": license or NO_LICENSE,
        "network": _network(backbone, to),
        "parameters": f"{sum(int(variable.value.shape.num_elements()) for variable in backbone.weights):,}",
        "input": _input(backbone, to),
        "output": f"{EXPORTS[to].facts.get('levels', 'P2..P5')} at strides 4, 8, 16, 32",
        "layout": "torchvision's: stride in the 3×3, symmetric padding, batch norm epsilon 1e-5",
        "verified": _verified(written),
        **origin(facts),
        **facts,
    }
    reading = _READING[to].replace("{architecture}", str(getattr(backbone, "architecture", "")))
    summary = "A backbone written by `dupr_tf`, without heads."
    return card_text(f"{backbone.name} ({to})", summary, rows, reading, config)


def card_text(title, summary, rows, reading, config=""):
    """Return a model card.

    Args:
        title, summary: text.
        rows: {name: value} of a table.
        reading: Python code that loads the weights.
        config: YAML of the pre-training, or "".
    """
    table = "\n".join(f"| {name} | {_cell(value)} |" for name, value in rows.items())
    text = (
        f"# {title}\n\n{summary}\n\n| | |\n|---|---|\n{table}\n\n```python\n{reading}\n```\n\n"
        "`manifest.json` has the sha256 of every file here.\n"
    )
    return text + (f"\n## Config of the pre-training\n\n```yaml\n{config}```\n" if config else "")


def run_facts(run):
    """Return the rows that a pre-training run or a public checkpoint adds to a card; none for a single file.

    Those of a run are its config, its data, its steps and last losses, and the recorded commit, hardware and versions.

    Args:
        run: a path as for `load_backbone`.
    """
    if is_public(run):
        origin = origin_of(find_public(run))
        return {"weights": f"`{run}` from {origin['url']}", "sha256 of that file": origin["file_sha256"]}
    run, facts = Path(run), {}
    if (run / "config.yaml").is_file():
        facts.update(_config_facts(run / "config.yaml"))
    if (run / "metrics.jsonl").is_file():
        ended = (run / KERAS_FILE).is_file()
        newest = None if ended else next(undamaged_checkpoints(run), None)
        step = newest and step_of(newest)
        last = {}
        for line in read_lines(run / "metrics.jsonl", read_metrics_line):
            if line is not None and (step is None or line["step"] <= step):
                last = line
        facts["steps"] = f"{step}, and the run has not ended" if newest else last.get("step", "unknown")
        facts["last losses"] = ", ".join(f"{k} {v:.3f}" for k, v in last.items() if k.startswith("loss") and v)
    if (run / START_FILE).is_file():
        facts.update(_start_facts(run / START_FILE))
    if (run / EXCLUDED_FILE).is_file():
        facts.update(_exclusion_facts(run / EXCLUDED_FILE))
    for name in ("commit", "hardware", "versions"):
        values = [_spoken(entry[name]) for entry in read_environments(run) if name in entry]
        if values:
            facts[name] = "; then ".join(dict.fromkeys(values))
    return facts


def _config_facts(path):
    """Return the config with the last name of its root only, and facts about the data; {} if it cannot be read."""
    try:
        config = load_config(path)
    except (UserError, OSError, ValueError) as error:
        log.warning("%s is left out of the card: %s", path, one_line(error, 200))
        return {}
    root = config.data.root and PurePath(config.data.root).name
    probed = config.probing.data and PurePath(config.probing.data).name
    updates = {"data": {"root": root}, "probing": {"data": probed}}
    config = config.model_copy(
        update={section: getattr(config, section).model_copy(update=values) for section, values in updates.items()}
    )
    return {CONFIG: dump_config(config)} | ({"data": f"`{root}` ({config.data.kind}), without labels"} if root else {})


def _start_facts(path):
    """Return the weights that a run started from; {} if the record cannot be read."""

    def schema(value):
        name, url = str(value["weights"]), value.get("url")
        origin = f"`{name}` from {url}" if url else f"`{PurePath(name).name}`"
        facts = {"started from": origin, "sha256 of those weights": text(value["sha256"])}
        return facts | ({"sha256 of that file": text(value["file_sha256"])} if url else {})

    return _facts_of(path, schema)


def _exclusion_facts(path):
    """Return how many images `pretrain --exclude` left out; {} if the record cannot be read."""

    def schema(value):
        names = ", ".join(f"`{PurePath(str(root)).name}`" for root in listing(value["roots"]))
        count = whole(value["exact"]) + whole(value["near"])
        return {"left out of the data": f"{count:,} of {whole(value['images']):,} images, as duplicates of {names}"}

    return _facts_of(path, schema)


def _facts_of(path, schema):
    """Return the facts in a record; {} if it cannot be read."""
    try:
        return read_record(path, schema)
    except UserError as error:
        log.warning("%s", error.problem)
        return {}


def origin(facts):
    """Return commit, hardware and versions of the export, for those that `facts` does not have from a run."""
    here = describe_environment()
    return {name: f"{_spoken(here[name])} (of the export)" for name in here if name not in facts}


def _spoken(value):
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)


def _verified(written):
    against = ", ".join(dict.fromkeys(check.against for check in written.checks))
    text = (
        f"on an even and an odd image against {against}; largest difference {written.difference():.1e}, "
        f"{written.worst().relative:.1e} of the largest feature"
    )
    return "; not compared with ".join([text, *written.not_compared])


def _network(backbone, to):
    if not hasattr(backbone, "architecture"):
        return f"{type(backbone).__name__} `{backbone.name}`"
    fit = (
        "; FPN only, no C4 model"
        if to == "detectron2" and int(backbone.architecture.removeprefix("resnet")) < 50
        else ""
    )
    return f"{backbone.architecture}, width {backbone.width:g}{fit}"


def _input(backbone, to):
    raw = EXPORTS[to].facts["pixels"]
    if raw is None:
        raw = getattr(backbone, "include_normalization", False)
    numbers = f"mean {IMAGENET_MEAN}, std {IMAGENET_STD}"
    if raw:
        return f"RGB images in 0–255, uint8 or float, any size; normalised inside ({numbers})"
    return f"RGB images in 0–255, to be normalised before ({numbers}), any size"


def _cell(value):
    """Return one table cell; a line break or a bar in it would break the table."""
    return " ".join(str(value).split()).replace("|", "\\|")
