"""Prints the closing table of the demonstration: scripts/demo_table.py DIR."""

import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROWS = (("from_pretrained", "DUPR on the unlabelled scenes"), ("from_random", "random weights"))


def main(run):
    """Prints the AP of both detectors and the paths of all results."""
    run, console = Path(run), Console()
    table = Table("backbone", "AP", "AP50", "AP75", title="RetinaNet on the synthetic sample, same budget and seed")
    for folder, label in ROWS:
        scores = json.loads((run / folder / "metrics.json").read_text())
        table.add_row(label, *(f"{scores[name]:.3f}" for name in ("AP", "AP50", "AP75")))
    console.print(table)
    for path, what in (
        ("pretrained/backbone.keras", "the pre-trained backbone"),
        ("pretrained/metrics.jsonl", "its losses and accuracies"),
        ("saved_model", "the backbone as a SavedModel"),
        ("from_pretrained/detector.keras", "the detector"),
        ("from_pretrained/detections.png", "a picture of its detections"),
    ):
        console.print(f"{run / path}  {what}", soft_wrap=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
