"""The command that lists the fields of a config."""

from __future__ import annotations

import dataclasses

from dupr_tf.commands.screen import print_table
from dupr_tf.config import field_rows


@dataclasses.dataclass
class Fields:
    """List every field of a config with its default."""

    EXAMPLE = "dupr-tf fields"

    def run(self, overrides: dict[str, str]) -> None:
        print_table(("field", "default", "meaning"), field_rows())
