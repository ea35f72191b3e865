"""Tests of loss terms in a config: the full list, DUPR's short form, and how model and resume read each."""

import pytest

from dupr_tf.config import dump_config, load_config, parse_config
from dupr_tf.errors import UserError

PATCH = {"kind": "patch_contrast", "level": "P4", "weight": 0.5, "size": 3, "bank_size": 2048}
IMAGE = {"kind": "image_contrast", "level": "P5", "temperature": 0.1}


def of_terms(*terms, **others):
    return parse_config({"model": {"terms": list(terms), **others}})


def refused(values):
    with pytest.raises(UserError) as error:
        parse_config(values)
    return error.value


def test_short_form_expands_to_the_papers_terms():
    terms = parse_config({}).model.term_list
    assert [(t.kind, t.level, t.weight) for t in terms] == [
        ("image_contrast", "P2", 0.1), ("image_contrast", "P3", 0.4), ("image_contrast", "P4", 0.7),
        ("image_contrast", "P5", 1.0), ("patch_contrast", "P4", 1.0), ("patch_contrast", "P5", 1.0),
    ]  # fmt: skip
    assert [t.full_name for t in terms][-2:] == ["patch_P4", "patch_P5"]


def test_dupr_arguments_hold_every_field_of_a_term():
    config = of_terms(IMAGE, {**PATCH, "name": "fine"}, momentum=0.99, momentum_schedule="cosine")
    arguments = config.dupr_arguments(total_steps=50)
    first, second = arguments["terms"]
    assert (first["name"], first["temperature"], first["bank_size"]) == ("image_P5", 0.1, 65536)
    assert (second["name"], second["size"], second["weight"], second["bank_size"]) == ("fine", 3, 0.5, 2048)
    assert (arguments["momentum"], arguments["momentum_schedule"], arguments["total_steps"]) == (0.99, "cosine", 50)
    assert parse_config({}).dupr_arguments(50)["total_steps"] is None


def test_config_stores_the_form_that_was_written(tmp_path):
    for config in (of_terms(IMAGE, PATCH), parse_config({"model": {"image_weights": [0, 0, 0, 1]}})):
        (tmp_path / "c.yaml").write_text(dump_config(config))
        again = load_config(tmp_path / "c.yaml")
        assert again == config and (again.model.terms is None) == (config.model.terms is None)
    assert "image_weights" not in dump_config(of_terms(IMAGE))


def test_both_forms_together_are_refused_overrides_included(tmp_path):
    error = refused({"model": {"terms": [IMAGE], "bank_size": 64}})
    assert error.field == "model.terms" and "bank_size" in error.problem
    (tmp_path / "c.yaml").write_text(dump_config(of_terms(IMAGE)))
    with pytest.raises(UserError) as caught:
        load_config(tmp_path / "c.yaml", {"model.temperature": "0.1"})
    assert caught.value.field == "model.terms"


def test_two_forms_that_mean_the_same_compare_equal():
    short = parse_config({"model": {"image_weights": [0, 0, 0, 1], "patch_weights": [0] * 4, "bank_size": 64}})
    full = of_terms({"kind": "image_contrast", "bank_size": 64})
    assert short.model.named_terms() == full.model.named_terms()
    assert short.model.named_terms() != of_terms({"kind": "image_contrast", "bank_size": 65}).model.named_terms()
    assert of_terms(IMAGE, PATCH).model.named_terms() == of_terms(PATCH, IMAGE).model.named_terms()


@pytest.mark.parametrize(
    "term, field, fix",
    [
        ({"kind": "patch_contrst"}, "model.terms[0].kind", "patch_contrast"),
        ({"level": "P4"}, "model.terms[0].kind", ""),
        ({**PATCH, "sizes": 3}, "model.terms[0].sizes", "size"),
        ({**PATCH, "level": "P6"}, "model.terms[0].level", ""),
        ({**PATCH, "weight": 0}, "model.terms[0].weight", ""),
        ({**PATCH, "name": "a/b"}, "model.terms[0].name", ""),
    ],
)
def test_mistakes_in_a_term_name_the_field(term, field, fix):
    error = refused({"model": {"terms": [term]}})
    assert error.fields == (field,) and fix in error.fix


def test_two_terms_of_one_name_are_refused():
    error = refused({"model": {"terms": [PATCH, {**PATCH, "size": 4}]}})
    assert error.field == "model.terms" and "patch_P4" in error.problem
    assert of_terms(PATCH, {**PATCH, "name": "other"})


@pytest.mark.parametrize(
    "values, field",
    [
        ({"model": {"terms": [{**PATCH, "bank_size": 1023}]}}, "model.terms"),
        ({"model": {"terms": [{**PATCH, "size": 15}]}}, "model.terms"),
        ({"model": {"bank_size": 1023}}, "model.bank_size"),
        ({"model": {"bank_size": 255, "patch_weights": [0, 0, 0, 0]}}, "model.bank_size"),
        ({"model": {"roi_sizes": [56, 28, 14, 8]}}, "model.roi_sizes"),
        ({"model": {"image_weights": [0] * 4, "patch_weights": [0] * 4}}, "model.image_weights"),
    ],
)
def test_impossible_terms_are_refused_before_training(values, field):
    assert [problem.field for problem in parse_config(values).pretrain_problems()] == [field]


def test_terms_exactly_at_their_limits_are_allowed():
    assert of_terms({**PATCH, "bank_size": 1024, "size": 14}).pretrain_problems() == []
