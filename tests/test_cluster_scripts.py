"""Tests of configs/cluster/ with stand-ins for Slurm, Kubernetes, other machines and the training itself."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
CLUSTER = ROOT / "configs" / "cluster"
SSH = CLUSTER / "ssh.sh"
SCRIPTS = [SSH, CLUSTER / "slurm.sbatch"]
JOB = {"SLURM_JOB_NODELIST": "n[09-10]", "SLURM_NTASKS": "2", "SLURM_JOB_ID": "3"}
ARGUMENTS = ["configs/a b.yaml", "--data", "it's $HOME", "--output", "runs/x"]

# Notes its arguments and environment. FAIL_INDEX names a worker that fails while the others wait. KILLED_INDEX names
# one that is killed, which the others notice.
DUPR_TF = """#!/bin/bash
index=$(sed 's/.*"index": //; s/}.*//' <<< "$TF_CONFIG")
printf '%s\\0' "$PWD" "$TF_CONFIG" "$@" > "$NOTES/$index"
echo "worker $index"
if [[ ${FAIL_INDEX:-} == "$index" ]]; then exit 7; fi
if [[ ${KILLED_INDEX:-} == "$index" ]]; then kill -9 $$; fi
if [[ -n ${KILLED_INDEX:-} ]]; then sleep 2; exit 75; fi
if [[ -n ${FAIL_INDEX:-} ]]; then exec sleep 60; fi
"""
STAND_IN_SSH = """#!/bin/bash
while [[ $1 == -* ]]; do if [[ $1 == -o ]]; then shift; fi; shift; done
echo "to $1"
exec bash -c "$2"
"""
STAND_IN_SCONTROL = """#!/bin/bash
[[ $* == "show hostnames n[09-10]" ]] || exit 1
printf 'n09\\nn10\\n'
"""
STAND_IN_SRUN = """#!/bin/bash
while [[ $1 == -* ]]; do shift; done
for SLURM_PROCID in 0 1; do
  export SLURM_PROCID SLURM_NODEID=$SLURM_PROCID
  "$@" || exit
