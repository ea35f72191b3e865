"""Workers that meet, agree and end together; no TensorFlow computes here, and the addresses are this machine's."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from dupr_tf.cli import main
from dupr_tf.config import parse_config
from dupr_tf.errors import RunFailed, RunInterrupted, UserError, WorkerLost
from dupr_tf.models.multi_worker import check_keras
from dupr_tf.training.cluster import Cluster, cluster_of, read_cluster, refuse_cluster
from dupr_tf.training.cluster_link import Link, verdict
from dupr_tf.training.cluster_wire import HELLO
from dupr_tf.training.run import check_shared, record_cluster
from dupr_tf.training.same_run import program_facts
from dupr_tf.training.worker_reports import Stragglers
from tests.training.cluster import free_ports, tf_config

TWO = {"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": 1}}


def environment(**changes):
    return {"TF_CONFIG": json.dumps({**TWO, **changes})}


# ---- TF_CONFIG ----


def test_a_cluster_is_read():
    cluster = read_cluster(environment())
    assert (cluster.addresses, cluster.index, cluster.chief) == (("a:1", "b:2"), 1, False)
    assert cluster.called(0) == "worker 0 (a:1, the chief)" and cluster.host_and_port(1) == ("b", 2)


def test_a_task_called_chief_comes_first():
    jobs = {"worker": ["b:2", "[::1]:3"], "chief": ["a:1"]}
    assert read_cluster(environment(cluster=jobs, task={"type": "chief", "index": 0})).index == 0
    cluster = read_cluster(environment(cluster=jobs, task={"type": "worker", "index": "1"}))
    assert (cluster.addresses, cluster.index) == (("a:1", "b:2", "[::1]:3"), 2)
    assert cluster.host_and_port(2) == ("::1", 3)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{worker: a", "Expected JSON, received {worker: a"),
        ("[]", "Expected a cluster in it"),
        ('{"task": {"type": "worker", "index": 0}}', "Expected a cluster in it"),
        (json.dumps({"cluster": {}}), "Expected a cluster in it"),
        (json.dumps({**TWO, "task": {"type": "worker", "index": 2}}), "task index from 0 to 1 for worker, received 2"),
        (json.dumps({**TWO, "task": {"type": "worker", "index": -1}}), "task index from 0 to 1"),
        (json.dumps({**TWO, "task": {"type": "worker", "index": True}}), "task index from 0 to 1"),
        (json.dumps({**TWO, "task": {"type": "evaluator", "index": 0}}), "received 'evaluator'"),
        (json.dumps({**TWO, "task": "worker"}), "Expected a task with type and index"),
        (json.dumps({"cluster": TWO["cluster"]}), "Expected a task with type and index"),
        (json.dumps({**TWO, "cluster": {"worker": ["a:1"], "ps": ["b:2"]}}), "received 'ps'"),
        (json.dumps({**TWO, "cluster": {"worker": ["a:1"], "evaluator": ["b:2"]}}), "received 'evaluator'"),
        (json.dumps({**TWO, "cluster": {"worker": "a:1"}}), "a list of addresses for worker"),
        (json.dumps({**TWO, "cluster": {"worker": ["a"]}}), "addresses as host:port, received 'a'"),
        (json.dumps({**TWO, "cluster": {"worker": ["a:99999"]}}), "addresses as host:port"),
        (json.dumps({**TWO, "cluster": {"worker": ["a:1", "a:1"]}}), "each address once, received a:1"),
        (json.dumps({**TWO, "cluster": {"worker": ["a:1"], "chief": ["b:1", "c:1"]}}), "Expected one chief"),
    ],
)
def test_malformed_tf_config_is_refused_in_one_line(text, words):
    with pytest.raises(UserError) as error:
        read_cluster({"TF_CONFIG": text})
    assert error.value.fields == ("TF_CONFIG",) and words in error.value.problem and "TF_CONFIG=" in error.value.fix
    assert len(str(error.value).splitlines()) == 1


def test_command_line_refuses_malformed_tf_config(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("TF_CONFIG", "{")
    (tmp_path / "c.yaml").write_text("train: {epochs: 1}")
    (tmp_path / "a.jpg").write_bytes(b"")
    command = ["pretrain", str(tmp_path / "c.yaml"), "--data", str(tmp_path), "--output", str(tmp_path / "run")]
    assert main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("dupr-tf: error: TF_CONFIG: ")
    monkeypatch.delenv("TF_CONFIG")
    assert main([*command, "--train.strategy", "multi_worker"]) == 2
    assert capsys.readouterr().err.startswith("dupr-tf: error: train.strategy: ")


@pytest.mark.parametrize(
    "command",
    [
        ["finetune", "c.yaml", "--weights", "random", "--data", ".", "--output", "run"],
        ["evaluate", "run/detector.keras", "--data", "."],
        ["probe", "knn", "--weights", "random", "--data", "."],
    ],
)
def test_what_one_machine_does_is_not_started_on_several(command, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TF_CONFIG", environment()["TF_CONFIG"])
    (tmp_path / "c.yaml").write_text("train: {epochs: 1}")
    assert main(command) == 2
    assert capsys.readouterr().err.count("error: TF_CONFIG: ") == 1


def test_the_strategy_decides_whether_tf_config_is_looked_at():
    of = {name: parse_config({"train": {"strategy": name}}) for name in ("auto", "one", "mirrored", "multi_worker")}
    found = {name: cluster_of(config, environment()) for name, config in of.items()}
    assert {name for name, cluster in found.items() if cluster} == {"auto", "multi_worker"}
    single = environment(cluster={"worker": ["a:1"]}, task={"type": "worker", "index": 0})
    assert cluster_of(of["auto"], {}) is None and cluster_of(of["auto"], single) is None
    with pytest.raises(UserError) as error:
        refuse_cluster(environment())
    assert error.value.field == "TF_CONFIG"
    refuse_cluster(single)


def test_another_version_of_keras_is_refused():
    with pytest.raises(UserError) as error:
        check_keras("3.12.1")
    assert error.value.field == "keras" and "3.15.x" in error.value.problem and "3.12.1" in error.value.problem
    check_keras("3.15.9")


# ---- meeting and agreeing ----


def links(count=2, worker_timeout=20.0, start_timeout=10.0):
    ports = free_ports(count)
    return [
        Link(Cluster(tuple(f"127.0.0.1:{p}" for p in ports), i), worker_timeout, start_timeout) for i in range(count)
    ]


def together(members, work):
    """What `work(link)` returned, or the exception, of each link."""

    def run(link):
        try:
            with link:
                return work(link)
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(members)) as pool:
        return list(pool.map(run, members))


def test_workers_meet_agree_and_leave():
    def work(link):
        link.agree({"a": "1"})
        return link.agree({}, {"step": 7} if link.chief else None)

    assert together(links(3), work) == [{"step": 7}] * 3


def test_what_differs_is_named_with_the_worker():
    members = links(3)
    results = together(members, lambda link: link.agree({"train.epochs": str(10 + (link.index == 2)), "a": "1"}))
    for error in results:
        assert isinstance(error, UserError)
        (line,) = str(error).splitlines()
        assert line.startswith("train.epochs: ")
        assert "11 on worker 2 (127.0.0.1:" in line and "10 on the chief" in line


def test_an_unreachable_chief_is_named_with_its_address():
    link = links(2, start_timeout=0.5)[1]
    begun = time.monotonic()
    with pytest.raises(UserError, match="Connection refused") as caught, link:
        pass
    assert f"worker 0 ({link.cluster.addresses[0]}, the chief)" in str(caught.value)
    assert "within 0.5 s" in str(caught.value) and time.monotonic() - begun < 3


def test_workers_that_do_not_come_are_named():
    chief, second, third = links(3, start_timeout=1.0)
    error, told = together([chief, third], lambda link: link.agree({}))
    assert second.cluster.called(1) in str(error)
    assert isinstance(told, UserError) and str(told) == str(error)


@pytest.mark.parametrize("index", [0, 1])
def test_a_port_in_use_is_told_to_all(index):
    members = links(2, start_timeout=1.0)
    with socket.create_server(("", members[index].cluster.host_and_port(index)[1])):
        results = together(members, lambda link: link.agree({}))
    assert all(isinstance(error, UserError) for error in results)
    assert "Address already in use" in str(results[index])
    if index == 1:
        assert "worker 1" in str(results[0]) and "Address already in use" in str(results[0])


def test_a_task_index_that_comes_twice_is_refused():
    chief, second, _ = links(3)
    twin = Link(Cluster((*chief.cluster.addresses[:1], *(f"127.0.0.1:{p}" for p in free_ports(2))), 1), 20, 10)
    results = together([chief, second, twin], lambda link: link.agree({}))
    assert "received 1 twice" in str(results[0])
    assert all(isinstance(error, UserError) for error in results)


def test_clusters_of_other_sizes_are_refused():
    chief, second = links(2)
    larger = Link(Cluster((*second.cluster.addresses, "127.0.0.1:1"), 1), 20, 10)
    results = together([chief, larger], lambda link: link.agree({}))
    assert all("received 3 workers on worker 1 and 2 on the chief" in str(error) for error in results)


def test_other_programs_that_connect_are_passed_over():
    members = links(2)

    def knock():
        for content in (b"GET / HTTP/1.1\r\n\r\n", b"[]\n", b'{"hello": "x", "index": 1}\n', b"\xff\xfe\n"):
            with knocking(members[0]) as opened:
                opened.sendall(content)

    def work(link):
        return link.agree({}, {"fine": True})

    with ThreadPoolExecutor(2) as pool:
        chief = pool.submit(together, members[:1], work)
        knock()
        assert together(members[1:], work) == [{"fine": True}]
        assert chief.result() == [{"fine": True}]


# ---- ends ----


def test_a_worker_that_fails_ends_the_others_in_its_words():
    def work(link):
        if link.index == 2:
            raise UserError("data.root", "There are no images.")
        return link.agree({})

    chief, second, third = together(links(3), work)
    assert third.fields == ("data.root",)
    for error in (chief, second):
        assert isinstance(error, UserError)
        assert str(error).startswith("worker 2 (127.0.0.1:") and str(error).endswith(f"): {third}")


@pytest.mark.parametrize(("leaves", "why"), [(True, "its connection was closed"), (False, "no sign of life for 1 s")])
def test_a_worker_that_goes_or_hangs_is_named(leaves, why):
    chief, second = links(2, worker_timeout=1.0)
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(together, [chief], lambda link: link.agree({}))
        with knocking(chief) as opened:
            opened.sendall(json.dumps({"hello": HELLO, "index": 1, "workers": 2}).encode() + b"\n")
            opened.recv(100)
            if not leaves:
                result.result()
        (error,) = result.result()
    assert isinstance(error, WorkerLost) and error.code == WorkerLost.code
    assert f"{second.cluster.called(1)} is gone: {why}" in str(error)


def knocking(link):
    """A socket connected to a link's port, once it listens."""
    for _ in range(100):
        try:
            return socket.create_connection(("127.0.0.1", link.cluster.host_and_port(link.index)[1]))
        except ConnectionRefusedError:
            time.sleep(0.02)
    raise AssertionError("nothing listens")


