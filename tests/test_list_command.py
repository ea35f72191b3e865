"""Tests of `dupr-tf list`: it prints every registry before TensorFlow loads."""

import importlib.util

import pytest

from dupr_tf.cli import main
from dupr_tf.commands.list import REGISTRIES, load_registry, rows_of
from dupr_tf.registry import Entry, Registry


def test_list_prints_every_entry_of_every_registry(capsys):
    assert main(["list"]) == 0
    printed = capsys.readouterr().out
    for kind in REGISTRIES:
        assert f"{kind} (" in printed
        assert all(name in printed for name in load_registry(kind))


@pytest.mark.parametrize("kind", REGISTRIES)
def test_list_of_one_kind_prints_no_other(capsys, kind):
    assert main(["list", kind]) == 0
    printed = capsys.readouterr().out
    assert [other for other in REGISTRIES if f"\n{other} (" in f"\n{printed}"] == [kind]


@pytest.mark.parametrize("kind", REGISTRIES)
def test_every_target_of_a_registry_exists(kind):
    for entry in load_registry(kind).values():
        module, _, attribute = entry.target.partition(":")
        assert importlib.util.find_spec(module), entry.target
        if not entry.missing:
            target = getattr(importlib.import_module(module), attribute)
            assert isinstance(target, tuple) if kind == "photos" else callable(target), entry.target


def test_row_names_what_must_be_installed():
    registry = Registry("thing", "--thing", {
        "plain": Entry("wave:open", "needs nothing"),
        "there": Entry("wave:open", "is installed", "some", ("sys",)),
        "absent": Entry("wave:open", "is not", "round", ("no_such_module", "sys")),
    })  # fmt: skip
    assert [row[2] for row in rows_of(registry)] == [
        "", "dupr_tf[some] (installed)", "dupr_tf[round] (missing: no_such_module)",
    ]  # fmt: skip
