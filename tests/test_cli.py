"""The command line: what is refused, in how many lines, with which exit code."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dupr_tf.cli import main, split_overrides

SMALL = "configs/dupr_r18_small.yaml"


def run(capsys, *arguments):
    """(exit code, lines on standard error) of one command."""
    code = main(list(arguments))
    return code, capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("override, expected", [
    (("--train.epoch", "3"), "train.epoch: unknown key, received 3. Did you mean train.epochs?"),
    (("--data.batch_size", "3"), "data.batch_size: unknown key, received 3. Did you mean train.batch_size?"),
    (("--optimizer.learning_rate", "-1"), "optimizer.learning_rate: input should be greater than 0, received -1"),
    (("--train.epochs", "ten"), "train.epochs: input should be a valid integer"),
    (("--model.backbone", "resnet19"), "Did you mean resnet18?"),
    (("--model.image_weights", "[1, 1]"), "model.image_weights: "),
    (("--train.batch_size=63",), "train.batch_size: expected a multiple of train.micro_batches (4), received 63"),
    (("--train.micro_batches", "64"), "groups of at least 2 images"),
    (("--model.bank_size", "100"), "model.bank_size: expected at least the 256 keys a step puts in, received 100"),
    (("--model.roi_sizes", "[16, 8, 5, 2]"), "model.roi_sizes: expected at most 4 at P4"),
    (("--views.crop_area", "[0.5, 2]"), "crop_area: expected 0.0 < min <= max <= 1.0"),
    (("--model.temperature", ".nan"), "model.temperature: "),
    (("--optimizer.momentum", "!!python/object:os.system {}"), "optimizer.momentum: expected a YAML value"),
])  # fmt: skip
def test_a_wrong_field_is_one_line_and_exit_2(capsys, tmp_path, override, expected):
    (tmp_path / "a.jpg").write_bytes(b"")  # so that the folder is no mistake as well
    code, lines = run(capsys, "pretrain", SMALL, "--data", str(tmp_path), "--output", str(tmp_path / "r"), *override)
    assert code == 2 and len(lines) == 1 and expected in lines[0]
    assert not (tmp_path / "r").exists()


def test_all_mistakes_are_told_at_once(capsys, tmp_path):
    fields = ("--train.seed", "-1", "--model.width", "0", "--x.y=1", "--train.epochs", "[1", "--optimizer.momentum=*a")
    code, lines = run(capsys, "pretrain", SMALL, "--data", str(tmp_path / "nowhere"), *fields)
    about = ("train.seed", "model.width", "x:", "train.epochs", "optimizer.momentum", "nowhere", "--output")
    assert code == 2 and len(lines) == len(about)
    assert all(any(word in line for line in lines) for word in about)


def test_cross_field_mistakes_come_with_those_of_the_command_line(capsys, tmp_path):
    code, lines = run(capsys, "pretrain", SMALL, "--train.batch_size", "63", "--model.bank_size", "9")
    assert code == 2 and [line.split(": ")[2] for line in lines] == [
        "train.batch_size", "model.bank_size", "data.root", "--output",
    ]  # fmt: skip


def test_finetune_tells_all_at_once_too(capsys, tmp_path):
    command = ("finetune", "configs/retinanet_r18_small.yaml", "--weights", "none.keras", "--data", "nowhere")
    code, lines = run(capsys, *command, "--output", str(tmp_path / "r"), "--data.image_size", "100")
    assert code == 2 and len(lines) == 3 and not (tmp_path / "r").exists()


@pytest.mark.parametrize("content, expected", [
    ("model: [1", "expected YAML"),
    ("- a\n- b", "expected sections"),
    ("modle: {}", "Did you mean model?"),
    ("a: &x [1]\nb: *x", "without aliases"),
    ("model: !!python/object/apply:os.system ['true']", "expected YAML"),
    ("model: !!python/name:os.system", "expected YAML"),
    ("a: &a [x,x]\nb: &b [*a,*a,*a]\nc: [*b,*b,*b]", "without aliases"),
    ("model: " + "[" * 5000 + "]" * 5000, "nested more than 16 deep"),
    ("train: {epochs: " + "9" * 5000 + "}", "expected YAML"),
    ("train: {epochs: 1}\ntrain: {epochs: 2}", "train given twice"),
    ("train: {epochs: 1, seed: 2, epochs: 3}", "epochs given twice"),
    ("train: {epochs: 2020-02-31}", "expected YAML"),
    ("train: {epochs: a\0}", "expected YAML"),
])  # fmt: skip
def test_a_wrong_file_is_one_line(capsys, tmp_path, content, expected):
    path = tmp_path / "c.yaml"
    path.write_text(content)
    (tmp_path / "a.jpg").write_bytes(b"")
    code, lines = run(capsys, "pretrain", str(path), "--data", str(tmp_path), "--output", str(tmp_path / "r"))
    assert code == 2 and len(lines) == 1 and expected in lines[0]


def test_a_missing_config_names_the_nearest(capsys, tmp_path):
    code, lines = run(capsys, "pretrain", "configs/dupr_r18_smal.yaml", "--output", str(tmp_path / "r"))
    assert code == 2 and len(lines) == 1 and SMALL in lines[0]


@pytest.mark.parametrize("gpu, warnings", [(False, 1), (True, 0)])
def test_float16_without_a_gpu_is_warned_about_in_one_line(capsys, tmp_path, monkeypatch, gpu, warnings):
    monkeypatch.setattr("dupr_tf.commands.train.has_gpu", lambda: gpu)
    _, lines = run(capsys, "pretrain", SMALL, "--output", str(tmp_path / "r"), "--train.precision", "float16")
    assert sum("warning: train.precision: float16" in line for line in lines) == warnings
    assert "data.root" in lines[-1]


def test_folders_without_images_are_refused(capsys, tmp_path):
    for data in (tmp_path, tmp_path / "nowhere"):
        code, lines = run(capsys, "pretrain", SMALL, "--data", str(data), "--output", str(tmp_path / "r"))
        assert code == 2 and len(lines) == 1 and str(data) in lines[0]


def test_no_data_at_all_is_refused(capsys, tmp_path):
    code, lines = run(capsys, "pretrain", SMALL, "--output", str(tmp_path / "r"))
    assert code == 2 and "--data DIR" in lines[0]


def test_only_broken_images_are_refused(capsys, tmp_path):
    (tmp_path / "1.jpg").write_bytes(b"text")
    code, lines = run(capsys, "pretrain", SMALL, "--data", str(tmp_path), "--output", str(tmp_path / "r"))
    assert code == 2 and "1.jpg" in lines[-1]


def test_commands_without_config_take_no_fields(capsys, tmp_path):
    code, lines = run(capsys, "sample", str(tmp_path), "--train.epochs", "3")
    assert code == 2 and len(lines) == 1


def test_overrides_are_taken_out_of_the_command_line():
    rest, overrides = split_overrides(["pretrain", "a.yaml", "--x.y", "1", "--data", "d.e", "--p.q=[1, 2]", "--help"])
    assert rest == ["pretrain", "a.yaml", "--data", "d.e", "--help"]
    assert overrides == {"x.y": "1", "p.q": "[1, 2]"}


@pytest.mark.parametrize("command", [
    ["pretrain", SMALL, "--data", "."],  # no image there
    ["pretrain", SMALL, "--data", ".", "--train.epochs", "0", "--model.backbone", "vgg"],
    ["pretrain", SMALL, "--train.batch_size", "63", "--data", "nowhere"],
    ["pretrain", "bomb.yaml"],
    ["finetune", "configs/retinanet_r18_small.yaml", "--weights", "random", "--data", "nowhere"],
    ["scan", "nowhere"],
    ["probe", "knn", "--weights", "nowhere", "--data", "nowhere"],
    ["probe", "linear", "--weights", "random", "--data", ".", "--linear.epochs", "0"],
    ["views", SMALL, "--data", ".", "--train.epochs", "0"],
], ids=" ".join)  # fmt: skip
def test_mistakes_are_found_before_tensorflow_loads(tmp_path, command):
    (tmp_path / "bomb.yaml").write_text("a: &a [x]\nb: [*a, *a]")
    (tmp_path / "configs").symlink_to(Path("configs").resolve())
    code = (
        "import sys; from dupr_tf.cli import main\n"
        f"code = main({[*command, *(['--output', 'r'] if command[0] != 'scan' else [])]})\n"
        "sys.exit(10 * code + ('tensorflow' in sys.modules))"
    )
    where = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])}
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=tmp_path, env=where).returncode == 20
