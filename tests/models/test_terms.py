"""Tests of the interface of a loss term, with terms of other methods next to DUPR's, saved and loaded.

Tests on two devices are in `test_replicas`.
"""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf

from dupr_tf.config.terms import TERMS, expand_short_form
from dupr_tf.errors import UserError
from dupr_tf.models import DUPR
from dupr_tf.models.terms import ImageContrast, PatchContrast, Term, build_terms
from tests.models.other_terms import Bootstrap, Classify, labelled_batches, make_model
from tests.models.test_golden import CHANNELS, TinyBackbone


def test_predictor_learns_without_a_key_encoder_twin():
    model = make_model(groups=1)
    predictor = model.terms[0].predictor.trainable_variables
    paths = [variable.path for variable in model.query_variables]
    assert all(variable.path in paths for variable in predictor) and len(set(paths)) == len(paths)
    assert set(model.key_encoder.projectors) == {"byol", "image_P5", "patch_P4"}  # `classes` needs no keys
    before = [variable.numpy() for variable in predictor]
    model.train_step({name: tf.constant(value) for name, value in next(labelled_batches(1)).items()})
    assert all((a != b.numpy()).any() for a, b in zip(before, predictor, strict=True))


def test_symmetric_term_compares_both_ways():
    """Swapping the views does not change the mean of both directions."""
    model = DUPR(TinyBackbone(CHANNELS), [Bootstrap(name="byol")], photometric="none")
    model.compile(keras.optimizers.SGD(0.1), jit_compile=False)
    batch = {name: tf.constant(value) for name, value in next(labelled_batches(1)).items()}
    exchanged = {name: batch[name.translate({49: 50, 50: 49})] for name in batch}  # view_1 <-> view_2, …
    assert not np.array_equal(batch["view_1"], exchanged["view_1"])
    logs, again = model.gradients(batch)[2], model.gradients(exchanged)[2]
    np.testing.assert_allclose(float(again["loss"]), float(logs["loss"]), rtol=1e-5)


def test_model_without_keys_skips_the_key_encoder():
    model = DUPR(TinyBackbone(CHANNELS), [Classify("P4", name="classes")], photometric="none", micro_batches=2)
    model.compile(keras.optimizers.SGD(0.1), jit_compile=False)
    batch = {name: tf.constant(value) for name, value in list(labelled_batches(2))[1].items()}
    gradients, keys, logs = model.gradients(batch)
    assert keys == {2: {}} and np.isfinite(float(logs["loss"])) and len(gradients) == len(model.query_variables)


@pytest.mark.parametrize("kind", TERMS)
def test_schema_and_constructor_of_a_term_have_the_same_fields(kind):
    parameters = {}
    for cls in TERMS.load(kind).__mro__:
        if issubclass(cls, Term):
            parameters |= {
                name: parameter.default
                for name, parameter in inspect.signature(cls.__init__).parameters.items()
                if parameter.kind is not parameter.VAR_KEYWORD and name not in parameters
            }
    parameters.pop("self")
    fields = {name: field.default for name, field in TERMS[kind].facts["schema"].model_fields.items() if name != "kind"}
    assert parameters == fields


def test_short_form_gives_the_papers_terms():
    terms = build_terms(expand_short_form())
    assert [(term.name, term.weight) for term in terms] == [
        ("image_P2", 0.1), ("image_P3", 0.4), ("image_P4", 0.7), ("image_P5", 1.0),
        ("patch_P4", 1.0), ("patch_P5", 1.0),
    ]  # fmt: skip
    assert [term.size for term in terms if isinstance(term, PatchContrast)] == [14, 7]
    assert all((t.embedding_dim, t.head, t.temperature, t.bank_size) == (128, "mlp", 0.2, 65536) for t in terms)


@pytest.mark.parametrize(
    "terms",
    [[], [ImageContrast(), ImageContrast()], [{"kind": "image_contrast", "size": 7}], [{"kind": "image_contrst"}]],
    ids=["none", "one name twice", "unknown argument", "unknown kind"],
)
def test_wrong_lists_of_terms_are_refused(terms):
    with pytest.raises(UserError) as error:
        build_terms(terms)
    assert error.value.field in ("terms", "model.terms")


@pytest.mark.parametrize("arguments", [{"level": "P6"}, {"weight": 0.0}, {"weight": -1}])
def test_wrong_arguments_of_a_term_are_refused(arguments):
    with pytest.raises(UserError) as error:
        ImageContrast(**arguments)
    assert error.value.fields == tuple(arguments)


def test_terms_survive_saving_and_loading(tmp_path):
    model = make_model(groups=1)
    model.train_step({name: tf.constant(value) for name, value in next(labelled_batches(1)).items()})
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    assert [term.get_config() for term in loaded.terms] == [term.get_config() for term in model.terms]
    restored = loaded.named_variables()
    for name, variable in model.named_variables().items():
        np.testing.assert_array_equal(restored[name].numpy(), variable.numpy(), err_msg=name)


def test_variables_have_unique_names():
    model = make_model()
    named = model.named_variables()
    assert len(named) == len({id(variable) for variable in model.variables}) == len(model.variables)
    assert "terms/patch_P4/bank/keys" in named
