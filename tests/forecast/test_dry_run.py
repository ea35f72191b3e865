"""Tests of `pretrain --dry-run`: its report agrees with the run, and it leaves no files."""

import dataclasses
import json

import pytest

from dupr_tf.cli import main
from dupr_tf.config import dump_config, parse_config
from dupr_tf.data.sample import write_sample
from dupr_tf.forecast.dry_run import DryRun, dry_run
from dupr_tf.forecast.printing import count_sections, step_section
from dupr_tf.training.pretrain import build_model


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample")
    write_sample(folder, train=1, val=1, unlabeled=24, seed=3)
    return folder / "unlabeled"


CONFIG = parse_config({
    "data": {"image_size": 32},
    "views": {"min_overlap": 8},
    "model": {"backbone": "resnet18", "width": 0.125, "roi_sizes": [8, 4, 2, 1], "bank_size": 70, "embedding_dim": 16,
              "image_weights": [0, 0, 0, 1], "patch_weights": [0, 0, 1, 0]},  # only two losses, to trace less
    "train": {"batch_size": 8, "micro_batches": 2, "epochs": 5},
})  # fmt: skip


SPEEDS = {"product_speed": 33.3, "copy_speed": 17.7, "usable_cpus": 2, "available_memory": 10**10}


@pytest.fixture(scope="module")
def speeds():
    """Replaces the measured speeds of this machine, which differ between measurements."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SPEEDS.items():
            patch.setattr(f"dupr_tf.forecast.measure.{name}", lambda value=value: value)
        yield


@pytest.fixture(scope="module")
def result(photos, speeds):
    return dry_run(CONFIG, photos)


def words_of(lines):
    return {" ".join(line.split()) for line in lines}


def test_three_commands_forecast_the_same_numbers(result, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    config, written = str(tmp_path / "config.yaml"), tmp_path / "plan.json"
    (tmp_path / "config.yaml").write_text(dump_config(CONFIG))
    assert main(["doctor", config, "--data", str(photos)]) == 0
    doctor = words_of(capsys.readouterr().out.splitlines())
    assert main(["plan", config, "--gpu-type", "cpu", "--images", "24", "--json", str(written)]) == 0
    printed, plan = words_of(capsys.readouterr().out.splitlines()), json.loads(written.read_text())
    forecast = result.forecast
    assert words_of(map(" ".join, forecast.rows())) <= doctor
    assert set(forecast.rows()) <= set(result.rows())
    assert plan["counts"] == json.loads(json.dumps(dataclasses.asdict(forecast.counts)))
    assert plan["step"]["seconds"] == forecast.step.seconds and plan["sizes"][0] == dataclasses.asdict(forecast.size)
    sections = count_sections(forecast.counts) | step_section(forecast.step)
    assert words_of(" ".join(part) for parts in sections.values() for part in parts) <= printed


def test_dry_run_reports_shapes_parameters_and_length(result):
    model = build_model(CONFIG)
    assert result.forecast.counts.levels == {"P4": (2, 2, 32), "P5": (1, 1, 64)}
    assert sum(result.forecast.counts.parameters.values()) == model.query_encoder.count_params()
    assert (result.total_steps, result.batch_size) == (15, 8)
    assert result.hours == pytest.approx(15 * 8 / result.images_per_second / 3600)


def test_dry_run_memory_parts_follow_from_shapes(result):
    assert result.forecast.counts.memory["memory banks"] == 2 * 70 * 16 * 4
    assert result.forecast.counts.memory["views of a batch"] == 8 * 2 * 32 * 32 * 3 * 5
    # For one image, the stem's padding, convolution and ReLU alone hold 38 * 38 * 3 + 2 * 16 * 16 * 8 numbers.
    assert result.forecast.counts.memory["activations of 4 images"] > 4 * 4 * (38 * 38 * 3 + 2 * 16 * 16 * 8)
    assert result.peak_memory > result.forecast.counts.total_memory  # the process also holds TensorFlow


def test_dry_run_measures_real_steps(result):
    assert result.first_step_seconds > 8 / result.images_per_second  # the dry run traces the step
    assert result.input_ms > 0 and result.step_ms > 0 and 0 < result.loss < 100


@pytest.mark.parametrize("input_ms, step_ms, expected", [
    (9.0, 1.0, "reading images decides (90% of the work)"),
    (1.0, 9.0, "the step decides; reading images is 10% of the work"),
])  # fmt: skip
def test_limit_names_the_slower_part(result, input_ms, step_ms, expected):
    changed = DryRun(**{**vars(result), "input_ms": input_ms, "step_ms": step_ms})
    assert changed.limit.startswith(expected)
    assert changed.images_per_second == pytest.approx(100)  # a CPU reads and computes one after the other
    assert dataclasses.replace(changed, gpu=True).images_per_second == pytest.approx(1000 / 9)


@pytest.mark.slow
def test_dry_run_prints_all_and_writes_nothing(photos, tmp_path, capsys):
    config = tmp_path / "config.yaml"
    config.write_text(dump_config(CONFIG))
    assert main(["pretrain", str(config), "--data", str(photos), "--dry-run", "--output", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    for words in ("P5 1×1×64", "memory banks", "images/s", "15 steps of 8 in", "tracing included"):
        assert words in printed
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_pretrain_without_output_is_refused(photos, tmp_path, capsys):
    config = tmp_path / "config.yaml"
    config.write_text(dump_config(CONFIG))
    assert main(["pretrain", str(config), "--data", str(photos)]) == 2
    assert capsys.readouterr().err.startswith("dupr-tf: error: --output: ")
