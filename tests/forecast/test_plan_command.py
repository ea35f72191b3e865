"""Tests of `dupr-tf plan`: what it prints and writes, and every kind of wrong input."""

import json
from pathlib import Path

import pytest

from dupr_tf.cli import main
from dupr_tf.commands.plan import Plan, images_in
from dupr_tf.config import dump_config, parse_config
from dupr_tf.forecast.measure import input_assumptions
from tests.forecast.tiny_config import TINY

SMALL = "configs/dupr_r18_small.yaml"
A_CPU = tuple(part for given in ("peak_tflops=0.03", "memory_gb=16", "memory_gb_s=20", "cores_a_machine=2")
              for part in ("--assume", given))  # fmt: skip


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("plan") / "tiny.yaml"
    path.write_text(dump_config(TINY))
    return str(path)


def refused(capsys, *arguments):
    code = main(["plan", *arguments])
    lines = capsys.readouterr().err.splitlines()
    assert code == 2 and len(lines) == 1 and lines[0].startswith("dupr-tf: error: "), lines
    return lines[0].removeprefix("dupr-tf: error: ")


def test_plan_prints_every_part_and_writes_json(config, capsys, tmp_path):
    written = tmp_path / "plan.json"
    command = ("plan", config, "--gpu-type", "cpu", *A_CPU, "--images", "5k", "--json", str(written))
    assert main(list(command)) == 0
    printed = capsys.readouterr().out
    for words in ("TFLOP", "activations of 4 images", "all-reduced, gradients", "all-gathered, keys", "1,000,000,000",
                  "images/s are needed", "device-hours", "storage of shards", "given with --assume"):  # fmt: skip
        assert words in printed
    plan = json.loads(written.read_text())
    assert [size["images"] for size in plan["sizes"]] == [5000, 10**6, 12 * 10**6, 10**8, 10**9]
    assert all(f"  {name} " in printed for name in plan["assumptions"])
    hours = 2 * 625 * sum(plan["step"]["seconds"].values()) / 3600  # 2 epochs of 625 steps
    assert plan["sizes"][0]["hours"] == pytest.approx(hours)
    assert list(plan["by_devices"]) == ["1", "2"] and plan["error"] is None


@pytest.mark.parametrize("arguments, field, named", [
    ([SMALL, "--gpu-type", "a100-40g"], "--gpu-type", "Did you mean a100-40gb?"),
    ([SMALL, "--gpu-type", "a100"], "--gpu-type", "Choose from t4, v100-32gb, "),
    ([SMALL, "--gpu-type", "abacus"], "--gpu-type", "Choose from t4, v100-32gb, "),
    ([SMALL, "--gpus", "0"], "--gpus", "0"),
    ([SMALL, "--gpus", "3"], "train.micro_batches", "3 devices"),
    ([SMALL, "--images", "12 M"], "--images", "'12 M'"),
    ([SMALL, "--images", "0"], "--images", "'0'"),
    ([SMALL, "--images", "1.5"], "--images", "'1.5'"),
    ([SMALL, "--images", "-3"], "--images", "'-3'"),
    ([SMALL, "--assume", "memory_bg=3"], "--assume", "Did you mean memory_gb?"),
    ([SMALL, "--check"], "--check", "--gpu-type cpu --gpus 1"),
    ([SMALL, "--json", "no/folder/plan.json"], "--json", "no/folder/plan.json"),
    ([SMALL, "--json", "configs"], "--json", "configs"),
    ([SMALL, "--data", "no_such_folder"], "", "no_such_folder"),
    ([SMALL, "--train.epoch", "3"], "train.epoch", "Did you mean train.epochs?"),
    ([SMALL, "--train.precision", "bfloat16", "--gpu-type", "t4"], "train.precision", "t4"),
    (["configs/retinanet_r18_small.yaml"], "detector", "retinanet_r18_small.yaml"),
    (["configs/none.yaml"], "config", "none.yaml"),
])  # fmt: skip
def test_wrong_plan_input_gives_one_line_and_exit_2(capsys, arguments, field, named):
    line = refused(capsys, *arguments)
    assert line.startswith(f"{field}: " if field else "") and named in line


def test_plan_reports_all_mistakes_at_once(capsys):
    wrong = ("--gpus", "0", "--images", "many", "--assume", "x", "--gpu-type", "tpu9")
    assert main(["plan", SMALL, *wrong]) == 2 and len(capsys.readouterr().err.splitlines()) == 4


@pytest.mark.parametrize("text, number", [
    ("1280000", 1280000), ("1.28M", 1280000), ("12M", 12 * 10**6), ("1B", 10**9), ("2k", 2000), (" 7 ", 7),
])  # fmt: skip
def test_images_accepts_units(text, number):
    assert images_in(text) == number


@pytest.mark.slow
def test_check_measures_a_step_and_prints_its_error(config, capsys):
    """docs/scaling.md states the size of the error. For this network of almost no work, it is the step's overhead."""
    assert main(["plan", config, "--gpu-type", "cpu", "--check"]) == 0
    printed = capsys.readouterr().out
    assert "measured here, in seconds of a core: " in printed and "%" in printed.split("error ")[1][:6]


@pytest.mark.slow
def test_input_speed_is_measured_on_images(tmp_path, monkeypatch):
    from dupr_tf.data.images.listing import open_source
    from dupr_tf.data.sample import write_sample

    monkeypatch.setattr("dupr_tf.forecast.measure.SECONDS", 0.5)
    write_sample(tmp_path, train=1, val=1, unlabeled=12, seed=0)
    source = open_source(tmp_path / "unlabeled")[1]
    measured = input_assumptions(source, TINY)
    sizes = [path.stat().st_size for path in (tmp_path / "unlabeled").iterdir()]
    assert measured["bytes_an_image"].value == pytest.approx(sum(sizes) / len(sizes))
    assert 1 < measured["input_images_s_a_core"].value < 1e5


@pytest.mark.parametrize("groups, devices", [(8, 8), (6, 6), (7, 7), (12, 6), (9, 3), (11, 1)])
def test_default_devices_are_the_most_that_share_the_groups(groups, devices):
    config = parse_config({"train": {"batch_size": 1386 * 4, "micro_batches": groups}})
    assert Plan(Path(SMALL))._default_devices(config) == devices
