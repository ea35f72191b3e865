"""Whether all workers are about to do the same: config, code, versions, images, and one folder for the run."""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from pathlib import Path

from dupr_tf.config import Config
from dupr_tf.data.image_source import ImageSource
from dupr_tf.errors import UserError
from dupr_tf.training.cluster import Cluster
from dupr_tf.weights.environment import PACKAGE, versions
from dupr_tf.whole_files import write_whole

CLUSTER_FILE = "cluster.json"
PATIENCE = 30.0  # seconds a network file system may take to show a file


def program_facts(config: Config, cluster: Cluster, devices: int) -> dict[str, str]:
    """What must be the same before anything is computed.

    Args:
        config: of the run; `data.root` may differ, since the images there are compared.
        cluster: of the run.
        devices: that this worker trains on.
    """
    facts = {"workers": ", ".join(cluster.addresses), "devices of a worker": devices, "source code": source_digest()}
    facts |= {f"version of {name}": version for name, version in versions().items()}
    facts["TF_ENABLE_ONEDNN_OPTS"] = os.environ.get("TF_ENABLE_ONEDNN_OPTS")
    for section, fields in config.model_dump(mode="json").items():
        facts |= {f"{section}.{name}": value for name, value in (fields or {}).items()}
    del facts["data.root"]
    return {name: str(value) for name, value in facts.items()}


def image_facts(source: ImageSource, root: str) -> dict[str, str]:
    """What tells the images of a worker from another's: how many, and their names (or shards) in order."""
    return {"images": str(len(source)), "names of the images": source.digest(root)}


def source_digest() -> str:
    """sha256 of this package's Python files."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(f"{path.relative_to(PACKAGE).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def note_cluster(run: Path, cluster: Cluster | None) -> str:
    """Writes down in the run's folder who trains it, and returns the word by which others know this start."""
    word = uuid.uuid4().hex
    if cluster is not None:
        entry = {"workers": cluster.addresses, "start": word}
        write_whole(run / CLUSTER_FILE, json.dumps(entry, indent=2) + "\n")
    return word


def check_shared(run: Path, cluster: Cluster, word: str, patience: float = PATIENCE) -> None:
    """Raises UserError where this worker does not see in the run's folder what the chief wrote there."""
    deadline = time.monotonic() + patience
    while _word(run) != word:
        if time.monotonic() > deadline:
            raise UserError(
                "--output",
                f"All workers must see one folder, but in {run} {cluster.called(cluster.index)} does not find the "
                f"{CLUSTER_FILE} of this start, which the chief wrote.",
                "Use a folder on a file system that all workers share.",
            )
        time.sleep(0.2)


def _word(run: Path) -> str | None:
    """The word of the newest start that this worker sees."""
    try:
        return json.loads((run / CLUSTER_FILE).read_text(encoding="utf-8"))["start"]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # not there yet, or damaged
