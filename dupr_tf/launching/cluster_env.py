"""TF_CONFIG from the variables that Slurm or Kubernetes sets for each task of a job.

All workers must derive the same list, so it depends only on values that are equal on all of them. Only the index
differs.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from collections.abc import Mapping
from typing import Literal

from dupr_tf.errors import UserError
from dupr_tf.launching.node_list import HOST, expand_counts, expand_node_list

Launcher = Literal["auto", "slurm", "pod"]
POD_PORT = 2222
SLURM_PORTS = 15_000, 15_000  # first port, and number of ports for job numbers; below Linux' own choices
LAST_PORT = 65_535
POD_NAME = re.compile(r"(.+)-(\d{1,6})", re.ASCII)


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The workers of a run, `host:port` each in the order of their index, and the index of this one."""

    workers: tuple[str, ...]
    index: int

    def as_json(self) -> str:
        """Returns the value of TF_CONFIG, in one line."""
        task = {"type": "worker", "index": self.index}
        return json.dumps({"cluster": {"worker": list(self.workers)}, "task": task})

    def as_shell(self) -> str:
        """Returns `export TF_CONFIG=…`, quoted for a POSIX shell."""
        return f"export TF_CONFIG={shlex.quote(self.as_json())}"


def cluster_of(
    environment: Mapping[str, str],
    launcher: Launcher = "auto",
    port: int | None = None,
    replicas: int | None = None,
    service: str | None = None,
) -> Cluster:
    """Returns the cluster this process belongs to.

    Args:
        environment: the variables of the process.
        launcher: source of the variables; `auto` means Slurm if its variables are set, else a pod.
        port: port of the first worker on a host. Default: derived from the Slurm job's number, or 2222 in a pod.
        replicas: number of pods. Default: DUPR_REPLICAS.
        service: the headless service of the pods. Default: DUPR_SERVICE.

    Raises:
        UserError: variables are missing, malformed or contradict each other.
    """
    if port is not None and not 1 <= port <= LAST_PORT:
        raise UserError("--port", f"Expected 1 to {LAST_PORT}, received {port}.", f"Use --port {POD_PORT}.")
    if launcher == "auto":
        launcher = _launcher_of(environment)
    if launcher == "slurm":
        return _slurm(environment, port)
    return _pod(environment, port or POD_PORT, replicas, service)


def _launcher_of(environment) -> str:
    if any(environment.get(name) for name in ("SLURM_JOB_NODELIST", "SLURM_STEP_NODELIST", "SLURM_NODELIST")):
        return "slurm"
    if environment.get("JOB_COMPLETION_INDEX") or environment.get("KUBERNETES_SERVICE_HOST"):
        return "pod"
    raise UserError(
        None,
        "There are no variables of Slurm (SLURM_JOB_NODELIST) or of a pod (JOB_COMPLETION_INDEX).",
        "Run within srun or the Job's pods, or write TF_CONFIG by hand.",
    )


def _slurm(environment, port) -> Cluster:
    """Makes a worker of each task. A job step has its own variables, and may have fewer nodes than the job."""
    within = "STEP" if environment.get("SLURM_STEP_NODELIST") else "JOB"
    names = (f"SLURM_{within}_NODELIST", "SLURM_NODELIST")
    nodes = expand_node_list(_first(environment, *names, fix="Run within srun or sbatch."))
    tasks = _tasks_by_node(environment, within, len(nodes))
    base = port or _port_of_job(environment)
    if base + max(tasks) - 1 > LAST_PORT:
        problem = f"Expected ports up to {LAST_PORT}, received {port} and {max(tasks)} tasks a node."
        raise UserError("--port", problem, "Use a lower one.")
    workers = [
        f"{node}:{base + local}" for node, count in zip(nodes, tasks, strict=True) for local in range(count)
    ]  # fmt: skip
    index = _number(environment, "SLURM_PROCID" if "SLURM_PROCID" in environment else "SLURM_NODEID", len(workers))
    _check_place(environment, tasks, index)
    return Cluster(tuple(workers), index)