WORKER = """
import sys, time
from dupr_tf.errors import RunInterrupted
from dupr_tf.training.cluster import read_cluster
from dupr_tf.training.cluster_link import Link
import os
with Link(read_cluster(os.environ), 2.0, float(sys.argv[1])) as link:
    link.start_server()
    print("ready", flush=True)
    if len(sys.argv) > 2 and link.chief:
        time.sleep(0.5)
        raise RunInterrupted(15, 7)
    while True:
        time.sleep(0.05)
"""


def processes(count, *arguments):
    ports, started = free_ports(count), []
    for index in range(count):
        env = {**os.environ, "TF_CONFIG": tf_config(ports, index)}
        command = [sys.executable, "-c", WORKER, *arguments]
        started.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    return started, ports


@pytest.mark.parametrize(
    ("how", "killed"),
    [
        (signal.SIGKILL, 0),
        (signal.SIGSTOP, 1),
        pytest.param(signal.SIGKILL, 1, marks=pytest.mark.slow),
        pytest.param(signal.SIGSTOP, 0, marks=pytest.mark.slow),
    ],
)
def test_the_end_of_one_process_ends_the_others_whatever_they_wait_for(how, killed):
    started, ports = processes(3, "60")
    try:
        for process in started:
            assert process.stdout.readline() == "ready\n"
        begun = time.monotonic()
        os.kill(started[killed].pid, how)
        others = [process for process in started if process is not started[killed]]
        assert [process.wait(20) for process in others] == [WorkerLost.code, WorkerLost.code]
        assert time.monotonic() - begun < (3 if how == signal.SIGKILL else 8)
        for process in others:
            (line,) = process.stderr.read().splitlines()
            assert line.startswith(f"dupr-tf: error: worker {killed} (127.0.0.1:{ports[killed]}")
            assert "is gone" in line and "the same commands again" in line
    finally:
        for process in started:
            process.kill()
            process.communicate()


