"""Tests of the registry: it loads lazily, suggests the nearest entry, and names packages to install."""

import sys

import pytest

from dupr_tf.errors import UserError
from dupr_tf.registry import Entry, Registry

SHAPES = Registry(
    "shape",
    "shape.kind",
    {
        "square": Entry("fractions:Fraction", "four equal sides"),
        "circle": Entry("no_such_module:Circle", "no sides", "round", ("no_such_module", "sys")),
    },
)


def test_registry_is_an_ordered_mapping_of_entries():
    assert list(SHAPES) == ["square", "circle"] and len(SHAPES) == 2
    assert SHAPES["square"].summary == "four equal sides"


def test_load_imports_its_module_lazily(monkeypatch):
    table = Registry("thing", "thing", {"this": Entry("wave:open", "a module nobody has imported")})
    monkeypatch.delitem(sys.modules, "wave", raising=False)
    assert table.check("this") and "wave" not in sys.modules
    assert table.load("this") is sys.modules["wave"].open


def test_unknown_name_suggests_the_nearest_one():
    with pytest.raises(UserError) as error:
        SHAPES.load("sqare")
    assert error.value.field == "shape.kind" and error.value.fix == "Did you mean square?"
    with pytest.raises(UserError) as error:
        SHAPES.load("zzz")
    assert error.value.fix == "Choose from square, circle."


def test_missing_module_names_the_extra():
    assert SHAPES["circle"].missing == ("no_such_module",)
    with pytest.raises(UserError) as error:
        SHAPES.check("circle")
    assert "dupr_tf[round]" in error.value.fix and "no_such_module" in error.value.problem
