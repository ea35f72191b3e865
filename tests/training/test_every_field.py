"""Uses a config without any default value: every command passes each field to where it acts."""

import keras
import numpy as np
import pytest

from dupr_tf.cli import main
from dupr_tf.config import Config, load_config, parse_config
from dupr_tf.data.pipeline import view_pairs
from dupr_tf.data.reader import Reader
from dupr_tf.data.sample import write_sample
from dupr_tf.training.callbacks import RunProbes, SaveCheckpoints
from dupr_tf.training.health import CheckBadImages
from dupr_tf.training.metrics_log import MetricsLog
from dupr_tf.training.optimizers import build_optimizer, planned_schedule
from dupr_tf.training.pretrain import build_model, pretrain

FILE = "tests/every_field.yaml"
EXCLUDED = {  # with the reason
    "model.terms",  # instead of the short form
    "optimizer.milestone_steps",  # instead of milestones
    "detector", "linear",  # sections that pretrain does not use
}  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    write_sample(folder, train=1, val=1, unlabeled=24, seed=3)
    return folder / "unlabeled"


@pytest.fixture
def config(photos):
    return load_config(FILE, {"data.root": str(photos), "probing.data": str(photos)})


def fields_of(config):
    return {
        f"{name}.{field}": getattr(section, field)
        for name, section in config
        if section is not None
        for field in type(section).model_fields
    }


def test_no_value_of_the_file_is_a_default():
    ours, defaults = fields_of(load_config(FILE)), fields_of(Config())
    assert {name for name in ours if ours[name] == defaults[name]} <= EXCLUDED
    assert load_config(FILE).pretrain_problems() == []


def assert_model_of(model, config):
    settings = config.model
    image, patch = model.terms
    assert (image.level, image.weight, patch.level, patch.weight) == ("P5", 0.5, "P5", 0.75)
    for term in (image, patch):
        for name in ("embedding_dim", "head", "temperature", "bank_size"):
            assert getattr(term, name) == getattr(settings, name), name
        assert term.bank.keys.shape == (settings.bank_size, settings.embedding_dim)
    assert (patch.size, patch.sampling_ratio) == (settings.roi_sizes[3], settings.sampling_ratio)
    assert (patch.keys_per_image, patch.reduction) == (settings.patch_keys_per_image, settings.patch_reduction)
    assert (model.momentum, model.momentum_schedule, model.total_steps) == (0.95, "cosine", 7)
    assert model.photometric == config.views.photometric
    assert (model.seed, model.micro_batches) == (config.train.seed, config.train.micro_batches)
    assert (model.backbone.architecture, model.backbone.width) == (settings.backbone, settings.width)
    policies = {part.dtype_policy.name for part in (model.backbone, *model.query_encoder.projectors.values())}
    assert policies == {"mixed_bfloat16"} and keras.config.dtype_policy().name == "float32"


