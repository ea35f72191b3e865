"""Facts that must be the same on all workers of a run: config, code, versions and images."""

from __future__ import annotations

import hashlib
import os

from dupr_tf.config import Config
from dupr_tf.environment import PACKAGE, versions
from dupr_tf.training.cluster import Cluster
from dupr_tf.training.pool import Pool

OWN_TO_A_WORKER = ("data.root", "data.threads", "data.processes")  # the images below the root are compared instead


def program_facts(config: Config, cluster: Cluster, devices: int) -> dict[str, str]:
    """Lists the facts that must be equal on all workers before anything is computed.

    Args:
        config: config of the run; `OWN_TO_A_WORKER` may differ.
        cluster: cluster of the run.
        devices: number of devices that this worker trains on.
    """
    facts = {"workers": ", ".join(cluster.addresses), "devices of a worker": devices, "source code": source_digest()}
    facts |= {f"version of {name}": version for name, version in versions().items()}
    facts["TF_ENABLE_ONEDNN_OPTS"] = os.environ.get("TF_ENABLE_ONEDNN_OPTS")
    for section, fields in config.model_dump(mode="json").items():
        facts |= {f"{section}.{name}": value for name, value in (fields or {}).items()}
    return {name: str(value) for name, value in facts.items() if name not in OWN_TO_A_WORKER}


def image_facts(pool: Pool) -> dict[str, str]:
    """Returns facts that identify the images of a worker: number, names (or shards) in order, and those left out."""
    source, excluded = pool.source, pool.exclusion
    facts = {"images": str(len(source)), "names of the images": source.digest(pool.config.data.root)}
    return facts | {"--exclude": excluded.sha256 if excluded else "none"}


def source_digest() -> str:
    """Computes the sha256 of this package's Python files."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(f"{path.relative_to(PACKAGE).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]
