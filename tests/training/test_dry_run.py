"""`pretrain --dry-run`: it tells the truth about the run, and leaves nothing."""

import pytest

from dupr_tf.cli import main
from dupr_tf.config import dump_config, parse_config
from dupr_tf.data.sample import write_sample
from dupr_tf.training.dry_run import DryRun, dry_run
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
              "image_weights": [0, 0, 0, 1], "patch_weights": [0, 0, 1, 0]},  # two losses: less to trace
    "train": {"batch_size": 8, "micro_batches": 2, "epochs": 5},
})  # fmt: skip


@pytest.fixture(scope="module")
def result(photos):
    return dry_run(CONFIG, photos)


def test_shapes_parameters_and_the_length_of_the_run(result):
    model = build_model(CONFIG)
    assert result.levels == {"P4": (2, 2, 32), "P5": (1, 1, 64)}
    assert sum(result.parameters.values()) == model.query_encoder.count_params()
    assert (result.total_steps, result.batch_size) == (15, 8)
    assert result.hours == pytest.approx(15 * 8 / result.images_per_second / 3600)


def test_memory_by_part(result):
    assert result.memory["memory banks"] == 2 * 70 * 16 * 4
    assert result.memory["views of a batch"] == 8 * 2 * 32 * 32 * 3 * 5
    # Of one image: the stem's padding, convolution and ReLU alone hold 38 * 38 * 3 + 2 * 16 * 16 * 8 numbers.
    assert result.memory["activations of 4 images"] > 4 * 4 * (38 * 38 * 3 + 2 * 16 * 16 * 8)
    assert result.measured_memory > sum(result.memory.values())  # the process holds TensorFlow as well


def test_times_are_of_real_steps(result):
    assert result.first_step_seconds > 8 / result.images_per_second  # it traces
    assert result.input_ms > 0 and result.step_ms > 0 and 0 < result.loss < 100


@pytest.mark.parametrize("input_ms, step_ms, expected", [
    (9.0, 1.0, "reading images decides (90% of the work)"),
    (1.0, 9.0, "the step decides; reading images is 10% of the work"),
])  # fmt: skip
def test_it_says_what_decides(result, input_ms, step_ms, expected):
    changed = DryRun(**{**vars(result), "input_ms": input_ms, "step_ms": step_ms})
    assert changed.limit.startswith(expected)


@pytest.mark.slow
def test_the_command_prints_all_of_it_and_writes_nothing(photos, tmp_path, capsys):
    config = tmp_path / "config.yaml"
    config.write_text(dump_config(CONFIG))
    assert main(["pretrain", str(config), "--data", str(photos), "--dry-run", "--output", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    for words in ("P5 1×1×64", "memory banks", "images/s", "15 steps of 8 in", "tracing included"):
        assert words in printed
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_a_run_needs_a_folder(photos, tmp_path, capsys):
    config = tmp_path / "config.yaml"
    config.write_text(dump_config(CONFIG))
    assert main(["pretrain", str(config), "--data", str(photos)]) == 2
    assert capsys.readouterr().err.startswith("dupr-tf: error: --output: ")
