"""Plays short scenes of workers on loopback: python -m tests.training.worker_scenes FOLDER [SCENE …].

FOLDER/SCENE.json receives the exit code and output of each worker, and the ports. It also receives the seconds from the
last line `mark` to the end of each worker. TensorFlow is imported once. The workers are forks of this process, which
computes nothing.
"""

import json
import os
import signal
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["OPENBLAS_NUM_THREADS"] = "1"  # a process that forks must have no threads

import tensorflow as tf

from dupr_tf.data.images.bad_images import BadImages
from dupr_tf.errors import RunFailed, RunInterrupted, UserError
from dupr_tf.training import workers as workers_module
from dupr_tf.training.cluster import Cluster
from dupr_tf.training.workers import ReportToChief, Workers
from tests.training.cluster import free_ports

AT_ONCE = 4  # scenes
PATIENCE = 90.0  # seconds until this process ends a scene


def mark():
    print("mark", time.time(), flush=True)


def steps(workers, count, act):
    """Takes steps in which the workers sum a tensor, and calls `act(step)` before each."""

    @tf.function
    def step():
        return workers.strategy.run(lambda: tf.distribute.get_replica_context().all_reduce("sum", tf.ones([8])))

    for number in range(count):
        act(number)
        step()
        workers.progress()
        time.sleep(0.02)


def difference(workers):
    other = workers.index == 2
    workers.agree({"train.epochs": str(10 + other), "images": str(23 + other), "same": "1"})


def mistake(workers):
    if workers.index == 2:
        raise UserError("data.root", "There are no images.", "Pass a folder of photos.")
    workers.agree({})


def failure(workers):
    if workers.chief:
        raise RunFailed("The loss is not finite.")
    time.sleep(60)


def interruption(workers):
    if workers.chief:
        raise RunInterrupted(signal.SIGTERM, 7)
    time.sleep(60)


def end(victim, number):
    def scene(workers):
        def act(step):
            if step == 3 and workers.index == victim:
                mark()
                os.kill(os.getpid(), number)

        steps(workers, 2000, act)

    return scene


def silence(workers):
    """Stops worker 1 while the chief does not wait for a collective."""
    if not workers.chief:
        mark()
        os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(60)


def stuck(workers):
    """Keeps worker 1 alive without taking a step."""

    def act(step):
        if step == 3 and workers.index == 1:
            mark()
            time.sleep(60)

    steps(workers, 2000, act)


def long_tasks(workers):
    """Makes the first step, and a task that the chief announces, longer than `worker_timeout`."""
    workers.agree({"a": "1"})
    print(workers.agree({}, {"step": 7} if workers.chief else None))

    def act(step):
        if step == 0 and workers.index == 1:
            time.sleep(1.5 * workers.worker_timeout)
        if step == 3 and workers.chief:
            workers.announce(time.sleep)(2 * workers.worker_timeout)

    workers.wait_long()
    steps(workers, 6, act)


def long_forever(workers):
    """Makes the chief announce a task that takes longer than `start_timeout`."""

    def act(step):
        if step == 3 and workers.chief:
            mark()
            workers.announce(time.sleep)(60)

    steps(workers, 6, act)


def reports(workers):
    """Makes worker 1 find bad images and receive a signal. The chief stops the run."""
    bad, received = BadImages([f"{number}.jpg" for number in range(9)], 0.5), []
    if workers.chief:
        time.sleep(2)  # reports may come before the chief can handle them
    if workers.index == 1:
        bad.add(4, "empty")
        received.append(signal.SIGTERM)
    bad.add(workers.index, "cut short")
    report = ReportToChief(workers, bad, received)
    for step in range(1, 2000):
        report.on_step(step, {})
        if workers.chief and received and len(bad.reason_of) == 3:
            print(sorted(bad.reason_of.items()))
            raise RunInterrupted(received[0], step)
        time.sleep(0.02)


def departure(workers):
    raise AssertionError("worker 1 has left before")


