"""Reads the workers that train together, and the index of this process, from `TF_CONFIG`. Imports no TensorFlow.

The chief records the workers in the run's folder, which shows the others that they see the same folder.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
import uuid
from pathlib import Path

from dupr_tf.config import Config
from dupr_tf.errors import UserError
from dupr_tf.files import write_whole
from dupr_tf.records import read_record, text

CLUSTER_FILE = "cluster.json"
PATIENCE = 30.0  # seconds a network file system may take to show a file
KINDS = ("chief", "worker")  # kinds of tasks that train; the chief comes first, as in TensorFlow
EXAMPLE = """TF_CONFIG='{"cluster": {"worker": ["a:2222", "b:2222"]}, "task": {"type": "worker", "index": 0}}'"""


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The workers that train together.

    Args:
        addresses: `host:port` of each worker. The first is the chief, which writes the run folder.
        index: index of this process.
    """

    addresses: tuple[str, ...]
    index: int

    @property
    def chief(self) -> bool:
        return self.index == 0

    def called(self, index: int) -> str:
        """Returns the name of a worker in messages."""
        return f"worker {index} ({self.addresses[index]}{', the chief' if index == 0 else ''})"

    def host_and_port(self, index: int) -> tuple[str, int]:
        host, _, port = self.addresses[index].rpartition(":")
        return host.strip("[]"), int(port)


def cluster_of(config: Config, environment: dict[str, str] | None = None) -> Cluster | None:
    """Returns the cluster of a run, or None if this machine trains alone.

    Args:
        config: config whose `train.strategy` is read.
        environment: environment whose `TF_CONFIG` is read. Default: that of this process.

    Raises:
        UserError: `TF_CONFIG` is malformed, or names no machine although the strategy is multi_worker.
    """
    setting = config.train.strategy
    if setting not in ("auto", "multi_worker"):
        return None
    cluster = read_cluster(os.environ if environment is None else environment)
    if cluster is None and setting == "multi_worker":
        raise UserError("train.strategy", "multi_worker needs machines in TF_CONFIG.", f"Set {EXAMPLE}.")
    return cluster if cluster is not None and len(cluster.addresses) > 1 else None


def refuse_cluster(environment: dict[str, str] | None = None) -> None:
    """Raises UserError if several workers were started for a task that one machine does."""
    cluster = read_cluster(os.environ if environment is None else environment)
    if cluster is not None and len(cluster.addresses) > 1:
        raise UserError(
            "TF_CONFIG",
            f"This command runs on one machine, and TF_CONFIG has {len(cluster.addresses)} workers.",
            "Unset TF_CONFIG and start the command once.",
        )


def read_cluster(environment: dict[str, str]) -> Cluster | None:
    """Reads the cluster from `TF_CONFIG`. Returns None if the variable names no machine.

    If it names one machine, its kind of task does not matter: services for one machine use kinds such as `master`.

    Raises:
        UserError: `TF_CONFIG` is malformed; the error names the problem.
    """
    text = environment.get("TF_CONFIG", "").strip()
    if not text:
        return None
    try:
        settings = json.loads(text)
    except ValueError as error:
        raise _wrong("JSON", f"{text:.80} ({error})") from None
    if not isinstance(settings, dict) or not isinstance(settings.get("cluster", {}), dict):
        raise _wrong("an object with a cluster", f"{text:.80}")
    jobs, task = settings.get("cluster", {}), settings.get("task")
    machines = [address for addresses in jobs.values() if isinstance(addresses, list) for address in addresses]
    if all(isinstance(addresses, list) for addresses in jobs.values()) and len(machines) < 2:
        return Cluster(tuple(machines), 0) if machines else None
    for kind, addresses in jobs.items():
        _check_job(kind, addresses)
    addresses = [address for kind in KINDS for address in jobs.get(kind, [])]
    doubled = sorted({address for address in addresses if addresses.count(address) > 1})
    if doubled:
        raise _wrong("each address once", f"{', '.join(doubled)} more than once")
    return Cluster(tuple(addresses), _index(task, jobs))


def _index(task, jobs) -> int:
    """Returns the index of this process among all workers."""
    if not isinstance(task, dict) or task.get("type") is None or task.get("index") is None:
        raise _wrong("a task with type and index", f"{task!r:.80}")
    kind, index = task["type"], task["index"]
    if kind not in jobs:
        raise _wrong(f"a task of a type that the cluster has ({', '.join(jobs)})", f"{kind!r:.80}")
    if isinstance(index, str) and index.isdigit():  # as in TensorFlow
        index = int(index)
    if type(index) is not int or not 0 <= index < len(jobs[kind]):
        raise _wrong(f"a task index from 0 to {len(jobs[kind]) - 1} for {kind}", f"{index!r:.80}")
    return index + (len(jobs.get("chief", [])) if kind == "worker" else 0)


def _check_job(kind, addresses) -> None:
    if kind not in KINDS:
        raise _wrong(f"tasks of type {' and '.join(KINDS)} alone (all of them train)", f"{kind!r:.80}")
    if not isinstance(addresses, list) or not addresses:
        raise _wrong(f"a list of addresses for {kind}", f"{addresses!r:.80}")
    if kind == "chief" and len(addresses) > 1:
        raise _wrong("one chief", f"{len(addresses)}")
    for address in addresses:
        host, _, port = address.rpartition(":") if isinstance(address, str) else ("", "", "")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise _wrong("addresses as host:port", f"{address!r:.80}")


def _wrong(expected: str, received: str) -> UserError:
    return UserError("TF_CONFIG", f"Expected {expected}, received {received}.", f"Set {EXAMPLE}.")


def record_cluster(run: Path, cluster: Cluster | None) -> str:
    """Writes the workers of this start into the run's folder, and returns a token that identifies the start."""
    token = uuid.uuid4().hex
    if cluster is not None:
        write_whole(run / CLUSTER_FILE, json.dumps({"workers": cluster.addresses, "start": token}, indent=2) + "\n")
    return token


def check_shared(run: Path, cluster: Cluster, token: str, patience: float = PATIENCE) -> None:
    """Raises UserError if this worker does not see the chief's `record_cluster` in the run's folder."""
    deadline = time.monotonic() + patience
    while _read_token(run) != token:
        if time.monotonic() > deadline:
            raise UserError(
                "--output",
                f"All workers must see one folder, but in {run} {cluster.called(cluster.index)} does not find the "
                f"{CLUSTER_FILE} of this start, which the chief wrote.",
                "Use a folder on a file system that all workers share.",
            )
        time.sleep(0.2)


def _read_token(run: Path) -> str | None:
    try:
        return read_record(run / CLUSTER_FILE, lambda value: text(value["start"]))
    except UserError:
        return None  # not written yet, or damaged
