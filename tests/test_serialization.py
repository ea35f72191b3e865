"""Compares the table of classes for Keras with the sources."""

import ast
from pathlib import Path

from dupr_tf.serialization import CLASSES

PACKAGE = Path(__file__).resolve().parents[1] / "dupr_tf"


def test_every_registered_class_has_a_stand_in():
    registered = {}
    for path in PACKAGE.rglob("*.py"):
        module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and any("register_keras" in ast.unparse(d) for d in node.decorator_list):
                registered.setdefault(module, set()).add(node.name)
    assert {module: set(names) for module, names in CLASSES.items()} == registered