def leave_while_servers_connect(index):
    build = workers_module.build_strategy

    def build_or_leave(*arguments):
        if index == 1:
            mark()
            os._exit(9)
        return build(*arguments)

    workers_module.build_strategy = build_or_leave


SCENES = {  # name: (number of workers, scene, worker_timeout, start_timeout)
    "difference": (3, difference, 20, 60),
    "mistake": (3, mistake, 20, 60),
    "failure": (2, failure, 20, 60),
    "interruption": (2, interruption, 20, 60),
    "killed_chief": (2, end(0, signal.SIGKILL), 30, 60),
    "killed_worker": (3, end(1, signal.SIGKILL), 30, 60),
    "stopped_chief": (2, end(0, signal.SIGSTOP), 12, 60),
    "silence": (2, silence, 4, 60),
    "stuck": (2, stuck, 3, 60),
    "long_tasks": (2, long_tasks, 2, 60),
    "long_forever": (2, long_forever, 2, 6),
    "reports": (2, reports, 20, 60),
    "departure": (2, departure, 20, 60),
    "never": (2, departure, 20, 2),
}


def worker(name: str, ports: list[int], index: int) -> int:
    """Runs the scene in this process, and returns its exit code."""
    _, scene, worker_timeout, start_timeout = SCENES[name]
    if name == "departure":
        leave_while_servers_connect(index)
    try:
        cluster = Cluster(tuple(f"127.0.0.1:{port}" for port in ports), index)
        with Workers(cluster, worker_timeout, start_timeout) as workers:
            scene(workers)
        return 0
    except (UserError, RunFailed) as error:  # before the servers have started
        print(error, file=sys.stderr)
        return error.code


def fork(name: str, ports: list[int], index: int, output: Path) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # `nohup pytest` ignores it
        number = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(number, 1)
        os.dup2(number, 2)
        code = worker(name, ports, index)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def watch(children: list[int]) -> tuple[list[int | None], list[float]]:
    """Waits for all workers except stopped ones. Returns exit codes (None: ended by this process) and end times."""
    codes, ends = [None] * len(children), [0.0] * len(children)
    deadline = time.time() + PATIENCE
    stopped = set()
    while time.time() < deadline and any(codes[i] is None and i not in stopped for i in range(len(children))):
        for index, child in enumerate(children):
            if codes[index] is None:
                done, status = os.waitpid(child, os.WNOHANG | os.WUNTRACED)
                if done and os.WIFSTOPPED(status):
                    stopped.add(index)
                elif done:
                    codes[index], ends[index] = os.waitstatus_to_exitcode(status), time.time()
        time.sleep(0.02)
    for index, child in enumerate(children):
        if codes[index] is None:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    return codes, ends


def start(folder: Path, name: str):
    """Starts the workers of a scene; returns a function that waits for them and writes the result."""
    count = SCENES[name][0]
    ports = free_ports(count)
    started = 1 if name == "never" else count
    outputs = [folder / f"{name}.{index}" for index in range(started)]
    children = [fork(name, ports, index, outputs[index]) for index in range(started)]

    def finish():
        codes, ends = watch(children)
        texts = [output.read_text(errors="replace") for output in outputs]
        marks = [float(line.split()[1]) for text in texts for line in text.splitlines() if line.startswith("mark")]
        seconds = [end - max(marks, default=end) for end in ends]
        result = {"codes": codes, "seconds": seconds, "output": texts, "ports": ports}
        (folder / f"{name}.json").write_text(json.dumps(result), encoding="utf-8")

    return finish


if __name__ == "__main__":
    folder, names = Path(sys.argv[1]), sys.argv[2:] or list(SCENES)
    for first in range(0, len(names), AT_ONCE):
        # Fork all workers of a group first: a fork of a process with threads could deadlock.
        finishes = [start(folder, name) for name in names[first : first + AT_ONCE]]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda finish: finish(), finishes))