done
"""


@pytest.fixture
def stage(tmp_path):
    """Returns (environment with stand-ins first on its PATH, folder of their notes)."""
    programs, notes = tmp_path / "bin", tmp_path / "notes"
    programs.mkdir()
    notes.mkdir()
    stand_ins = {"dupr-tf": DUPR_TF, "ssh": STAND_IN_SSH, "srun": STAND_IN_SRUN, "scontrol": STAND_IN_SCONTROL}
    for name, text in stand_ins.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "NOTES": str(notes), "PYTHONPATH": str(ROOT)}, notes


def noted(notes, index):
    """Returns the (folder, TF_CONFIG, arguments) that a worker was started with."""
    folder, config, *arguments = (notes / str(index)).read_text().split("\0")[:-1]
    return folder, json.loads(config), arguments


def run(command, environment, folder=ROOT):
    return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=60)


def over_ssh(hosts, tmp_path, environment, *arguments):
    (tmp_path / "hosts").write_text(hosts)
    return run([SSH, tmp_path / "hosts", *(arguments or ARGUMENTS)], environment, tmp_path)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_bash_reads_the_scripts(script):
    assert run(["bash", "-n", script], os.environ).stderr == ""


@pytest.mark.parametrize(
    "file", [*SCRIPTS, CLUSTER / "kubernetes.yaml", ROOT / "Dockerfile"], ids=lambda path: path.name
)
def test_headers_state_what_was_not_run(file):
    head = "\n".join(file.read_text().splitlines()[:6])
    assert "ot run here: no" in head or "Not run between machines: none were at hand" in head
    assert "# Command: " in head


def test_ssh_starts_the_same_command_on_every_worker(stage, tmp_path):
    environment, notes = stage
    done = over_ssh("# two\none.example\n\n  two:70  # other port\n", tmp_path, environment)
    assert done.returncode == 0, done.stderr
    for index in (0, 1):
        folder, config, arguments = noted(notes, index)
        assert folder == str(tmp_path) and arguments == ["pretrain", *ARGUMENTS]
        assert config == {
            "cluster": {"worker": ["one.example:2222", "two:70"]}, "task": {"type": "worker", "index": index},
        }  # fmt: skip
    assert "[0] to one.example" in done.stdout and "[1] to two" in done.stdout and "[1] worker 1" in done.stdout


def test_ssh_ends_the_other_workers_after_one_failed(stage, tmp_path):
    environment, _ = stage
    start = time.monotonic()
    done = over_ssh("a\nb\nc\n", tmp_path, {**environment, "FAIL_INDEX": "1", "DUPR_GRACE": "1"})
    assert done.returncode == 7 and "a worker ended with exit code 7" in done.stderr
    assert time.monotonic() - start < 30  # the others would have slept 60 s


def test_ssh_exits_with_75_after_a_killed_worker(stage, tmp_path):
    done = over_ssh("a\nb\n", tmp_path, {**stage[0], "KILLED_INDEX": "0"})
    assert done.returncode == 75 and "a worker ended with exit code 137" in done.stderr


def test_ssh_stops_all_on_a_signal(stage, tmp_path):
    environment, notes = stage
    (tmp_path / "hosts").write_text("a\nb\n")
    command = [SSH, tmp_path / "hosts", *ARGUMENTS]
    process = subprocess.Popen(command, env={**environment, "FAIL_INDEX": "none"}, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while len(list(notes.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 143


@pytest.mark.parametrize("hosts, what", [
    ("", "expected hosts in"),
    ("# none\n", "expected hosts in"),
    ("a\na\n", "received a:2222 twice"),
    ("a;reboot\n", "expected host or host:port, received a;reboot"),
    ("-oProxyCommand=x\n", "expected host or host:port"),
    ("a:b\n", "expected host or host:port"),
    ("a b\n", "expected host or host:port"),
])  # fmt: skip
def test_ssh_refuses_wrong_hosts(stage, tmp_path, hosts, what):
    environment, notes = stage
    done = over_ssh(hosts, tmp_path, environment)
    assert done.returncode == 2 and what in done.stderr and len(done.stderr.splitlines()) == 1
    assert not list(notes.iterdir())


def test_ssh_refuses_too_few_arguments_and_a_missing_file(stage, tmp_path):
    environment, _ = stage
    for arguments in ([], ["hosts"], [tmp_path / "none", "config.yaml"]):
        done = run([SSH, *arguments], environment)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1


def test_slurm_starts_the_same_command_in_every_task(stage, tmp_path):
    environment, notes = stage
    done = run(["bash", CLUSTER / "slurm.sbatch", *ARGUMENTS], {**environment, **JOB}, tmp_path)
    assert done.returncode == 0, done.stderr
    for index in (0, 1):
        _, config, arguments = noted(notes, index)
        assert arguments == ["pretrain", *ARGUMENTS]
        assert config["cluster"]["worker"] == ["n09:15024", "n10:15024"] and config["task"]["index"] == index


def test_slurm_refuses_malformed_job_variables(stage):
    environment, notes = stage
    for changes in ({"SLURM_JOB_NODELIST": "n[9-"}, {"SLURM_NTASKS": "4"}):
        done = run(["bash", CLUSTER / "slurm.sbatch", *ARGUMENTS], {**environment, **JOB, **changes})
        assert done.returncode in (1, 2) and not list(notes.iterdir())
    assert run(["bash", CLUSTER / "slurm.sbatch"], environment).returncode == 2


def test_slurm_options_start_one_worker_per_node():
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)=(\S+)$", (CLUSTER / "slurm.sbatch").read_text(), re.M))
    assert options["ntasks-per-node"] == "1" and options["signal"].startswith("TERM@")
    assert 8 % (int(options["nodes"]) * int(options["gpus-per-node"])) == 0  # groups of the paper's setting


@pytest.fixture(scope="module")
def manifest():
    service, job = yaml.safe_load_all((CLUSTER / "kubernetes.yaml").read_text())
    return service, job, job["spec"]["template"]["spec"], job["spec"]["template"]["spec"]["containers"][0]


def test_manifest_is_consistent(manifest):
    service, job, pod, container = manifest
    variables = {entry["name"]: entry["value"] for entry in container["env"]}
    assert (service["kind"], job["kind"], job["spec"]["completionMode"]) == ("Service", "Job", "Indexed")
    assert service["spec"]["clusterIP"] == "None"  # headless service
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert pod["subdomain"] == service["metadata"]["name"] == variables["DUPR_SERVICE"]
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == int(variables["DUPR_REPLICAS"])
    assert service["spec"]["ports"][0]["port"] == container["ports"][0]["containerPort"] == 2222
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    assert 8 % (job["spec"]["completions"] * container["resources"]["limits"]["nvidia.com/gpu"]) == 0
    name, tag = container["image"].split(":")
    assert f"docker build -t {name}:{tag} ." in (ROOT / "Dockerfile").read_text()


def test_container_command_finds_its_task_index(stage, manifest):
    environment, notes = stage
    _, job, _, container = manifest
    pod = {entry["name"]: entry["value"] for entry in container["env"]}
    pod |= {"HOSTNAME": f"{job['metadata']['name']}-1", "JOB_COMPLETION_INDEX": "1"}
    done = run(container["command"], {**environment, **pod})
    assert done.returncode == 0, done.stderr
    _, config, arguments = noted(notes, 1)
    assert config == {"cluster": {"worker": ["dupr-0.dupr:2222", "dupr-1.dupr:2222"]},
                      "task": {"type": "worker", "index": 1}}  # fmt: skip
    assert arguments[0] == "pretrain" and (ROOT / arguments[1].removeprefix("/app/")).is_file()


def test_container_copies_existing_files_and_names_no_registry():
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    (base,) = (line for line in lines if line.startswith("FROM "))
    assert base == "FROM python:3.11-slim"
    copied = [name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]]
    assert all((ROOT / name).exists() for name in copied)
    pinned = re.search(r"^tensorflow-cpu==([\d.]+)", (ROOT / "requirements.txt").read_text(), re.M)[1]
    assert "\n".join(lines).count(f"=={pinned}") == 2  # with GPUs, and without