def test_where_no_step_is_done_the_run_ends():
    started, _ = processes(2, "2")
    for process in started:
        _, error = process.communicate(timeout=20)
        assert process.returncode == WorkerLost.code and "no step was done within 2 s" in error


def test_a_signal_of_the_chief_ends_all_alike():
    started, _ = processes(2, "60", "signal")
    for process in started:
        _, error = process.communicate(timeout=20)
        assert process.returncode == 143
        assert error.splitlines() == ["dupr-tf: stopped by SIGTERM after step 7, which is saved"]


def test_what_ended_a_run_has_an_exit_code(capsys):
    assert verdict(RunInterrupted(2, 5))[0] == 130
    assert verdict(RunFailed("full")) == (1, "full")
    assert verdict(WorkerLost("gone")) == (WorkerLost.code, "gone")
    assert verdict(UserError("x", "It is wrong."))[0] == 2
    assert verdict(ValueError("a defect")) == (1, "ValueError: a defect")
    assert "a defect" in capsys.readouterr().err  # with its traceback


# ---- the same run ----


def test_config_code_and_versions_are_compared_and_the_place_of_the_images_is_not(monkeypatch):
    cluster = Cluster(("a:1", "b:2"), 0)
    config = parse_config({"data": {"root": "/x"}, "train": {"epochs": 3}})
    facts = program_facts(config, cluster, 1)
    assert facts == program_facts(parse_config({"data": {"root": "/y"}, "train": {"epochs": 3}}), cluster, 1)
    other = program_facts(parse_config({"train": {"epochs": 4}}), cluster, 2)
    assert {name for name in facts if facts[name] != other[name]} == {"train.epochs", "devices of a worker"}
    assert facts["version of keras"] and len(facts["source code"]) == 16
    monkeypatch.setattr("dupr_tf.training.same_run.source_digest", lambda: "edited")
    edited = program_facts(config, cluster, 1)
    assert {name for name in facts if facts[name] != edited[name]} == {"source code"}


