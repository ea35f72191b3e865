"""Workers on loopback compute what the devices of one machine do, and end as one. Each is a process of its own."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from dupr_tf.errors import WorkerLost
from tests.training.cluster import finish, log_of, start, write_trial


@pytest.mark.slow
def test_two_workers_do_the_steps_of_one_machine_with_two_devices():
    command = [sys.executable, "-m", "tests.training.worker_steps"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second, third = (json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
    assert first == second == third  # banks and weights bit for bit


def losses(run):
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_fifty_steps_are_the_same_on_one_two_and_four_workers(tmp_path):
    write_trial(tmp_path, 50, batch_size=16, checkpoint_every=50)
    found, states = {}, {}
    for workers, devices in ((1, 4), (2, 2), (4, 1)):
        run = tmp_path / f"on_{workers}"
        assert finish(start(tmp_path, run, workers, devices)) == [0] * workers, log_of(run, workers - 1)
        found[workers] = losses(run)
        states[workers] = [dict(np.load(f"{run}.{index}.npz")) for index in range(workers)]
    for workers, own in states.items():
        np.testing.assert_allclose(found[workers], found[1], rtol=1e-5)
        for state in own:
            assert state["agree"]
            for name, values in state.items():
                np.testing.assert_array_equal(values, own[0][name], err_msg=f"{name} of {workers}")
                np.testing.assert_allclose(values, states[1][0][name], atol=1e-4, err_msg=f"{name} of {workers}")


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_workers_or_says_why_not(tmp_path):
    write_trial(tmp_path, 6)
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert finish(start(tmp_path, whole, 1, 2)) == [0]
    stop = {0: ["--train.max_steps=3", "--allow-change"], 1: ["--train.max_steps=3", "--allow-change"]}
    assert finish(start(tmp_path, run, 2, 1, extra=stop)) == [0, 0], log_of(run, 0)
    cosine = losses(run)
    assert cosine[0] == losses(whole)[0]  # later ones have another schedule
    many = {index: ["--allow-change"] for index in range(4)}
    assert finish(start(tmp_path, run, 4, 1, extra=many)) == [0] * 4, log_of(run, 0)
    assert len(losses(run)) == 6 and losses(run)[:3] == cosine
    three = finish(start(tmp_path, tmp_path / "three", 3, 1))
    assert three == [2] * 3
    for index in range(3):
        problem = "train.micro_batches: Expected a multiple of the 3 devices, received 4"
        assert problem in log_of(tmp_path / "three", index)


@pytest.mark.slow
def test_a_worker_with_bad_images_a_slow_one_and_a_signal(tmp_path):
    write_trial(tmp_path, 500, checkpoint_every=500)
    bad = sorted((tmp_path / "unlabeled").iterdir())[::9]
    for path in bad:
        path.write_bytes(path.read_bytes()[:100])
    run = tmp_path / "run"
    settings = ["--data.max_bad_share=0.5", "--train.log_every=3", "--train.batch_size=12", "--train.micro_batches=3"]
    slow = {index: {"SLOW": "1.0" if index == 1 else "0.0"} for index in range(3)}
    workers = start(tmp_path, run, 3, 1, environment=slow, extra=dict.fromkeys(range(3), settings))
    deadline = time.monotonic() + 1200
    named = re.compile(r"worker 1 \(127\.0\.0\.1:\d+\) is slow: at step \d+ it takes")  # noise may name others too

    def told():
        return named.search(" ".join(log_of(run, 0).split()))

    while time.monotonic() < deadline and not told() and all(p.poll() is None for p in workers):
        time.sleep(0.2)
    workers[2].send_signal(signal.SIGTERM)
    assert finish(workers, 300) == [143] * 3, [log_of(run, index)[-600:] for index in range(3)]
    assert told(), log_of(run, 0)[-3000:]
    ends = {log_of(run, index).splitlines()[-1] for index in range(3)}
    (end,) = ends
    assert end.startswith("dupr-tf: stopped by SIGTERM after step ") and end.endswith(", which is saved")
    step = int(end.split("step ")[1].split(",")[0])
    assert (run / "checkpoints" / f"ckpt-{step}.sha256").exists()
    listed = (run / "bad_images.tsv").read_text()
    assert all(path.name in listed for path in bad)


@pytest.mark.slow
@pytest.mark.parametrize("gone", [0, 1])
def test_a_worker_that_leaves_while_servers_meet_is_not_waited_for_an_hour(tmp_path, gone):
    write_trial(tmp_path, 2)
    run = tmp_path / "run"
    workers = start(tmp_path, run, 2, 1, environment={gone: {"LEAVE": "1"}})
    codes = finish(workers, 120)
    assert codes[gone] == 9 and codes[1 - gone] in (WorkerLost.code, -signal.SIGKILL), log_of(run, 1 - gone)
    assert f"worker {gone} (127.0.0.1:" in log_of(run, 1 - gone).splitlines()[-1], log_of(run, 1 - gone)


@pytest.mark.slow
def test_workers_that_differ_do_not_begin(tmp_path):
    """In turn: another config, other images, a folder that is not shared."""
    write_trial(tmp_path, 2)
    run = tmp_path / "config"
    assert finish(start(tmp_path, run, 2, 1, extra={1: ["--train.seed=5"]})) == [2, 2]
    for index in (0, 1):
        assert "train.seed: Expected the same on every worker, received 5 on worker 1" in log_of(run, index)
    assert not run.exists()

    run, other = tmp_path / "of_images", tmp_path / "other"
    shutil.copytree(tmp_path / "unlabeled", other)
    next(iter(sorted(other.iterdir()))).unlink()
    assert finish(start(tmp_path, run, 2, 1, extra={1: ["--data", str(other)]})) == [2, 2]
    for index in (0, 1):
        assert "images: Expected the same on every worker, received 23 on worker 1" in log_of(run, index)
    assert not run.exists()


@pytest.mark.slow
def test_three_kills_of_random_workers_lose_nothing():
    command = [sys.executable, "-m", "tests.worker_kill_test", "--kills", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "3 kills (" in done.stdout
