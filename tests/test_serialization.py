"""Compares the table of classes for Keras with the sources."""

import ast
import subprocess
import sys
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


def test_stand_ins_are_registered_although_keras_was_looked_up_before(tmp_path):
    (tmp_path / "keras.py").write_text("classes = {}\nclass saving:\n    get_custom_objects = lambda: classes\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import dupr_tf, importlib.util\n"
    code += "importlib.util.find_spec('keras'); import keras; print(*keras.classes)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [f"dupr_tf>{name}" for names in CLASSES.values() for name in names]
