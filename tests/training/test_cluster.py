"""Tests of TF_CONFIG, the roll call of the workers, and the facts they compare. They train nothing."""

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from dupr_tf.cli import main
from dupr_tf.config import parse_config
from dupr_tf.errors import RunFailed, UserError, WorkerLost
from dupr_tf.training.cluster import Cluster, check_shared, cluster_of, read_cluster, record_cluster, refuse_cluster
from dupr_tf.training.roll_call import call_roll
from dupr_tf.training.worker_facts import program_facts
from tests.training.cluster import free_ports

TWO = {"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": 1}}


def environment(**changes):
    return {"TF_CONFIG": json.dumps({**TWO, **changes})}


# ---- TF_CONFIG ----


@pytest.mark.parametrize(
    "settings",
    [
        "",
        " ",
        "{}",
        '{"task": {"type": "worker", "index": 0}}',
        '{"cluster": {}, "task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": []}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 0}}',
        '{"cluster": {"master": ["a:1"]}, "environment": "cloud", "task": {"type": "master", "index": 0}}',
    ],
)
def test_cluster_of_at_most_one_machine_trains_alone(settings):
    variables = {"TF_CONFIG": settings}
    assert cluster_of(parse_config({}), variables) is None
    refuse_cluster(variables)


def test_cluster_is_read():
    cluster = read_cluster(environment())
    assert (cluster.addresses, cluster.index, cluster.chief) == (("a:1", "b:2"), 1, False)
    assert cluster.called(0) == "worker 0 (a:1, the chief)" and cluster.host_and_port(1) == ("b", 2)


