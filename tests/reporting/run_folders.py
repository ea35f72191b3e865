"""Makes run folders by hand, and reads the report's HTML."""

import json
from html.parser import HTMLParser
from pathlib import Path

from dupr_tf.config import dump_config, parse_config
from dupr_tf.weights.manifest import write_manifest

TERMS = ("image_P5", "patch_P4")
CONFIG = {
    "data": {"root": "/photos", "image_size": 64},
    "views": {"min_overlap": 24},
    "model": {"backbone": "resnet18", "width": 0.25, "roi_sizes": [16, 8, 4, 2], "bank_size": 256, "momentum": 0.9},
    "train": {"batch_size": 16, "micro_batches": 4, "max_steps": 400, "epochs": 1000},
}
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c6360606060000000050001a5f645"
    "400000000049454e44ae426082"
)


def line(step: int, **changes) -> dict:
    """Returns a healthy line of metrics.jsonl."""
    fall = step / 1000
    terms = {f"loss/{t}": 5.0 - fall for t in TERMS} | {f"accuracy/{t}": 0.2 + fall for t in TERMS}
    spreads = {f"std/{t}": 0.9 for t in TERMS}
    rest = {"loss": 10 - 2 * fall, "valid_share": 0.97, "learning_rate": 0.01, "images_per_second": 32.0}
    return {"step": step, "epoch": step / 10, **terms, **spreads, **rest, **changes}


def write_run(path: Path, lines=None, config: dict | None = None, images: int = 160) -> Path:
    """Writes a pre-training run of 400 steps, or with other lines: dicts, or text that is written unchanged."""
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(dump_config(parse_config(config or CONFIG)))
    lines = [line(step) for step in range(20, 401, 20)] if lines is None else lines
    texts = [entry if isinstance(entry, str) else json.dumps(entry) + "\n" for entry in lines]
    (path / "metrics.jsonl").write_text("".join(texts))
    (path / "images.json").write_text(json.dumps({"count": images, "sha256": "0" * 64}))
    entry = {"commit": "abc123", "hardware": "2 × Slow CPU, no GPU", "versions": {"keras": "3.15.1"}}
    (path / "environment.json").write_text(json.dumps([entry]))
    return path


def write_export(path: Path) -> Path:
    """Writes an export with two comparisons."""
    path.mkdir(parents=True)
    (path / "backbone.safetensors").write_bytes(b"weights")
    check = {"against": "torchvision 0.29.1", "image": "64×96", "level": "P2", "scale": 2.0, "finite": True}
    checks = [{**check, "difference": 3e-6}, {**check, "image": "65×97", "difference": 4e-6}]
    facts = {"format": "torchvision", "difference": 4e-6, "relative_difference": 2e-6, "checks": checks}
    write_manifest(path, {**facts, "not_compared": ["timm, which is not installed"]})
    return path


def write_probe(path: Path, label: str = "run", pck: float = 0.4321) -> Path:
    """Writes the files that `dupr-tf probe matching` leaves."""
    path.mkdir(parents=True)
    numbers = {label: {"pck_1": pck, "curve": [1, 2], "P4": {"mAP": 0.1234}}}
    content = {"probe": "matching", "settings": {"level": "P4"}, "numbers": numbers, "seconds": {label: 1.5}}
    (path / "probe.json").write_text(json.dumps(content))
    (path / "matching.png").write_bytes(PNG)
    return path


def write_detector(path: Path) -> Path:
    """Writes a fine-tuning run."""
    path.mkdir(parents=True)
    config = {"detector": {}, "optimizer": {"learning_rate": 0.01}, "train": {"max_steps": 30}}
    (path / "config.yaml").write_text(dump_config(parse_config(config)))
    lines = [{"step": s, "loss": 2.0 - s / 100, "box_loss": 0.5, "seconds": 3.0} for s in (10, 20, 30)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    scores = {"AP": 0.09412, "AP50": 0.1823, "AP_small": None, "per_class": {"star": 0.123, "<i>cross": None}}
    (path / "metrics.json").write_text(json.dumps({**scores, "steps": 30, "weights": "random"}))
    for name in ("detections.png", "precision_recall.png", "confusion.png"):
        (path / name).write_bytes(PNG)
    return path


class Page(HTMLParser):
    """Parses the report as a browser would."""

    VOID = ("meta", "img")  # elements without an end tag; SVG marks its own with />

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.open, self.text, self.rows, self.unbalanced = [], [], [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data):
        if {"style", "script"} & set(self.open):
            return
        self.text.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())

    def of(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]

    def row(self, name: str) -> list[str]:
        """Returns the first table row that begins with a name."""
        return next(row for row in self.rows if row and row[0] == name)