def test_model_has_every_field_and_draws_from_the_seed(config):
    model = build_model(config, total_steps=7)
    assert_model_of(model, config)
    first = model.get_weights()
    for a, b in zip(first, build_model(config, total_steps=7).get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    other = config.model_copy(update={"train": config.train.model_copy(update={"seed": 12})})
    assert any((a != b).any() for a, b in zip(first, build_model(other, total_steps=7).get_weights(), strict=True))


def test_optimizer_has_every_field(config):
    optimizer = build_optimizer(config, 24)  # 3 steps an epoch
    assert (optimizer.momentum, optimizer.coupled_decay) == (0.8, 0.001)
    rates = [float(planned_schedule(config, 24)(step)) for step in range(5)]
    assert rates == pytest.approx([0.025, 0.05, 0.05, 0.005, 0.005])


@pytest.mark.parametrize("schedule, held", [("cosine", 1), ("epoch", 3)])
def test_cosine_begins_with_the_warm_up(schedule, held):
    config = parse_config({
        "optimizer": {"learning_rate": 0.1, "schedule": schedule, "warmup_steps": 4},
        "train": {"batch_size": 8, "epochs": 4, "micro_batches": 1},
    })  # fmt: skip
    rate = planned_schedule(config, 24)
    cosine = [0.1 * 0.5 * (1 + np.cos(np.pi * (step // held * held) / 12)) for step in range(12)]
    warm = [min((step + 1) / 4, 1.0) for step in range(12)]
    assert [float(rate(step)) for step in range(12)] == pytest.approx(np.multiply(cosine, warm), rel=1e-5, abs=1e-7)


def test_pretrain_run_uses_every_field(config, photos, tmp_path, monkeypatch):
    """`fit` is replaced, so nothing is traced. The test inspects the arguments that `fit` would get."""
    calls, batches = [], []

    def read_views(source, given, *rest):
        batches.append(given)
        return view_pairs(source, given, *rest)

    class Recorded(Reader):
        def __init__(self, make, first, last, signature, blocks, threads, processes, on_bad):
            assert (threads, processes) == (3, 1)
            super().__init__(make, first, last, signature, blocks, on_bad=on_bad)

    monkeypatch.setattr("dupr_tf.data.pipeline.Reader", Recorded)
    monkeypatch.setattr(keras.Model, "fit", lambda model, data, **settings: calls.append((model, settings)))
    monkeypatch.setattr("dupr_tf.training.pretrain.view_pairs", read_views)
    result = pretrain(config, tmp_path / "run", photos, probe=lambda backbone: ({}, {}))
    assert result.step == 7 and batches and all(given == config for given in batches)
    model, settings = calls[0]
    assert_model_of(model, config)
    assert model.jit_compile is True and model.optimizer.momentum == 0.8
    assert [(s["initial_epoch"], s["epochs"], s["steps_per_epoch"]) for _, s in calls] == [(0, 2, 3), (2, 3, 1)]
    callbacks = {type(callback): callback for callback in settings["callbacks"]}
    metrics, saving = callbacks[MetricsLog], callbacks[SaveCheckpoints]
    assert (metrics.batch_size, metrics.every, metrics.last_step, metrics.steps_per_epoch) == (8, 5, 7, 3)
    assert (saving.every, saving.checkpoints.keep) == (3600.0, 3)
    assert (callbacks[CheckBadImages].bad.max_share, callbacks[CheckBadImages].bad.max_pixels) == (0.25, 1_000_000)
    assert (callbacks[RunProbes].every, callbacks[RunProbes].last_step) == (6, 7)
    assert load_config(tmp_path / "run" / "config.yaml") == config


class Reached(Exception):
    """Raised when the function behind a command is called."""


@pytest.mark.parametrize("command, function, position", [
    (["pretrain", "--output", "run"], "dupr_tf.training.pretrain.pretrain", 0),
    (["pretrain", "--output", "run"], "dupr_tf.probing.in_training.build_probe", None),
    (["pretrain", "--dry-run"], "dupr_tf.forecast.dry_run.compiled_model", 0),
    (["plan", "--gpu-type", "cpu", "--check"], "dupr_tf.forecast.plan.build_plan", 0),
    (["doctor"], "dupr_tf.forecast.doctor.about_images", 1),
    (["doctor"], "dupr_tf.forecast.doctor.about_run", 0),
    (["doctor", "--steps"], "dupr_tf.forecast.dry_run.dry_run", 0),
    (["views", "--output", "views.png"], "dupr_tf.probing.view_sheet.first_pairs", 1),
], ids=lambda value: " ".join(value) if isinstance(value, list) else None)  # fmt: skip
def test_command_passes_every_field_on(config, photos, tmp_path, monkeypatch, command, function, position):
    received = []

    def reached(*arguments, **_):
        received.extend(arguments)
        raise Reached

    monkeypatch.setattr(function, reached)
    name, *flags = command
    overrides = [f"--data.root={photos}", f"--probing.data={photos}"]
    flags = [str(tmp_path / flag) if flag in ("run", "views.png") else flag for flag in flags]
    with pytest.raises(Reached):
        main([name, FILE, *flags, *overrides])
    if position is None:
        assert received == [config.probing, config.train.seed, config.data]
    else:
        assert received[position] == config
