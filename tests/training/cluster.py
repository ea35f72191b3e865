"""Starts workers on loopback, as a launcher would on many machines."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from dupr_tf.config import Config, dump_config, parse_config
from dupr_tf.data.sample import write_sample


def free_ports(count: int) -> list[int]:
    """Returns ports that no process listens on."""
    listeners = [socket.create_server(("", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


def tf_config(ports: list[int], index: int) -> str:
    addresses = [f"127.0.0.1:{port}" for port in ports]
    return json.dumps({"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}})


def write_trial(folder: Path, steps: int, **train) -> Config:
    """Writes photos and the config of a run of the tiny network: one image loss, one patch loss."""
    from tests.models.test_golden import SIZE  # late, since it imports TensorFlow

    write_sample(folder, train=1, val=1, unlabeled=24, seed=3)
    config = parse_config({
        "data": {"image_size": SIZE},
        "views": {"min_overlap": 8},
        "model": {"backbone": "resnet18", "image_weights": [0, 0, 0, 1], "patch_weights": [0, 0, 1, 0],
                  "roi_sizes": [4, 2, 2, 1], "bank_size": 70, "momentum": 0.9, "embedding_dim": 16},
        "optimizer": {"learning_rate": 0.005},
        "train": {"batch_size": 8, "micro_batches": 4, "epochs": steps, "max_steps": steps, "log_every": 1,
                  "worker_timeout": 30, "start_timeout": 1200, "checkpoint_every": 2, **train},
    })  # fmt: skip
    (folder / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    return config


def start(folder: Path, run: Path, workers: int, devices: int, ports=None, extra=None) -> list:
    """Returns the processes of a run with so many workers.

    Args:
        folder: made by `write_trial`.
        run: the run's folder. Each worker's standard error goes to `RUN.N.log`, its final state to `RUN.N.npz`.
        workers, devices: number of workers, and logical devices of each. One worker gets no TF_CONFIG.
        ports: ports of the workers; None takes free ones.
        extra: {index: [argument]}.
    """
    ports, processes = ports or free_ports(workers), []
    for index in range(workers):
        env = {**os.environ, **({"TF_CONFIG": tf_config(ports, index)} if workers > 1 else {})}
        arguments = ["pretrain", str(folder / "config.yaml"), "--output", str(run), "--data", str(folder / "unlabeled")]
        command = [sys.executable, "-m", "tests.training.worker_run", str(devices), f"{run}.{index}.npz", *arguments]
        with Path(f"{run}.{index}.log").open("wb") as log:
            processes.append(
                subprocess.Popen([*command, *(extra or {}).get(index, [])], stdout=log, stderr=log, env=env)
            )
    return processes


def finish(processes, seconds: float = 2400) -> list[int]:
    """Returns the processes' exit codes."""
    try:
        return [process.wait(seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()


def log_of(run: Path, index: int) -> str:
    """Returns a worker's output, without TensorFlow's own lines."""
    lines = Path(f"{run}.{index}.log").read_text(errors="replace").splitlines()
    return "\n".join(line for line in lines if not line.startswith(("I0000", "WARNING: All log")))