def test_task_named_chief_comes_first():
    jobs = {"worker": ["b:2", "[::1]:3"], "chief": ["a:1"]}
    assert read_cluster(environment(cluster=jobs, task={"type": "chief", "index": 0})).index == 0
    cluster = read_cluster(environment(cluster=jobs, task={"type": "worker", "index": "1"}))
    assert (cluster.addresses, cluster.index) == (("a:1", "b:2", "[::1]:3"), 2)
    assert cluster.host_and_port(2) == ("::1", 3)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{worker: a", "Expected JSON, received {worker: a"),
        ("[]", "Expected an object with a cluster"),
        ('{"cluster": []}', "Expected an object with a cluster"),
        (json.dumps({**TWO, "task": {"type": "worker", "index": 2}}), "task index from 0 to 1 for worker, received 2"),
        (json.dumps({**TWO, "task": {"type": "worker", "index": -1}}), "task index from 0 to 1"),
        (json.dumps({**TWO, "task": {"type": "worker", "index": True}}), "task index from 0 to 1"),
        (json.dumps({**TWO, "task": {"type": "evaluator", "index": 0}}), "received 'evaluator'"),
        (json.dumps({**TWO, "task": "worker"}), "Expected a task with type and index"),
        (json.dumps({"cluster": TWO["cluster"]}), "Expected a task with type and index"),
        (json.dumps({**TWO, "cluster": {"worker": ["a:1"], "ps": ["b:2"]}}), "received 'ps'"),
        (json.dumps({**TWO, "cluster": {"worker": ["a:1"], "evaluator": ["b:2"]}}), "received 'evaluator'"),
        (json.dumps({**TWO, "cluster": {"worker": "a:1"}}), "a list of addresses for worker"),
        (json.dumps({**TWO, "cluster": {"worker": ["a", "b:2"]}}), "addresses as host:port, received 'a'"),
        (json.dumps({**TWO, "cluster": {"worker": ["a:99999", "b:2"]}}), "addresses as host:port"),
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
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "photos" / "a.jpg")
    command = ["pretrain", str(tmp_path / "c.yaml"), "--data", str(tmp_path / "photos")]
    command += ["--output", str(tmp_path / "run")]
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
def test_single_machine_commands_refuse_several_workers(command, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TF_CONFIG", environment()["TF_CONFIG"])
    (tmp_path / "c.yaml").write_text("train: {epochs: 1}")
    assert main(command) == 2
    assert capsys.readouterr().err.count("error: TF_CONFIG: ") == 1


def test_strategy_decides_if_tf_config_is_read():
    of = {name: parse_config({"train": {"strategy": name}}) for name in ("auto", "one", "mirrored", "multi_worker")}
    found = {name: cluster_of(config, environment()) for name, config in of.items()}
    assert {name for name, cluster in found.items() if cluster} == {"auto", "multi_worker"}
    single = environment(cluster={"worker": ["a:1"]}, task={"type": "worker", "index": 0})
    assert cluster_of(of["auto"], {}) is None and cluster_of(of["auto"], single) is None
    with pytest.raises(UserError) as error:
        refuse_cluster(environment())
    assert error.value.field == "TF_CONFIG"
    refuse_cluster(single)


# ---- the roll call ----


def clusters(count=2):
    addresses = tuple(f"127.0.0.1:{port}" for port in free_ports(count))
    return [Cluster(addresses, index) for index in range(count)]


def call_together(members, seconds=10.0):
    """Returns the indices that each worker met, or its error."""

    def call(cluster):
        try:
            met = call_roll(cluster, seconds)
        except (UserError, RunFailed) as error:
            return error
        for opened in met.values():
            opened.close()
        return sorted(met)

    with ThreadPoolExecutor(len(members)) as pool:
        return list(pool.map(call, members))


def test_roll_call_connects_the_chief_with_all_workers():
    assert call_together(clusters(3)) == [[1, 2], [0], [0]]


def test_missing_chief_is_named_within_the_limit():
    cluster, start = clusters(2)[1], time.monotonic()
    with pytest.raises(WorkerLost) as error:
        call_roll(cluster, 0.5)
    assert cluster.called(0) in str(error.value) and time.monotonic() - start < 3


def test_missing_worker_is_named_by_all_other_workers():
    chief, second, third = clusters(3)
    errors = call_together([chief, third], 1.0)
    assert all(isinstance(error, WorkerLost) and second.called(1) in str(error) for error in errors)


@pytest.mark.parametrize("index", [0, 1])
def test_port_in_use_is_reported(index):
    members = clusters()
    with socket.create_server(("", members[index].host_and_port(index)[1])):
        results = call_together(members, 1.0)
    assert isinstance(results[index], UserError) and members[index].addresses[index] in str(results[index])
    if index == 1:
        assert isinstance(results[0], UserError) and members[1].called(1) in str(results[0])


def test_different_clusters_are_refused_on_all_workers():
    chief, _ = clusters()
    larger = Cluster((*chief.addresses, "127.0.0.1:1"), 1)
    for error in call_together([chief, larger]):
        assert isinstance(error, UserError)
        assert str(error).startswith("TF_CONFIG: ") and "127.0.0.1:1" in str(error) and "worker 1" in str(error)


def test_task_index_used_twice_is_refused():
    chief, _, _ = clusters(3)
    hello = json.dumps({"addresses": chief.addresses, "index": 1}).encode() + b"\n"
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(call_together, [chief])
        with connect(chief) as first, connect(chief) as twin:
            first.sendall(hello)
            twin.sendall(hello)
            code, line = json.loads(twin.makefile().readline())
        assert code == UserError.code and line.startswith("TF_CONFIG: ")
        assert isinstance(result.result()[0], UserError)


def test_roll_call_ignores_other_programs():
    chief, second = clusters()

    def knock():
        for content in (b"GET / HTTP/1.1\r\n\r\n", b"[]\n", b'{"index": "x"}\n', b"\xff\xfe\n"):
            with connect(chief) as opened:
                opened.sendall(content)

    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(call_together, [chief])
        knock()
        assert call_together([second]) == [[0]]
        assert result.result() == [[1]]


def connect(cluster):
    """Returns a socket connected to the chief's port, once the chief listens."""
    for _ in range(100):
        try:
            return socket.create_connection(cluster.host_and_port(0))
        except ConnectionRefusedError:
            time.sleep(0.02)
    raise AssertionError("nothing listens")


# ---- comparing the workers' runs ----


def test_config_code_and_versions_are_compared_without_paths(monkeypatch):
    cluster = Cluster(("a:1", "b:2"), 0)
    config = parse_config({"data": {"root": "/x"}, "train": {"epochs": 3}})
    facts = program_facts(config, cluster, 1)
    assert facts == program_facts(parse_config({"data": {"root": "/y"}, "train": {"epochs": 3}}), cluster, 1)
    other = program_facts(parse_config({"train": {"epochs": 4}}), cluster, 2)
    assert {name for name in facts if facts[name] != other[name]} == {"train.epochs", "devices of a worker"}
    assert facts["version of keras"] and len(facts["source code"]) == 16
    monkeypatch.setattr("dupr_tf.training.worker_facts.source_digest", lambda: "edited")
    edited = program_facts(config, cluster, 1)
    assert {name for name in facts if facts[name] != edited[name]} == {"source code"}


def test_unshared_run_folder_is_named(tmp_path):
    cluster = Cluster(("a:1", "b:2"), 1)
    token = record_cluster(tmp_path / "run", cluster)
    check_shared(tmp_path / "run", cluster, token)
    for folder, expected in ((tmp_path / "elsewhere", token), (tmp_path / "run", "of another start")):
        with pytest.raises(UserError) as error:
            check_shared(folder, cluster, expected, patience=0.3)
        assert error.value.field == "--output" and "worker 1 (b:2)" in error.value.problem
