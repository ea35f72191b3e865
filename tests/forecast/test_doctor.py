"""Tests of `dupr-tf doctor`: its output, and every kind of wrong input."""

import logging
import os

import pytest

from dupr_tf.cli import main
from dupr_tf.config import dump_config
from tests.forecast.small_photos import config, write_photos


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("photos"))


def test_doctor_prints_all_and_writes_nothing(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(dump_config(config()))
    assert main(["doctor", "c.yaml", "--data", str(photos), "--train.epochs", "7"]) == 0
    out = capsys.readouterr().out
    for words in ("versions keras", "memory free", "memory banks", "images/s", "ln(K + 1) = 4.17", "28 steps in all",
                  "median 40", "dupr-tf scan"):  # fmt: skip
        assert words in out, words
    assert main(["doctor", "--data", str(photos)]) == 0 and "configs/dupr_r18_small.yaml" in capsys.readouterr().out
    assert os.listdir(tmp_path) == ["c.yaml"]
    logging.getLogger().handlers.clear()


@pytest.mark.parametrize("arguments, lines", [
    (["nowhere.yaml"], ["nowhere.yaml"]),
    (["--data", "nowhere"], ["nowhere"]),
    (["c.yaml", "--train.batch_size", "9", "--data", "nowhere"], ["train.batch_size", "nowhere"]),
    (["c.yaml", "--train.epoch", "9"], ["Did you mean train.epochs"]),
    (["--train.epochs", "9"], ["--train.epochs: "]),
    (["c.yaml", "--steps"], ["--steps: "]),
])  # fmt: skip
def test_doctor_reports_every_mistake(tmp_path, capsys, monkeypatch, arguments, lines):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(dump_config(config()))
    assert main(["doctor", *arguments]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert all(word in line for word, line in zip(lines, errors, strict=True))
