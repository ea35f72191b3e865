"""Tests that workers on loopback compute the same as devices of one machine and end together. Each is a process."""

import json
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from dupr_tf.errors import UserError, WorkerLost
from dupr_tf.models.resnet import build_backbone
from tests.training.cluster import finish, log_of, start, write_trial

DEFAULT = ("difference", "killed_worker", "stuck", "long_tasks", "reports", "departure", "never")
SLOW = ("mistake", "failure", "interruption", "killed_chief", "stopped_chief", "silence", "long_forever")


def play(folder, names) -> dict:
    """Runs scenes of `tests.training.worker_scenes`; returns the result of each by name."""
    command = [sys.executable, "-m", "tests.training.worker_scenes", str(folder), *names]
    subprocess.run(command, check=True, timeout=600)
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in names}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return play(tmp_path_factory.mktemp("scenes"), DEFAULT)


@pytest.fixture(scope="module")
def slow_scenes(tmp_path_factory):
    return play(tmp_path_factory.mktemp("scenes"), SLOW)


def errors_of(result, index) -> list[str]:
    """Returns the lines of a worker's own errors."""
    return [line for line in result["output"][index].splitlines() if line.startswith("dupr-tf: ")]


def check_loss(result, victim, limit) -> None:
    """Checks that all but the victim ended in time with the code of a lost worker, and named the victim."""
    for index, code in enumerate(result["codes"]):
        if index != victim:
            assert code == WorkerLost.code and result["seconds"][index] < limit
            (line,) = errors_of(result, index)
            assert f"worker {victim} (127.0.0.1:{result['ports'][victim]}" in line


def test_different_facts_end_all_workers_with_both_values(scenes):
    result = scenes["difference"]
    assert result["codes"] == [UserError.code] * 3
    for index in range(3):
        images, epochs = errors_of(result, index)
        assert images.startswith("dupr-tf: error: images: ") and "24" in images and "23 on the chief" in images
        assert epochs.startswith("dupr-tf: error: train.epochs: ") and "worker 2 (127.0.0.1:" in epochs


@pytest.mark.slow
def test_mistake_of_one_worker_ends_all(slow_scenes):
    result = slow_scenes["mistake"]
    assert result["codes"] == [UserError.code] * 3
    chief, second, third = (errors_of(result, index) for index in range(3))
    assert third[0].startswith("dupr-tf: error: data.root: ")
    assert chief == second and chief[0].startswith("dupr-tf: error: worker 2 (127.0.0.1:")
    assert chief[0].endswith(third[0].removeprefix("dupr-tf: error: "))


def test_killed_worker_ends_and_is_named_by_the_others(scenes):
    check_loss(scenes["killed_worker"], 1, 15)


@pytest.mark.slow
def test_silent_worker_is_named_while_the_chief_computes(slow_scenes):
    assert slow_scenes["silence"]["codes"][1] is None  # the worker was stopped, but lives
    check_loss(slow_scenes["silence"], 1, 30)


def test_stuck_worker_ends_all_within_worker_timeout(scenes):
    result = scenes["stuck"]
    assert result["codes"] == [WorkerLost.code] * 2 and min(result["seconds"]) >= 3 and max(result["seconds"]) < 10
    assert all("train.worker_timeout" in errors_of(result, index)[0] for index in range(2))


def test_workers_agree_and_get_start_timeout_for_long_tasks(scenes):
    assert scenes["long_tasks"]["codes"] == [0, 0]
    assert all("{'step': 7}" in text for text in scenes["long_tasks"]["output"])


def test_bad_images_and_signals_reach_the_chief(scenes):
    result = scenes["reports"]
    assert result["codes"] == [128 + signal.SIGTERM] * 2
    assert "[(0, 'cut short'), (1, 'cut short'), (4, 'empty')]" in result["output"][0]


def test_worker_that_leaves_while_servers_connect_is_named(scenes):
    result = scenes["departure"]
    assert result["codes"] == [-signal.SIGKILL, 9] and result["seconds"][0] < 15
    assert "worker 1 (127.0.0.1:" in errors_of(result, 0)[0]


def test_worker_that_never_starts_is_named(scenes):
    assert scenes["never"]["codes"] == [WorkerLost.code]
    assert f"worker 1 (127.0.0.1:{scenes['never']['ports'][1]})" in scenes["never"]["output"][0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["killed_chief", "stopped_chief"])
