"""The command that draws pairs of views."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import tyro

from dupr_tf.commands.checks import problems_of
from dupr_tf.config import load_config
from dupr_tf.data.images.listing import check_root
from dupr_tf.errors import UserError, raise_all


@dataclasses.dataclass
class Views:
    """Draw pairs of views as pre-training makes them, their overlap framed and its patches numbered.

    The same number must show the same thing in both views.
    """

    config: tyro.conf.Positional[Path]
    """Experiment file, e.g. configs/dupr_r18_small.yaml."""
    data: Path | None = None
    """Folder of images, COCO or VOC root, shards, or tfds:NAME; none: data.root of the config."""
    output: Path = Path("views.png")
    """PNG to write."""
    pairs: int = 8
    """How many."""
    columns: int = 2
    """Pairs in a row."""
    cells: int | None = None
    """Patches a side to number; none: those of the coarsest patch loss, if they can be read."""
    colours: bool = True
    """Change colours as the config says, or leave the photographs as they are."""

    def run(self, overrides: dict[str, str]) -> None:
        config = load_config(self.config, overrides)
        root = self.data or config.data.root
        raise_all(self._problems(root, config.data.kind))
        from dupr_tf.data.images.bad_images import BadImages, check_readable
        from dupr_tf.data.images.listing import open_source
        from dupr_tf.probing.pictures import save
        from dupr_tf.probing.view_sheet import cells_of, first_pairs, view_sheet

        _, source = open_source(root, config.data.kind)
        check_readable(source, BadImages(source, config.data.max_bad_share, config.data.max_pixels))
        pairs, names = first_pairs(source, config, self.pairs, self.colours)
        save(view_sheet(pairs, names, self.cells or cells_of(config), self.columns), self.output)
        print(f"{len(names)} pairs, {int(pairs['valid'].sum())} with enough overlap for a patch loss")
        print(f"wrote {self.output}")

    def _problems(self, root, kind: str) -> list[UserError]:
        problems = []
        if root is None:
            problems.append(UserError("--data", "There are no images to draw.", "Pass --data DIR."))
        else:
            problems += problems_of(check_root, root, kind)
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
