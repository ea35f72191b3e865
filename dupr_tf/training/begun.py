"""What a run was begun with, its config and its images, and whether another start of it has the same."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from dupr_tf.config import Config, dump_config, load_config
from dupr_tf.data.image_source import ImageSource, as_source
from dupr_tf.errors import UserError, raise_all
from dupr_tf.whole_files import write_whole

log = logging.getLogger(__name__)
MAY_CHANGE = (  # fields, sections
    "train.log_every", "train.checkpoint_every", "train.keep_checkpoints", "train.strategy", "train.worker_timeout",
    "train.start_timeout", "probing",
)  # fmt: skip
IMAGES_FILE = "images.json"
KEEP_OR_ALLOW = "Use the same as before, pass --allow-change, or choose another --output."


def compare(run: Path, config: Config, images: ImageSource | Sequence[str], allow_change: bool = False) -> None:
    """Refuses a folder whose run was begun with another config or other images.

    Args:
        run: the run's folder.
        config: of this start, its root resolved.
        images: of that root, in order.
        allow_change: name the differences in the log and go on with this start's.

    Raises:
        UserError: a difference, or a file of the record that cannot be read; a UserErrors for several.
    """
    if not (run / "config.yaml").exists():
        return
    entry = images_entry(config.data.root, images)
    changes = [*_config_changes(run / "config.yaml", config), *_image_changes(run / IMAGES_FILE, entry)]
    if not allow_change:
        raise_all(changes)
    for change in changes:
        log.warning("changed within the run: %s: %s", change.field, change.problem)


def record_start(run: Path, config: Config, images: ImageSource | Sequence[str]) -> None:
    """Writes down the config and the images of this start."""
    write_whole(run / IMAGES_FILE, json.dumps(images_entry(config.data.root, images), indent=2) + "\n")
    write_whole(run / "config.yaml", dump_config(config))


def images_entry(root: str, images: ImageSource | Sequence[str]) -> dict:
    """{"count", "sha256"} of the images of a root, in order."""
    source = as_source(images)
    return {"count": len(source), "sha256": source.digest(root)}


def differences(old: Config, new: Config) -> list[UserError]:
    """An error for every field that differs and may not change within a run."""
    before, after = ({**c.model_dump(mode="json"), "model": c.model.comparable()} for c in (old, new))
    changes = []
    for section in after:
        a, b = before[section] or {}, after[section] or {}
        for name in sorted({*a, *b}):
            if a.get(name) != b.get(name) and not {section, f"{section}.{name}"} & set(MAY_CHANGE):
                problem = f"The run was started with {a.get(name)}, and the config now has {b.get(name)}."
                changes.append(UserError(f"{section}.{name}", problem, KEEP_OR_ALLOW))
    return changes


def _config_changes(path: Path, config: Config) -> list[UserError]:
    try:
        return differences(load_config(path), config)
    except UserError as error:
        return [UserError(None, f"{path} is damaged ({error.errors[0]})", KEEP_OR_ALLOW)]


def _image_changes(path: Path, entry: dict) -> list[UserError]:
    if not path.exists():  # a run of an earlier version, or killed in its first seconds
        return []
    try:
        begun = json.loads(path.read_text(encoding="utf-8"))
        count, digest = int(begun["count"]), str(begun["sha256"])
    except (ValueError, KeyError, TypeError):
        return [UserError(None, f"{path} is damaged.", KEEP_OR_ALLOW)]
    if (count, digest) == (entry["count"], entry["sha256"]):
        return []
    now = "others" if count == entry["count"] else str(entry["count"])
    return [UserError("data.root", f"The run was started with {count} images, and there are {now} now.", KEEP_OR_ALLOW)]
