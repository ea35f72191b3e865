"""The command that draws pairs of views."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import tyro
from PIL import Image

from dupr_tf.commands.checks import check_outside, problems_of
from dupr_tf.commands.screen import print_line
from dupr_tf.config import Config, load_config
from dupr_tf.config.detectors import DETECTORS
from dupr_tf.data.images.bad_images import check_photos
from dupr_tf.data.labels.usable import leave_out_unusable
from dupr_tf.errors import UserError, raise_all

SOFTWARE = "dupr-tf views"  # in the metadata of a sheet, which may be drawn again


@dataclasses.dataclass
class Views:
    """Draw pairs of views with their overlap and its patches.

    They are the views that pre-training makes. The same number must show the same thing in both views. With a config of
    a detector, it draws the pictures that fine-tuning makes, with their boxes (thick) and matched anchors (thin).
    Any field of the config is a flag too: --train.epochs 10. `dupr-tf fields` lists them.
    """

    EXAMPLE = "dupr-tf views configs/demo.yaml --data runs/sample/unlabeled --output runs/views.png"

    config: tyro.conf.Positional[Path]
    """Config of the experiment."""
    data: Path | None = None
    """Folder of images, root of labelled data, shards, or tfds:NAME. Default: data.root of the config."""
    output: Path = Path("views.png")
    """PNG file to write, outside of the data."""
    pairs: int = 8
    """Number of pairs, or of a detector's pictures."""
    columns: int = 2
    """Number of pairs or pictures in a row."""
    cells: int | None = None
    """Numbered patches per side. Default: those of the coarsest patch loss, if the numbers are large enough to read."""
    colours: bool = True
    """Change colours as the config sets it."""

    def run(self, overrides: dict[str, str]) -> None:
        config = load_config(self.config, overrides)
        root = self.data or config.data.root
        raise_all(self._problems(root, config))
        if config.detector is not None:
            return self._draw_boxes(config, root)
        from dupr_tf.data.images.bad_images import BadImages, check_readable
        from dupr_tf.data.images.listing import open_source
        from dupr_tf.probing.drawing import save
        from dupr_tf.probing.view_sheet import cells_of, first_pairs, view_sheet

        _, source = open_source(root, config.data.kind)
        check_readable(source, BadImages.of(source, config.data))
        pairs, names = first_pairs(source, config, self.pairs, self.colours)
        save(view_sheet(pairs, names, self.cells or cells_of(config), self.columns), self.output, software=SOFTWARE)
        print_line(f"{len(names)} pairs, {int(pairs['valid'].sum())} with enough overlap for a patch loss")
        print_line(f"wrote {self.output}")

    def _draw_boxes(self, config: Config, root: Path) -> None:
        from dupr_tf.detection.task_labels import read_boxes
        from dupr_tf.probing.box_sheet import box_sheet, training_pictures
        from dupr_tf.probing.drawing import save

        train = leave_out_unusable(read_boxes(root, "train", config.data), "train", config.data)
        pictures = training_pictures(train, config, self.pairs)
        save(box_sheet(pictures, self.columns), self.output, software=SOFTWARE)
        lost = sum(len(set(range(len(p.boxes))) - set(p.owners.tolist())) for p in pictures if p.anchored)
        print_line(f"{len(pictures)} pictures, {sum(len(p.boxes) for p in pictures)} boxes, {lost} without an anchor")
        print_line(f"wrote {self.output}")

    def _problems(self, root, config: Config) -> list[UserError]:
        problems = []
        if root is None:
            problems.append(UserError("--data", "There are no images to draw.", "Pass --data DIR."))
        else:
            problems += problems_of(check_outside, self.output, root)
            problems += problems_of(check_photos, root, config.data.kind) if config.detector is None else []
        if config.detector is not None:
            problems += config.finetune_problems()
            if DETECTORS[config.detector.kind].facts["task"] == "segments":
                problem = f"{config.detector.kind} learns classes of pixels, and has no boxes to draw."
                problems.append(UserError("detector.kind", problem, "Use a detector with boxes."))
        if self.output.suffix.lower() != ".png":
            problem = f"Expected a name that ends in .png, received {self.output}."
            problems.append(UserError("--output", problem, "Pass --output views.png."))
        elif self.output.is_dir():
            problems.append(UserError("--output", f"{self.output} is a folder.", "Pass the name of a file."))
        elif self.output.exists() and not _is_sheet(self.output):
            problem = f"{self.output} exists, and this version of `views` has not drawn it."
            problems.append(UserError("--output", problem, "Pass another name."))
        for name, most in (("pairs", 200), ("columns", 20), ("cells", 14)):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= most:
                problem = f"Expected 1 to {most}, received {value}."
                problems.append(UserError(f"--{name}", problem, "Leave it out for the default."))
        return problems


def _is_sheet(path: Path) -> bool:
    """Returns True if an earlier call of this command has drawn a file."""
    try:
        with Image.open(path) as image:
            return image.info.get("Software") == SOFTWARE
    except (OSError, ValueError, SyntaxError):
        return False