def test_a_folder_that_is_not_shared_is_named(tmp_path):
    cluster = Cluster(("a:1", "b:2"), 1)
    token = record_cluster(tmp_path / "run", cluster)
    check_shared(tmp_path / "run", cluster, token)
    for folder, expected in ((tmp_path / "elsewhere", token), (tmp_path / "run", "of another start")):
        with pytest.raises(UserError) as error:
            check_shared(folder, cluster, expected, patience=0.3)
        assert error.value.field == "--output" and "worker 1 (b:2)" in error.value.problem


def test_the_straggler_is_named_once(caplog):
    stragglers = Stragglers(lambda index: f"worker {index}", 3)
    for step in (20, 40):
        for index, seconds in enumerate((0.1, 0.31, 0.12)):
            stragglers.note(index, step, seconds)
    assert [record.getMessage()[:29] for record in caplog.records] == ["worker 1 is slow: at step 20 "]
    assert "0.310 s" in caplog.text and "0.110 s" in caplog.text
    caplog.clear()
    for step, own in ((60, (0.1, 0.14, 0.1)), (80, (0.001, 0.003, 0.001))):
        for index, seconds in enumerate(own):
            stragglers.note(index, step, seconds)
    assert not caplog.records


STUCK = """
import socket, sys, time
from dupr_tf.training.cluster_guard import Guard
ours, theirs = socket.socketpair()
with Guard({"worker 1 (b:2)": ours}, float(sys.argv[1])):
    if sys.argv[2] == "leaves":
        theirs.close()
    time.sleep(60 if sys.argv[2] != "meets" else 0.2)
print("met")
"""


@pytest.mark.parametrize(
    ("seconds", "what", "told"),
    [
        ("40", "leaves", "worker 1 (b:2) is gone: it ended while TensorFlow's servers met"),
        ("1", "stays", "TensorFlow's servers did not meet within 1 s (train.start_timeout)"),
        ("40", "meets", None),
    ],
)
def test_the_guard_ends_a_worker_that_is_stuck(seconds, what, told):
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", STUCK, seconds, what], capture_output=True, text=True, check=False)
    assert time.monotonic() - start < 40
    if told is None:
        assert (done.returncode, done.stdout, done.stderr) == (0, "met\n", "")
    else:
        assert done.returncode == -signal.SIGKILL and done.stderr.startswith(f"dupr-tf: error: {told}. ")
