"""Tests that Keras loads without packages that no command uses, and that they can be imported afterwards."""

import subprocess
import sys

import pytest

from dupr_tf.light import UNUSED, hidden


def modules_after(code):
    """Returns the modules loaded in a new process after `code`."""
    code += "\nimport sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("first", ["keras", "tensorflow"])
def test_keras_loads_without_unused_packages(first):
    loaded = modules_after(f"from dupr_tf.light import save_memory; save_memory(); import {first}, keras, tensorflow")
    assert {"keras.layers", "tensorflow"} <= loaded and not set(UNUSED[first]) & loaded


def test_keras_cv_loads_without_pytorch(tmp_path):
    for package in UNUSED["keras_cv"]:
        (tmp_path / f"{package}.py").touch()
    (tmp_path / "keras_cv.py").write_text("try:\n    import torch\nexcept ImportError:\n    import json.tool\n")
    path = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); "
    loaded = modules_after(path + "from dupr_tf.light import save_memory; save_memory(); import keras_cv")
    assert {"keras_cv", "json.tool"} <= loaded and "torch" not in loaded
    assert "torch" in modules_after(path + "import keras_cv")


def test_hidden_packages_can_be_imported_afterwards():
    code = "from dupr_tf.light import save_memory; save_memory(); import keras, sklearn.svm, matplotlib.figure"
    assert {"sklearn.svm", "matplotlib.figure", "scipy"} <= modules_after(code)


def test_commands_load_keras_without_unused_packages():
    code = "from dupr_tf.cli import run; run(['list', 'weights']); import keras"
    assert not {"matplotlib", "sklearn"} & modules_after(code)


def test_hidden_leaves_loaded_packages(monkeypatch):
    monkeypatch.setitem(sys.modules, "loaded", sys)
    with hidden(("loaded", "absent")):
        assert sys.modules["loaded"] is sys
        with pytest.raises(ImportError):
            __import__("absent")
    assert "absent" not in sys.modules