def test_chief_that_ends_is_named_by_the_other_workers(slow_scenes, name):
    check_loss(slow_scenes[name], 0, 15 if name == "killed_chief" else 30)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code"), [("failure", 1), ("interruption", 143)])
def test_end_of_the_chief_ends_all_with_its_exit_code(slow_scenes, name, code):
    result = slow_scenes[name]
    assert result["codes"] == [code, code] and errors_of(result, 0) == errors_of(result, 1) != []


@pytest.mark.slow
def test_long_task_ends_all_after_start_timeout(slow_scenes):
    result = slow_scenes["long_forever"]
    assert result["codes"] == [WorkerLost.code] * 2 and max(result["seconds"]) < 20
    assert all("train.start_timeout" in errors_of(result, index)[0] for index in range(2))


@pytest.mark.slow
def test_two_workers_take_the_steps_of_two_devices():
    command = [sys.executable, "-m", "tests.training.worker_steps"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second, third = (json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
    assert first == second == third  # banks and weights bit for bit


def losses(run):
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_one_two_and_four_workers_take_the_same_steps(tmp_path):
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
def test_resume_with_other_workers_continues_or_is_refused(tmp_path):
    write_trial(tmp_path, 6)
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert finish(start(tmp_path, whole, 1, 2)) == [0]
    stop = {0: ["--train.max_steps=3", "--allow-change"], 1: ["--train.max_steps=3", "--allow-change"]}
    assert finish(start(tmp_path, run, 2, 1, extra=stop)) == [0, 0], log_of(run, 0)
    cosine = losses(run)
    assert cosine[0] == losses(whole)[0]  # later losses follow another schedule
    many = {index: ["--allow-change"] for index in range(4)}
    assert finish(start(tmp_path, run, 4, 1, extra=many)) == [0] * 4, log_of(run, 0)
    assert len(losses(run)) == 6 and losses(run)[:3] == cosine
    three = finish(start(tmp_path, tmp_path / "three", 3, 1))
    assert three == [2] * 3
    for index in range(3):
        problem = "train.micro_batches: Expected a multiple of the 3 devices, received 4"
        assert problem in log_of(tmp_path / "three", index)


@pytest.mark.slow
def test_signal_and_bad_images_of_workers_reach_the_chief(tmp_path):
    write_trial(tmp_path, 500, checkpoint_every=500)
    bad = sorted((tmp_path / "unlabeled").iterdir())[::9]
    for path in bad:
        path.write_bytes(path.read_bytes()[:100])
    run = tmp_path / "run"
    settings = ["--data.max_bad_share=0.5", "--train.batch_size=12", "--train.micro_batches=3"]
    workers = start(tmp_path, run, 3, 1, extra=dict.fromkeys(range(3), settings))
    deadline, metrics = time.monotonic() + 1200, run / "metrics.jsonl"
    while time.monotonic() < deadline and not metrics.exists() and all(p.poll() is None for p in workers):
        time.sleep(0.2)
    time.sleep(2)  # after some steps
    workers[2].send_signal(signal.SIGTERM)
    assert finish(workers, 300) == [143] * 3, [log_of(run, index)[-600:] for index in range(3)]
    (end,) = {log_of(run, index).splitlines()[-1] for index in range(3)}
    step = int(end.split("Checkpoint ")[1].split()[0])
    assert (run / "checkpoints" / f"ckpt-{step}.sha256").exists()
    listed = (run / "bad_images.tsv").read_text()
    assert all(path.name in listed for path in bad)


@pytest.mark.slow
def test_different_configs_or_images_are_refused(tmp_path):
    """First the config differs, then the images."""
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
def test_different_initial_weights_are_refused(tmp_path):
    config = write_trial(tmp_path, 2)
    build_backbone(config.model.backbone, config.model.width).save(tmp_path / "start.keras")
    run = tmp_path / "run"
    assert finish(start(tmp_path, run, 2, 1, extra={1: ["--weights", str(tmp_path / "start.keras")]})) == [2, 2]
    for index in (0, 1):
        assert "--weights: Expected the same on every worker, received" in log_of(run, index)
    assert not run.exists()


@pytest.mark.slow
def test_three_kills_of_random_workers_lose_nothing():
    command = [sys.executable, "-m", "tests.worker_kill_test", "--kills", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "3 kills (" in done.stdout
