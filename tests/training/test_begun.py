"""A run goes on with what it was begun with, or says what is different."""

import json
import logging

import pytest

from dupr_tf.config import parse_config
from dupr_tf.training.begun import compare, images_entry, record_start


def config(**train):
    return parse_config({"data": {"root": "/photos"}, "train": {"epochs": 2, **train}})


PATHS = ["/photos/a.jpg", "/photos/b/c.jpg"]


@pytest.fixture
def run(tmp_path):
    record_start(tmp_path, config(), PATHS)
    return tmp_path


def test_the_same_again_is_let_pass_and_so_is_a_new_folder(run, tmp_path):
    compare(run, config(log_every=7, checkpoint_every="10min"), PATHS)
    compare(tmp_path / "new", config(), PATHS)


def test_a_moved_root_is_one_difference_and_its_images_are_the_same():
    assert images_entry("/photos", PATHS) == images_entry("/moved", [p.replace("photos", "moved") for p in PATHS])


@pytest.mark.parametrize(
    "changed, paths, told",
    [
        ({"epochs": 3, "seed": 1}, PATHS, r"train\.epochs 2 -> 3; train\.seed 0 -> 1"),
        ({}, PATHS[:1], "images 2 -> 1"),
        ({}, [PATHS[0], "/photos/b/d.jpg"], "images 2 -> 2, others"),
        ({}, PATHS[::-1], "images 2 -> 2, others"),
    ],
)
def test_differences_are_named_and_refused_unless_allowed(run, changed, paths, told, caplog):
    with pytest.raises(ValueError, match=f"^Expected the config and the images .*{told}.*--allow-change"):
        compare(run, config(**changed), paths)
    caplog.set_level(logging.WARNING)
    compare(run, config(**changed), paths, allow_change=True)
    assert "changed within the run" in caplog.text
    record_start(run, config(**changed), paths)
    compare(run, config(**changed), paths)


def test_every_flipped_bit_in_the_record_is_noticed_or_changes_nothing(run):
    """A bit of the config may become another value, a broken file, or a field that may change; never a traceback."""
    for name in ("config.yaml", "images.json"):
        whole = (run / name).read_bytes()
        noticed = 0
        for bit in range(0, 8 * len(whole), 61):
            content = bytearray(whole)
            content[bit // 8] ^= 1 << bit % 8
            (run / name).write_bytes(content)
            try:
                compare(run, config(), PATHS)
            except ValueError as error:
                assert str(error).startswith("Expected the config and the images")
                noticed += 1
        assert noticed > 0.8 * len(range(0, 8 * len(whole), 61)), name
        (run / name).write_bytes(whole)


def test_a_damaged_record_is_named(run):
    (run / "images.json").write_text(json.dumps([1]))
    (run / "config.yaml").write_text("train: {epochs: [")
    with pytest.raises(ValueError, match=r"config\.yaml is damaged .*images\.json is damaged"):
        compare(run, config(), PATHS)
