"""Tests of a run whose length changes: its rate, its epochs, and the messages about both."""

import logging
import math

import pytest

from dupr_tf.config import dump_config, parse_config
from dupr_tf.training.run import CONFIG_FILE
from dupr_tf.training.schedule import SCHEDULE_FILE, _warmup_steps, next_schedule, read_schedule, write_schedule
from tests.refusals import refusal

STEP = 40  # of 50 steps, in batches of 8


def config(epochs=5, **optimizer):
    return parse_config({
        "optimizer": {"learning_rate": 0.1, **optimizer},
        "train": {"batch_size": 8, "micro_batches": 1, "epochs": epochs},
    })  # fmt: skip


@pytest.fixture
def run(tmp_path):
    """Returns the record of a run over 80 images."""
    write_schedule(tmp_path, next_schedule(tmp_path, config(), 80, 0, False))
    (tmp_path / CONFIG_FILE).write_text(dump_config(config()))
    return tmp_path


def rates_after(run, settings, images, after_change):
    schedule = next_schedule(run, settings, images, STEP, True, after_change)
    return schedule, [float(schedule.rates(settings)(step)) for step in range(STEP, schedule.total_steps + 1)]


BEFORE = 0.1 * 0.5 * (1 + math.cos(math.pi * (STEP - 1) / 50))  # rate of the last step before the change


def test_unchanged_run_keeps_its_schedule(run, caplog):
    assert next_schedule(run, config(), 80, STEP, False) == read_schedule(run)
    assert not caplog.records


def test_rate_jumps_by_choice_only(run, caplog):
    _, rates = rates_after(run, config(epochs=10), 80, "planned")
    assert rates[0] > 5 * BEFORE
    assert "learning rate" in caplog.text and "10 -> 60" in caplog.text and "would jump" not in caplog.text


def test_without_a_choice_a_rate_that_would_jump_is_warmed_up(run, caplog):
    _, rates = rates_after(run, config(epochs=10), 80, None)
    assert rates == rates_after(run, config(epochs=10), 80, "warmup")[1]
    assert caplog.text.count("would jump to 0.0655") == 1 and "warm-up of 10 steps" in caplog.text


def test_a_lower_rate_needs_no_warm_up(run, caplog):
    schedule, rates = rates_after(run, config(epochs=4), 80, None)
    assert schedule.warmup_steps == 0 and rates[0] < BEFORE and "would jump" not in caplog.text


def test_decay_starts_at_the_present_rate_and_falls_to_zero(run):
    _, rates = rates_after(run, config(epochs=10), 80, "decay")
    assert rates[0] == pytest.approx(BEFORE) and rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(0, abs=1e-9)


def test_warmup_rises_again_to_the_new_schedule(run):
    _, rates = rates_after(run, config(epochs=10), 80, "warmup")
    _, planned = rates_after(run, config(epochs=10), 80, "planned")
    assert rates[0] == pytest.approx(planned[0] / 10)  # a twentieth of the 60 steps left is 3
    assert rates[9:] == pytest.approx(planned[9:])


@pytest.mark.parametrize(("own", "left", "steps"), [(0, 1000, 50), (0, 60, 10), (0, 8, 4), (0, 0, 1), (100, 60, 30)])
def test_warm_up_ends_before_the_run(own, left, steps):
    settings = config()
    settings = settings.model_copy(update={"optimizer": settings.optimizer.model_copy(update={"warmup_steps": own})})
    assert _warmup_steps(settings, left) == steps


def test_later_change_keeps_the_choice_of_decay(run, caplog):
    longer = config(epochs=10)
    schedule, rates = rates_after(run, longer, 80, "decay")
    write_schedule(run, schedule)
    (run / CONFIG_FILE).write_text(dump_config(longer))
    again = next_schedule(run, longer, 80, STEP + 5, True)
    assert float(again.rates(longer)(STEP + 5)) == pytest.approx(rates[5]) and "would jump" not in caplog.text


def test_repeated_start_at_the_change_keeps_the_warm_up(run):
    longer = config(epochs=10)
    write_schedule(run, schedule := next_schedule(run, longer, 80, STEP, True))
    (run / CONFIG_FILE).write_text(dump_config(longer))
    assert schedule.warmup_steps == 10 and next_schedule(run, longer, 80, STEP, False) == schedule


def test_change_during_the_first_warm_up_begins_no_other(tmp_path, caplog):
    settings = config()
    settings = settings.model_copy(update={"optimizer": settings.optimizer.model_copy(update={"warmup_steps": 20})})
    write_schedule(tmp_path, next_schedule(tmp_path, settings, 80, 0, False))
    (tmp_path / CONFIG_FILE).write_text(dump_config(settings))
    assert next_schedule(tmp_path, settings, 80, 1, True).warmup_steps == 0 and "would jump" not in caplog.text


def test_epochs_never_run_backwards(run):
    schedule, _ = rates_after(run, config(), 800, "planned")
    before = read_schedule(run)
    assert schedule.epoch(STEP) == before.epoch(STEP) == 4
    assert schedule.epoch(STEP + 100) == 5  # 100 steps an epoch now


def test_resume_after_a_change_keeps_the_chosen_schedule(run):
    longer = config(epochs=10)
    schedule, rates = rates_after(run, longer, 80, "decay")
    write_schedule(run, schedule)
    (run / CONFIG_FILE).write_text(dump_config(longer))
    assert next_schedule(run, longer, 80, STEP + 5, False) == schedule
    assert [float(read_schedule(run).rates(longer)(step)) for step in (STEP, STEP + 5)] == [rates[0], rates[5]]


def test_schedule_can_be_chosen_again_until_a_save(run):
    longer = config(epochs=10)
    write_schedule(run, next_schedule(run, longer, 80, STEP, True, "planned"))
    (run / CONFIG_FILE).write_text(dump_config(longer))
    again = next_schedule(run, longer, 80, STEP, False, "decay")
    assert float(again.rates(longer)(STEP)) == pytest.approx(BEFORE) and again.since_epoch == 4
    assert next_schedule(run, longer, 80, STEP + 1, False, "decay") == read_schedule(run)


@pytest.mark.parametrize("content", [
    "{", "[1, 2]", "{}", '{"steps_per_epoch": 0, "total_steps": 5}', '{"steps_per_epoch": 5, "total_steps": 1e999}',
    '{"steps_per_epoch": 5, "total_steps": 9, "factor": NaN}',
    '{"steps_per_epoch": 5, "total_steps": 9, "since_epoch": "a"}',
    "[" * 100_000,
])  # fmt: skip
def test_damaged_record_is_refused_in_one_line(run, content):
    (run / SCHEDULE_FILE).write_text(content)
    assert SCHEDULE_FILE in refusal(read_schedule, run).problem


def test_record_of_an_earlier_version_is_none(run, caplog):
    (run / SCHEDULE_FILE).unlink()
    caplog.set_level(logging.WARNING)
    assert next_schedule(run, config(epochs=10), 80, STEP, True).since_step == 0
    assert not caplog.records
