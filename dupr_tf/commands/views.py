"""The command that draws pairs of views."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import tyro

from dupr_tf.commands.checks import check_outside, problems_of
from dupr_tf.commands.screen import print_line
from dupr_tf.config import load_config
from dupr_tf.data.images.bad_images import check_photos
from dupr_tf.errors import UserError, raise_all


@dataclasses.dataclass
class Views:
    """Draw pairs of views with their overlap and its patches.

    They are the views that pre-training makes. The same number must show the same thing in both views.
    Any field of the config is a flag too: --train.epochs 10. `dupr-tf fields` lists them.
    """

    EXAMPLE = "dupr-tf views configs/demo.yaml --data runs/sample/unlabeled --output runs/views.png"

    config: tyro.conf.Positional[Path]
    """Config of the experiment."""
    data: Path | None = None
    """Folder of images, COCO or VOC root, shards, or tfds:NAME. Default: data.root of the config."""
    output: Path = Path("views.png")
    """PNG file to write, outside of the data."""
    pairs: int = 8
    """Number of pairs."""
    columns: int = 2
    """Number of pairs in a row."""
    cells: int | None = None
    """Numbered patches per side. Default: those of the coarsest patch loss, if the numbers are large enough to read."""
    colours: bool = True
    """Change colours as the config sets it."""

    def run(self, overrides: dict[str, str]) -> None:
        config = load_config(self.config, overrides)
        root = self.data or config.data.root
        raise_all(self._problems(root, config.data.kind))
        from dupr_tf.data.images.bad_images import BadImages, check_readable
        from dupr_tf.data.images.listing import open_source
        from dupr_tf.probing.pictures import save
        from dupr_tf.probing.view_sheet import cells_of, first_pairs, view_sheet

        _, source = open_source(root, config.data.kind)
        check_readable(source, BadImages.of(source, config.data))
        pairs, names = first_pairs(source, config, self.pairs, self.colours)
        save(view_sheet(pairs, names, self.cells or cells_of(config), self.columns), self.output)
        print_line(f"{len(names)} pairs, {int(pairs['valid'].sum())} with enough overlap for a patch loss")
        print_line(f"wrote {self.output}")

    def _problems(self, root, kind: str) -> list[UserError]:
        problems = []
        if root is None:
            problems.append(UserError("--data", "There are no images to draw.", "Pass --data DIR."))
        else:
            problems += problems_of(check_photos, root, kind) + problems_of(check_outside, self.output, root)
        if self.output.suffix.lower() != ".png":
            problem = f"Expected a name that ends in .png, received {self.output}."
            problems.append(UserError("--output", problem, "Pass --output views.png."))
        elif self.output.is_dir():
            problems.append(UserError("--output", f"{self.output} is a folder.", "Pass the name of a file."))
        for name, most in (("pairs", 200), ("columns", 20), ("cells", 14)):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= most:
                problem = f"Expected 1 to {most}, received {value}."
                problems.append(UserError(f"--{name}", problem, "Leave it out for the default."))
        return problems
