"""TF_CONFIG from Slurm's and from a pod's variables."""

import json
import os
import shlex
import subprocess
import sys

import pytest

from dupr_tf.cli import main
from dupr_tf.errors import UserError
from dupr_tf.launching.cluster_env import cluster_of

JOB = {
    "SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "node[08-09]", "SLURM_NTASKS": "2", "SLURM_TASKS_PER_NODE": "1(x2)",
    "SLURM_PROCID": "1", "SLURM_NODEID": "1",
}  # fmt: skip
POD = {
    "KUBERNETES_SERVICE_HOST": "10.0.0.1", "HOSTNAME": "dupr-2", "JOB_COMPLETION_INDEX": "2", "DUPR_REPLICAS": "3",
    "DUPR_SERVICE": "dupr",
}  # fmt: skip


def without(environment, *names, **changes):
    return {name: value for name, value in {**environment, **changes}.items() if name not in names}


def test_a_worker_a_node():
    cluster = cluster_of(JOB, port=1234)
    assert (cluster.workers, cluster.index) == (("node08:1234", "node09:1234"), 1)


def test_several_tasks_a_node_have_ports_of_their_own():
    tasks = {"SLURM_NTASKS": "3", "SLURM_TASKS_PER_NODE": "2,1"}
    clusters = [
        cluster_of({**JOB, **tasks, "SLURM_PROCID": str(i), "SLURM_NODEID": str(i // 2)}, port=70) for i in range(3)
    ]
    assert [cluster.index for cluster in clusters] == [0, 1, 2]
    assert {cluster.workers for cluster in clusters} == {("node08:70", "node08:71", "node09:70")}


def test_the_variables_of_a_step_go_before_those_of_the_job():
    step = {"SLURM_STEP_NODELIST": "node09", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2"}
    cluster = cluster_of({**JOB, **step, "SLURM_NODEID": "0"}, port=70)
    assert (cluster.workers, cluster.index) == (("node09:70", "node09:71"), 1)


def test_jobs_on_one_host_get_other_ports_and_all_tasks_of_a_job_the_same():
    ports = {cluster_of({**JOB, "SLURM_JOB_ID": str(job)}).workers[0] for job in (1, 2, 3_000_000)}
    assert len(ports) == 3
    assert cluster_of(JOB).workers == cluster_of({**JOB, "SLURM_PROCID": "0", "SLURM_NODEID": "0"}).workers
    assert all(15_000 <= int(port.split(":")[1]) < 30_000 for port in ports)


def test_tasks_are_shared_equally_where_slurm_does_not_say():
    variables = without(JOB, "SLURM_TASKS_PER_NODE", SLURM_NTASKS="4", SLURM_PROCID="2")
    assert cluster_of(variables, port=70).workers == ("node08:70", "node08:71", "node09:70", "node09:71")


def test_without_tasks_there_is_a_worker_a_node():
    cluster = cluster_of(without(JOB, "SLURM_PROCID", "SLURM_TASKS_PER_NODE", "SLURM_NTASKS"), port=70)
    assert (cluster.workers, cluster.index) == (("node08:70", "node09:70"), 1)


@pytest.mark.parametrize("changes, field, named", [
    ({"SLURM_JOB_NODELIST": "node[08-"}, None, "node[08-"),
    ({"SLURM_PROCID": "2"}, "SLURM_PROCID", "received 2"),
    ({"SLURM_PROCID": "-1"}, "SLURM_PROCID", "'-1'"),
    ({"SLURM_PROCID": "one"}, "SLURM_PROCID", "'one'"),
    ({"SLURM_PROCID": ""}, "SLURM_PROCID", "''"),
    ({"SLURM_NODEID": "0"}, "SLURM_NODEID", "task 1 on node 1, received node 0"),
    ({"SLURM_NODEID": "7"}, "SLURM_NODEID", "received 7"),
    ({"SLURM_TASKS_PER_NODE": "1(x3)"}, "SLURM_TASKS_PER_NODE", "2 nodes"),
    ({"SLURM_TASKS_PER_NODE": "lots"}, None, "'lots'"),
    ({"SLURM_NTASKS": "9"}, "SLURM_TASKS_PER_NODE", "'9' tasks of the job, received 2"),
    ({"SLURM_NTASKS": "many"}, "SLURM_TASKS_PER_NODE", "'many'"),
    ({"SLURM_TASKS_PER_NODE": "", "SLURM_NTASKS": "3"}, "SLURM_NTASKS", "received 3"),
    ({"SLURM_TASKS_PER_NODE": "", "SLURM_NTASKS": "1"}, "SLURM_NTASKS", "received 1"),
    ({"SLURM_JOB_ID": "x"}, "SLURM_JOB_ID", "'x'"),
])  # fmt: skip
def test_contradicting_slurm_variables_are_refused(changes, field, named):
    refused({**JOB, **changes}, field, named)


@pytest.mark.parametrize("port", [0, -1, 65_536])
def test_ports_that_do_not_exist(port):
    refused(JOB, "--port", str(port), port=port)


def test_ports_that_would_run_over():
    refused({**JOB, "SLURM_TASKS_PER_NODE": "1(x2)"} | {"SLURM_NTASKS": "4", "SLURM_TASKS_PER_NODE": "2(x2)",
            "SLURM_NODEID": "0"}, "--port", "65535", port=65_535)  # fmt: skip


def test_a_pod_of_an_indexed_job():
    cluster = cluster_of(POD)
    assert (cluster.workers, cluster.index) == (("dupr-0.dupr:2222", "dupr-1.dupr:2222", "dupr-2.dupr:2222"), 2)


def test_a_pod_of_a_stateful_set_has_its_index_in_its_name_alone():
    cluster = cluster_of(
        without(POD, "JOB_COMPLETION_INDEX", HOSTNAME="pre-train-11"), replicas=12, service="s", port=70
    )
    assert cluster.workers[11] == "pre-train-11.s:70" and cluster.index == 11 and len(cluster.workers) == 12


@pytest.mark.parametrize("changes, field, named", [
    ({"HOSTNAME": "dupr"}, "HOSTNAME", "'dupr'"),
    ({"HOSTNAME": "dupr-x7f2k"}, "HOSTNAME", "'dupr-x7f2k'"),
    ({"HOSTNAME": "$(reboot)-1"}, "HOSTNAME", "'$(reboot)-1'"),
    ({"HOSTNAME": ""}, "HOSTNAME", ""),
    ({"JOB_COMPLETION_INDEX": "1"}, "JOB_COMPLETION_INDEX", "dupr-2"),
    ({"JOB_COMPLETION_INDEX": "two"}, "JOB_COMPLETION_INDEX", "'two'"),
    ({"DUPR_REPLICAS": "2"}, "--replicas", "the 2 replicas"),
    ({"DUPR_REPLICAS": "0"}, "--replicas", "received 0"),
    ({"DUPR_REPLICAS": ""}, "DUPR_REPLICAS", "--replicas"),
    ({"DUPR_REPLICAS": "3.0"}, "DUPR_REPLICAS", "'3.0'"),
    ({"DUPR_SERVICE": ""}, "DUPR_SERVICE", "--service"),
    ({"DUPR_SERVICE": "a b"}, "--service", "'a b'"),
])  # fmt: skip
def test_contradicting_pod_variables_are_refused(changes, field, named):
    refused({**POD, **changes}, field, named)


def test_auto_takes_slurm_before_a_pod_and_refuses_neither():
    assert cluster_of({**POD, **JOB}).workers[0].startswith("node08:")
    assert cluster_of({**POD, **JOB}, "pod").index == 2
    refused({"HOSTNAME": "dupr-2"}, None, "SLURM_JOB_NODELIST")
    refused({}, "SLURM_JOB_NODELIST", "", launcher="slurm")


def refused(environment, field, named, **arguments):
    with pytest.raises(UserError) as error:
        cluster_of(environment, **arguments)
    assert error.value.field == field and named in str(error.value) and error.value.fix
    assert "\n" not in str(error.value)


def test_the_command_prints_what_a_shell_and_tensorflow_read(capsys, monkeypatch):
    for name, value in JOB.items():
        monkeypatch.setenv(name, value)
    assert main(["cluster-env", "--port", "70"]) == 0
    word = shlex.split(capsys.readouterr().out)
    assert word[0] == "export" and word[1].startswith("TF_CONFIG=")
    assert main(["cluster-env", "--port", "70", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(word[1].removeprefix("TF_CONFIG="))
    assert printed == {"cluster": {"worker": ["node08:70", "node09:70"]}, "task": {"type": "worker", "index": 1}}


def test_wrong_input_is_one_line_and_exit_2(capsys, monkeypatch):
    monkeypatch.setattr(os, "environ", {})
    assert main(["cluster-env"]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and len(printed.err.splitlines()) == 1


def test_it_starts_without_tensorflow():
    code = (
        "import sys; from dupr_tf.cli import main; code = main(['cluster-env', '--json']);"
        "print(code, 'tensorflow' in sys.modules, 'keras' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **JOB}, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "0 False False", done.stderr
