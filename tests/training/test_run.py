"""A run resumes with the config and images of its start, or names what is different."""

import json
import logging

import pytest

from dupr_tf.config import Config, load_config, parse_config
from dupr_tf.errors import UserError
from dupr_tf.training.run import FORMAT, check, differences, images_entry, record


def config(**train):
    return parse_config({"data": {"root": "/photos"}, "train": {"epochs": 2, **train}})


PATHS = ["/photos/a.jpg", "/photos/b/c.jpg"]


@pytest.fixture
def run(tmp_path):
    record(tmp_path, config(), images_entry("/photos", PATHS))
    return tmp_path


def test_same_config_and_new_folder_are_accepted(run, tmp_path):
    check(run, config(log_every=7, checkpoint_every="10min"), images_entry("/photos", PATHS))
    check(tmp_path / "new", config(), images_entry("/photos", PATHS))


def test_a_moved_root_is_one_difference_and_its_images_are_the_same():
    assert images_entry("/photos", PATHS) == images_entry("/moved", [p.replace("photos", "moved") for p in PATHS])


@pytest.mark.parametrize(
    "changed, paths, fields, named",
    [
        ({"epochs": 3, "seed": 1}, PATHS, ("train.epochs", "train.seed"), "with 2, and the config now has 3"),
        ({}, PATHS[:1], ("data.root",), "with 2 images, and there are 1 now"),
        ({}, [PATHS[0], "/photos/b/d.jpg"], ("data.root",), "others"),
        ({}, PATHS[::-1], ("data.root",), "others"),
    ],
)
def test_differences_are_refused_unless_allowed(run, changed, paths, fields, named, caplog):
    with pytest.raises(UserError) as error:
        check(run, config(**changed), images_entry("/photos", paths))
    assert error.value.fields == fields and named in error.value.problem and "--allow-change" in error.value.fix
    caplog.set_level(logging.WARNING)
    check(run, config(**changed), images_entry("/photos", paths), allow_change=True)
    assert "changed within the run" in caplog.text
    record(run, config(**changed), images_entry("/photos", paths))
    check(run, config(**changed), images_entry("/photos", paths))


def test_flipped_bit_in_the_record_is_no_traceback(run):
    """A bit of the config may become another value, a broken file, or a field that may change; never a traceback."""
    for name in ("config.yaml", "images.json"):
        whole = (run / name).read_bytes()
        noticed = 0
        for bit in range(0, 8 * len(whole), 61):
            content = bytearray(whole)
            content[bit // 8] ^= 1 << bit % 8
            (run / name).write_bytes(content)
            try:
                check(run, config(), images_entry("/photos", PATHS))
            except UserError:
                noticed += 1
        assert noticed > 0.8 * len(range(0, 8 * len(whole), 61)), name
        (run / name).write_bytes(whole)


def test_a_damaged_record_is_named(run):
    (run / "images.json").write_text(json.dumps([1]))
    (run / "config.yaml").write_text("train: {epochs: [")
    with pytest.raises(UserError) as error:
        check(run, config(), images_entry("/photos", PATHS))
    config_error, images_error = error.value.errors
    assert str(run / "config.yaml") in config_error.problem and str(run / "images.json") in images_error.problem


def test_run_of_another_format_is_refused(run):
    for content in (f'{{"format": {FORMAT - 1}}}', f'{{"format": {FORMAT + 1}}}', "[]", "{"):
        (run / "format.json").write_text(content)
        with pytest.raises(UserError) as error:
            check(run, config(), images_entry("/photos", PATHS), allow_change=True)
        assert error.value.field == "--output" and str(run) in error.value.problem
    (run / "format.json").unlink()  # as runs of version 0.1 are
    with pytest.raises(UserError):
        check(run, config(), images_entry("/photos", PATHS))


def test_terms_are_compared_by_what_they_mean(run):
    def of_model(**model):
        return parse_config({"data": {"root": "/photos"}, "model": model})

    def fields(old, new):
        return [error.field for error in differences(old, new)]

    written = [{"kind": "image_contrast"}, {"kind": "patch_contrast", "level": "P4", "size": 14}]
    short = of_model(image_weights=[0, 0, 0, 1], patch_weights=[0, 0, 1, 0])
    assert fields(short, of_model(terms=written)) == []
    assert (
        fields(short, of_model(image_weights=[0, 0, 0, 1], patch_weights=[0, 0, 1, 0], roi_sizes=[1, 1, 14, 1])) == []
    )
    assert fields(short, of_model(image_weights=[0, 0, 0, 2], patch_weights=[0, 0, 1, 0])) == ["model.image_weights"]
    written[1]["size"] = 7
    assert fields(short, of_model(terms=written)) == ["model.terms.patch_P4.size"]


def test_only_listed_fields_may_change_within_a_run():
    default, other = Config(), load_config("tests/every_field.yaml")
    may_change = {
        "train.log_every", "train.checkpoint_every", "train.keep_checkpoints", "train.strategy", "train.worker_timeout",
        "train.start_timeout", "data.threads", "data.processes",
    }  # fmt: skip
    changed = {
        f"{name}.{field}"
        for name, section in other
        if section is not None and name != "probing"
        for field in type(section).model_fields
        if getattr(section, field) != getattr(getattr(default, name), field)
    }
    assert {change.field for change in differences(default, other)} == changed - may_change
    assert {"views.draws", "train.seed", "data.root", "model.temperature"} < changed