def _tasks_by_node(environment, within, nodes) -> list[int]:
    if "SLURM_PROCID" not in environment:  # one worker per node, not started by srun
        return [1] * nodes
    text = environment.get("SLURM_STEP_TASKS_PER_NODE" if within == "STEP" else "SLURM_TASKS_PER_NODE")
    total = environment.get("SLURM_STEP_NUM_TASKS" if within == "STEP" else "SLURM_NTASKS")
    if text:
        tasks = expand_counts(text)
    elif total:
        each, left = divmod(_number(environment, "SLURM_STEP_NUM_TASKS" if within == "STEP" else "SLURM_NTASKS"), nodes)
        if left or not each:
            problem = f"Expected as many tasks on each of {nodes} nodes, received {total} tasks."
            raise UserError("SLURM_NTASKS", problem, "Pass --ntasks-per-node to Slurm.")
        tasks = [each] * nodes
    else:
        tasks = [1] * nodes
    if len(tasks) != nodes:
        problem = f"Expected tasks for each of {nodes} nodes, received {text} for {len(tasks)}."
        raise UserError("SLURM_TASKS_PER_NODE", problem, "Run within srun.")
    if text and total and sum(tasks) != int(total if total.isdecimal() else -1):
        problem = f"Expected {text} to be the {total!r:.20} tasks of the job, received {sum(tasks)}."
        raise UserError("SLURM_TASKS_PER_NODE", problem, "Run within srun.")
    return tasks


def _check_place(environment, tasks, index):
    """Checks that Slurm dealt tasks to nodes in order. With `--distribution=cyclic` hosts and indices would mix."""
    if not environment.get("SLURM_NODEID") or "SLURM_PROCID" not in environment:
        return
    here, first = _number(environment, "SLURM_NODEID", len(tasks)), 0
    for node, count in enumerate(tasks):
        if first <= index < first + count and node != here:
            problem = f"Expected task {index} on node {node}, received node {here}: tasks are not dealt node by node."
            raise UserError("SLURM_NODEID", problem, "Use srun --distribution=block.")
        first += count


def _port_of_job(environment) -> int:
    """Returns a port that differs between jobs on the same host and is the same for all tasks of a job."""
    first, spread = SLURM_PORTS
    name = "SLURM_JOB_ID" if environment.get("SLURM_JOB_ID") else "SLURM_JOBID"
    return first + (_number(environment, name) if environment.get(name) else 0) * 8 % spread


def _pod(environment, port, replicas, service) -> Cluster:
    """Reads the pods of an Indexed Job or a StatefulSet: NAME-0, NAME-1, … below their headless service."""
    host = _first(environment, "HOSTNAME", fix="Run in a pod of the Job.").split(".")[0]
    named = POD_NAME.fullmatch(host)
    if not named or not HOST.fullmatch(host):
        fix = "Use an Indexed Job or a StatefulSet, see configs/cluster/kubernetes.yaml."
        raise UserError("HOSTNAME", f"Expected a pod named NAME-INDEX, received {host!r:.80}.", fix)
    if replicas is None:
        _first(environment, "DUPR_REPLICAS", fix="Pass --replicas N, or set it in the manifest.")
        replicas = _number(environment, "DUPR_REPLICAS")
    if not 1 <= replicas <= 10_000:
        fix = "Pass --replicas, the completions of the Job."
        raise UserError("--replicas", f"Expected 1 to 10000, received {replicas}.", fix)
    if service is None:
        service = _first(environment, "DUPR_SERVICE", fix="Pass --service NAME, or set it in the manifest.")
    if not HOST.fullmatch(service):
        raise UserError(
            "--service", f"Expected the name of a service, received {service!r:.80}.", "Use --service dupr."
        )
    name, index = named[1], int(named[2])
    if environment.get("JOB_COMPLETION_INDEX"):
        completion = _number(environment, "JOB_COMPLETION_INDEX")
        if completion != index:
            problem = f"Expected {index}, as in the name of the pod {host}, received {completion}."
            raise UserError("JOB_COMPLETION_INDEX", problem, "Set no hostname in the manifest.")
    if index >= replicas:
        problem = f"Expected an index below the {replicas} replicas, received the pod {host}."
        raise UserError("--replicas", problem, "Pass --replicas, the completions of the Job.")
    return Cluster(tuple(f"{name}-{i}.{service}:{port}" for i in range(replicas)), index)


def _first(environment, *names, fix) -> str:
    """Returns the first of these variables that is set."""
    value = next((environment[name] for name in names if environment.get(name, "").strip()), None)
    if value is None:
        raise UserError(names[0], "The variable is not set.", fix)
    return value.strip()


def _number(environment, name, below: int | None = None) -> int:
    text = environment.get(name, "").strip()
    if not re.fullmatch(r"\d{1,12}", text, re.ASCII):
        raise UserError(name, f"Expected a number from 0, received {text!r:.40}.", "Run within the job.")
    if below is not None and int(text) >= below:
        raise UserError(name, f"Expected less than the {below} workers, received {text}.", "Run within srun.")
    return int(text)
