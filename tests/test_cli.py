"""Tests of the command line: what it refuses, in how many lines, and with which exit code."""

import os
import select
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow as tf
from PIL import Image

import dupr_tf
from dupr_tf.cli import INTERRUPTED, main
from dupr_tf.commands import COMMANDS
from dupr_tf.commands.parsing import overview, parse, split_overrides
from dupr_tf.commands.probe import FLAGS
from dupr_tf.config import field_rows, load_config
from dupr_tf.errors import RunFailed, RunInterrupted, UserError, UserErrors, WorkerLost
from dupr_tf.safe_yaml import safe_value
from tests.refusals import refusal

SMALL = "configs/dupr_r18_small.yaml"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Returns a folder with one image, so that the data cause no second error."""
    folder = tmp_path_factory.mktemp("photos")
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    return folder


def run(capsys, *arguments):
    """Runs one command; returns (exit code, lines on standard error)."""
    code = main(list(arguments))
    return code, capsys.readouterr().err.splitlines()


def fields(lines):
    """Returns the field that each printed error names."""
    assert all(line.startswith("dupr-tf: error: ") for line in lines), lines
    return [line.split(": ")[2] for line in lines]


@pytest.mark.parametrize("override, field, named", [
    (("--train.epoch", "3"), "train.epoch", "Did you mean train.epochs?"),
    (("--data.batch_size", "3"), "data.batch_size", "Did you mean train.batch_size?"),
    (("--modle.width", "3"), "modle", "Did you mean model?"),
    (("--optimizer.learning_rate", "-1"), "optimizer.learning_rate", "greater than 0, received -1"),
    (("--train.epochs", "ten"), "train.epochs", "an integer, received 'ten'"),
    (("--train.epochs", "0"), "train.epochs", "at least 1, received 0"),
    (("--train.epochs", "2020-02-31"), "train.epochs", "an integer, received '2020-02-31'"),
    (("--train.seed", "2147483648"), "train.seed", "less than 2,147,483,648"),
    (("--model.backbone", "resnet18s"), "model.backbone", "Did you mean resnet18?"),
        (("--model.backbone", "resnet20"), "model.backbone", "resnet18, resnet34"),
        (("--optimizer.lr", "0.1"), "optimizer.lr", "Did you mean optimizer.learning_rate?"),
        (("--epochs", "3"), "--epochs", "Did you mean --train.epochs?"),
        (("--lr=3",), "--lr", "--optimizer.learning_rate"),
    (("--train.precision", "double"), "train.precision", "float32, bfloat16 or float16"),
    (("--model.image_weights", "[1, 1]"), "model.image_weights", "4 values"),
    (("--model.image_weights", "[1, 1, -1, 1]"), "model.image_weights.2", "-1"),
    (("--train.batch_size=63",), "train.batch_size", "(4), received 63"),
    (("--train.micro_batches", "64"), "train.micro_batches", "32"),
    (("--model.bank_size", "100"), "model.bank_size", "256"),
    (("--model.roi_sizes", "[16, 8, 5, 2]"), "model.roi_sizes", "at most 4 at P4"),
    (("--views.crop_area", "[0.5, 2]"), "views.crop_area", "[0.5, 2]"),
    (("--optimizer.milestone_steps", "[3, 2]"), "optimizer.milestone_steps", "[3, 2]"),
    (("--model.temperature", ".nan"), "model.temperature", "nan"),
    (("--optimizer.momentum", "!!python/object:os.system {}"), "optimizer.momentum", "YAML"),
])  # fmt: skip
def test_wrong_field_is_one_line_and_exit_2(capsys, photos, tmp_path, override, field, named):
    code, lines = run(capsys, "pretrain", SMALL, "--data", str(photos), "--output", str(tmp_path / "r"), *override)
    assert code == 2 and fields(lines) == [field] and named in lines[0]
    assert not (tmp_path / "r").exists()


def test_all_mistakes_are_reported_at_once(capsys, tmp_path):
    wrong = ("--train.seed", "-1", "--model.width", "0", "--x.y=1", "--train.epochs", "[1", "--optimizer.momentum=*a")
    code, lines = run(capsys, "pretrain", SMALL, "--data", str(tmp_path / "nowhere"), *wrong)
    about = {"train.seed", "model.width", "x", "train.epochs", "optimizer.momentum", "--output"}
    assert code == 2 and len(lines) == len(about) + 1
    assert about < set(fields(lines)) and any("nowhere" in line for line in lines)


def test_cross_field_mistakes_are_reported_with_the_others(capsys):
    code, lines = run(capsys, "pretrain", SMALL, "--train.batch_size", "63", "--model.bank_size", "9")
    assert code == 2 and fields(lines) == ["train.batch_size", "model.bank_size", "data.root", "--output"]


def test_finetune_reports_all_mistakes_at_once(capsys, tmp_path):
    command = ("finetune", "configs/retinanet_r18_small.yaml", "--weights", "none.keras", "--data", "nowhere")
    code, lines = run(capsys, *command, "--output", str(tmp_path / "r"), "--data.image_size", "100")
    assert code == 2 and len(lines) == 3 and not (tmp_path / "r").exists()


@pytest.mark.parametrize("content, named", [
    ("model: [1", "expected ',' or ']'"),
    ("- a\n- b", "['a', 'b']"),
    ("a: &x [1]\nb: *x", "aliases"),
    ("model: !!python/object/apply:os.system ['true']", "python/object/apply"),
    ("model: !!python/name:os.system", "python/name"),
    ("a: &a [x,x]\nb: &b [*a,*a,*a]\nc: [*b,*b,*b]", "aliases"),
    ("model: " + "[" * 5000 + "]" * 5000, "16 deep"),
    ("train: {epochs: " + "9" * 5000 + "}", "4300"),
    ("train: {epochs: 1}\ntrain: {epochs: 2}", "train given twice"),
    ("train: {epochs: 1, seed: 2, epochs: 3}", "epochs given twice"),
    ("train: {epochs: a\0}", "special characters"),
])  # fmt: skip
def test_unreadable_config_is_one_line(capsys, photos, tmp_path, content, named):
    path = tmp_path / "c.yaml"
    path.write_text(content)
    code, lines = run(capsys, "pretrain", str(path), "--data", str(photos), "--output", str(tmp_path / "r"))
    assert code == 2 and fields(lines) == ["config"] and named in lines[0] and str(path) in lines[0]


@pytest.mark.parametrize("content", ["train: 3", "modle: {}"])
def test_wrong_section_of_a_config_is_one_line(capsys, photos, tmp_path, content):
    path = tmp_path / "c.yaml"
    path.write_text(content)
    code, lines = run(capsys, "pretrain", str(path), "--data", str(photos), "--output", str(tmp_path / "r"))
    assert code == 2 and fields(lines) == [content.partition(":")[0]]


def test_missing_config_names_the_nearest(capsys, tmp_path):
    code, lines = run(capsys, "pretrain", "configs/dupr_r18_smal.yaml", "--output", str(tmp_path / "r"))
    assert code == 2 and len(lines) == 1 and SMALL in lines[0]


@pytest.mark.parametrize("gpu, warnings", [(False, 1), (True, 0)])
def test_float16_without_a_gpu_is_one_warning(capsys, tmp_path, monkeypatch, gpu, warnings):
    monkeypatch.setattr("dupr_tf.commands.pretrain.has_gpu", lambda: gpu)
    _, lines = run(capsys, "pretrain", SMALL, "--output", str(tmp_path / "r"), "--train.precision", "float16")
    assert sum("warning: train.precision: float16" in line for line in lines) == warnings
    assert fields(lines[warnings:]) == ["data.root"]


def test_folders_without_images_are_refused(capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    for data in (tmp_path / "empty", tmp_path / "nowhere"):
        code, lines = run(capsys, "pretrain", SMALL, "--data", str(data), "--output", str(tmp_path / "r"))
        assert code == 2 and len(lines) == 1 and str(data) in lines[0]


def test_config_without_data_is_refused(capsys, tmp_path):
    code, lines = run(capsys, "pretrain", SMALL, "--output", str(tmp_path / "r"))
    assert code == 2 and fields(lines) == ["data.root"]


def test_only_broken_images_are_refused(capsys, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/1.jpg").write_bytes(b"text")
    code, lines = run(capsys, "pretrain", SMALL, "--data", str(tmp_path / "data"), "--output", str(tmp_path / "r"))
    assert code == 2 and "1.jpg" in lines[-1]


def test_commands_without_config_take_no_fields(capsys, tmp_path):
    code, lines = run(capsys, "sample", str(tmp_path), "--train.epochs", "3")
    assert code == 2 and fields(lines) == ["--train.epochs"]


@pytest.mark.parametrize("words", [["--output", ""], ["--output="], ["--images", "a", ""]])
def test_empty_text_is_no_path(capsys, words):
    code, err = run(capsys, "embed", "w.keras", *words)
    assert code == 2 and len(err) == 1 and "received an empty text" in err[0]


@pytest.mark.parametrize("words", [["--train.epochs", ""], ["--train.epochs="], ["--model.roi_sizes", ""]])
def test_empty_text_is_no_value_of_a_field(capsys, words):
    code, lines = run(capsys, "pretrain", SMALL, "--data", "x", "--output", "y", *words)
    assert code == 2 and fields(lines) == [words[0].rstrip("=")] and "received an empty text" in lines[0]


def test_field_without_a_value_is_refused(capsys):
    code, lines = run(capsys, "pretrain", SMALL, "--train.epochs")
    assert code == 2 and fields(lines) == ["--train.epochs"]


class Failing:
    """A command that ends with a given error."""

    def __init__(self, error):
        self.error = error

    def run(self, overrides):
        raise self.error


@pytest.mark.parametrize("error, code, lines", [
    (UserError("a.b", "It is wrong.", "Mend it."), 2, ["dupr-tf: error: a.b: It is wrong. Mend it."]),
    (UserErrors([UserError("a", "A."), UserError(None, "B.")]), 2, ["dupr-tf: error: a: A.", "dupr-tf: error: B."]),
    (RunFailed("The loss is NaN."), 1, ["dupr-tf: error: The loss is NaN."]),
    (WorkerLost("Worker 1 is gone."), 75, ["dupr-tf: error: Worker 1 is gone."]),
    (RunInterrupted(15, 7), 143, [f"dupr-tf: {RunInterrupted(15, 7)}"]),
    (KeyboardInterrupt(), 130, [f"dupr-tf: {INTERRUPTED}"]),
    (KeyboardInterrupt("\n"), 130, [f"dupr-tf: {INTERRUPTED}"]),
], ids=lambda value: type(value).__name__)  # fmt: skip
def test_exit_code_follows_from_the_class_of_the_error(capsys, monkeypatch, error, code, lines):
    monkeypatch.setattr("dupr_tf.commands.parsing.parse", lambda _: (Failing(error), {}))
    assert run(capsys, "fields") == (code, lines)


@pytest.mark.parametrize("error", [
    MemoryError(), RuntimeError("can't start new thread"), tf.errors.ResourceExhaustedError(None, None, "OOM\nhere"),
], ids=lambda error: type(error).__name__)  # fmt: skip
def test_lack_of_memory_is_one_line(capsys, monkeypatch, error):
    monkeypatch.setattr("dupr_tf.commands.parsing.parse", lambda _: (Failing(error), {}))
    code, lines = run(capsys, "fields")
    assert code == 1 and len(lines) == 1 and "Use a smaller batch" in lines[0] and type(error).__name__ in lines[0]


@pytest.mark.parametrize("defect", [ValueError("a defect"), KeyError("x"), RuntimeError("y")])
def test_defect_keeps_its_traceback(monkeypatch, defect):
    monkeypatch.setattr("dupr_tf.commands.parsing.parse", lambda _: (Failing(defect), {}))
    with pytest.raises(type(defect)) as error:
        main(["fields"])
    assert error.value is defect


def test_overview_has_one_line_for_each_command():
    lines = overview().splitlines()
    assert [line.split()[0] for line in lines if line.startswith("  ") and line.split()[0] in COMMANDS] == [*COMMANDS]
    assert max(map(len, lines[:-2])) < 80  # the last two are commands to copy


EXAMPLES = {name: command.EXAMPLE for name, command in COMMANDS.items()}
EXAMPLES |= {f"probe {name}": flags.EXAMPLE for name, flags in FLAGS.items()}


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_of_help_is_a_command_with_existing_config(name):
    program, *words = EXAMPLES[name].split()
    command, _ = parse(words)
    configs = [word for word in words if word.startswith("configs/")]
    assert program == "dupr-tf" and type(command) is COMMANDS[words[0]]
    assert " ".join(words).startswith(name) and all(Path(path).is_file() for path in configs)


@pytest.mark.parametrize("name", [*COMMANDS, *(f"probe {name}" for name in FLAGS)])
def test_help_states_every_default_and_ends_with_example(name, capsys):
    with pytest.raises(SystemExit) as end:
        parse([*name.split(), "--help"])
    text = capsys.readouterr().out
    assert (
        end.value.code == 0 and "none:" not in text.lower() and "(default" not in text and "Default: None" not in text
    )
    assert text.rstrip().splitlines()[-1].strip() == EXAMPLES[name]


def process(*words, code="import sys; from dupr_tf.cli import main; sys.exit(main())", **settings):
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        env={**os.environ, "PYTHONPATH": str(Path.cwd()), **settings}, capture_output=True, check=False, timeout=60,
    )  # fmt: skip


def test_ascii_terminal_gets_ascii():
    settings = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for words in (["--help"], ["pretrain", "--help"], ["fields"]):
        done = process(*words, **settings)
        assert (done.returncode, done.stderr) == (0, b"") and done.stdout.isascii()


def test_help_fits_terminal_of_one_column():
    done = process("pretrain", "--help", COLUMNS="1")
    assert done.returncode == 0 and b"dupr-tf pretrain" in done.stdout


def test_closed_stdout_is_no_error(tmp_path):
    code = "import os, sys; os.close(1); sys.stdout = None\nfrom dupr_tf.cli import main; sys.exit(main())"
    done = process("fields", code=code)
    assert (done.returncode, done.stderr) == (0, b"")


def test_module_runs_as_the_command():
    done = subprocess.run([sys.executable, "-m", "dupr_tf", "--version"], capture_output=True, check=False)
    assert done.returncode == 0 and done.stdout.split()[1].decode() == dupr_tf.__version__


def test_row_of_a_table_is_one_line_in_a_pipe():
    lines = process("fields", COLUMNS="80").stdout.decode().splitlines()
    assert [line.split()[0] for line in lines[1:]] == [row[0] for row in field_rows()]


def test_tilde_is_expanded_in_flags_overrides_and_configs(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = tmp_path / "c.yaml"
    config.write_text("data: {root: ~/photos}")
    command, overrides = parse(["pretrain", "~/c.yaml", "--output=~/run", "--weights", "~/w", "--data.root=~/other"])
    assert (command.config, command.output, command.weights) == (config, tmp_path / "run", str(tmp_path / "w"))
    assert load_config(config).data.root == str(tmp_path / "photos")
    assert load_config(config, overrides).data.root == str(tmp_path / "other")
    command, _ = parse(["probe", "matching", "--weights", "random", "~/w", "--data", "~/p"])
    assert (command.which.weights, command.which.data) == (("random", str(tmp_path / "w")), tmp_path / "p")
    assert refusal(parse, ["scan", "~nobody-of-this-name/photos"]).fix


def test_overrides_are_separated_from_the_command_line():
    rest, overrides = split_overrides(["pretrain", "a.yaml", "--x.y", "1", "--data", "d.e", "--p.q=[1, 2]", "--help"])
    assert rest == ["pretrain", "a.yaml", "--data", "d.e", "--help"]
    assert overrides == {"x.y": "1", "p.q": "[1, 2]"}


@pytest.mark.parametrize("words, expected", [
    (["--model.patch_weights", "0", "1", "0.5", "1"], (0, 1, 0.5, 1)),
    (["--model.patch_weights", "0", "1", "0.5", "1", SMALL], (0, 1, 0.5, 1)),
    (["--model.patch_weights", " [0, 1, 0.5, 1]", SMALL], (0, 1, 0.5, 1)),
    (["--model.patch_weights", "- 0\n- 1\n- 0.5\n- 1", SMALL], (0, 1, 0.5, 1)),
    (["--model.patch_weights", "[0, 1, 0.5, 1]", SMALL], (0, 1, 0.5, 1)),
    (["--model.patch_weights=[0, 1, 0.5, 1]", SMALL], (0, 1, 0.5, 1)),
    (["--optimizer.milestones", "8"], (8,)),
    (["--data.class_names", "traffic light", "car, red", "a] #1"], ("traffic light", "car, red", "a] #1")),
    (["--data.class_names", "Null", SMALL], None),
], ids=lambda value: None if isinstance(value, tuple) else " ".join(value or ["none"]))  # fmt: skip
def test_a_field_with_a_list_takes_several_words(words, expected):
    name = words[0].removeprefix("--").partition("=")[0]
    before = [] if SMALL in words else [SMALL]
    command, overrides = parse(["pretrain", *before, *words, "--output", "run"])
    assert command.config == Path(SMALL) and command.output == Path("run") and list(overrides) == [name]
    section, field = name.split(".")
    assert getattr(getattr(load_config(SMALL, overrides), section), field) == expected


def test_a_flag_is_no_value_of_a_field():
    for field in ("data.class_names", "train.epochs"):
        assert (
            "before --output" in refusal(split_overrides, ["pretrain", SMALL, f"--{field}", "--output", "run"]).problem
        )


def test_a_wrong_list_shows_how_to_write_one():
    with pytest.raises(UserError, match=r"optimizer.milestones: Expected a list, such as \[1, 2\], received 8"):
        load_config(SMALL, {"optimizer.milestones": "8"})
    for field, text in (("probing.probes", "[knn, retrieval]"), ("data.class_names", "[apple, pear]")):
        _, overrides = split_overrides([f"--{field}", text, "x.yaml"])
        assert overrides == {field: text}
    _, overrides = split_overrides(["--model.image_weights", "0.1", "4e-1", "0.7", "1", "x.yaml"])
    assert safe_value(overrides["model.image_weights"]) == [0.1, 0.4, 0.7, 1]
    _, overrides = split_overrides(["--model.roi_sizes", "16", "8", "4"])
    with pytest.raises(UserError, match=r"model.roi_sizes: Expected at least 4 values, received \[16, 8, 4\]"):
        load_config(SMALL, overrides)


@pytest.mark.skipif(not hasattr(select, "poll"), reason="Windows has no such pipes")
def test_closed_pipe_ends_the_command_without_a_traceback(tmp_path):
    pack = [sys.executable, "-m", "dupr_tf.cli", "pack"]
    (tmp_path / "data").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / "data" / name)
    subprocess.run([*pack, str(tmp_path / "data"), "--output", str(tmp_path / "out")], check=True, capture_output=True)
    read, write = os.pipe()
    os.close(read)
    run = subprocess.run([*pack, "--list", str(tmp_path / "out")], check=False, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (run.returncode, run.stderr) == (141, b"")
