"""Checks the architecture: which package may import which, what stays light to import, and what is never called."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "dupr_tf"

# Room → the rooms it may import, besides itself and the rooms in `EVERYWHERE`. Only `__main__` imports `cli`.
EVERYWHERE = {"errors", "text", "values", "registry", "resources"}
ARROWS = {
    "errors": set(),
    "text": set(),
    "values": set(),
    "registry": set(),
    "resources": set(),
    "safe_yaml": set(),
    "around_import": set(),
    "serialization": {"around_import"},
    "files": set(),
    "locks": {"files"},
    "records": {"files"},
    "config": {"safe_yaml", "files"},
    "environment": {"files", "records"},
    "quiet": {"around_import"},
    "light": {"around_import"},
    "streams": set(),
    "batch": set(),
    "ops": set(),
    "data": {"config", "batch", "ops", "files", "safe_yaml", "records", "locks"},
    "models": {"config", "environment", "batch", "ops"},
    "weights": {"files", "records", "locks", "environment", "models", "config", "ops"},
    "training": {"files", "records", "locks", "environment", "data", "models", "weights", "config", "batch", "ops"},
    "detection": {
        "files", "safe_yaml", "records", "locks", "models", "weights", "data", "config", "batch", "ops", "training",
    },
    "probing": {"files", "locks", "models", "weights", "data", "config", "batch", "ops"},
}  # fmt: skip
ARROWS["comparing"] = {
    "files", "records", "locks", "light", "models", "weights", "data", "config", "training", "detection", "probing",
}  # fmt: skip
ARROWS["reporting"] = {
    "files", "environment", "probing", "training", "models", "weights", "data", "config", "batch", "ops", "comparing",
    "records",
}  # fmt: skip
ARROWS["forecast"] = {"files", "environment", "training", "models", "data", "config", "batch", "ops"}
ARROWS["commands"] = set(ARROWS)
ARROWS["cli"] = set(ARROWS)
ARROWS["__main__"] = {"cli"}

FRAMEWORKS = {"tensorflow", "keras", "keras_cv", "keras_hub", "tf_keras"}
FILES = sorted(PACKAGE.rglob("*.py"))
ROOM_FILES = [path for path in FILES if path != PACKAGE / "__init__.py"]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imported(tree: ast.AST, package: str) -> Iterator[str]:
    """Returns dotted names that a module of `package` imports, anywhere in it; `from a import b` counts as a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and dotted(node.func).split(".")[-1] in (
            "import_module",
            "__import__",
        ):
            yield from (a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str))


def rooms_imported(tree: ast.AST, package: str) -> set[str]:
    """Returns this package's rooms among the names. A name imported from `dupr_tf` itself is kept unchanged."""
    parts = (target.split(".") for target in imported(tree, package))
    return {part[1] if len(part) > 1 else "dupr_tf" for part in parts if part[0] == "dupr_tf"}


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def hazards(tree: ast.AST) -> list[str]:
    """Returns calls and arguments by which a file from elsewhere could run code."""
    loaders = {"load", "loads", "Unpickler"}
    unsafe = {f"{module}.{loader}" for module in ("pickle", "_pickle", "dill", "joblib") for loader in loaders}
    unsafe |= {f"yaml.{loader}" for loader in ("load", "load_all", "full_load", "unsafe_load")}
    unsafe |= {"torch.load", "eval", "exec", "builtins.eval", "builtins.exec"}
    found = [target for target in imported(tree, "") if target in unsafe]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = dotted(node.func)
            if called == "torch.load" and any(ast.unparse(keyword) == "weights_only=True" for keyword in node.keywords):
                continue  # only tensors and plain values, as PyTorch guarantees
            if called in unsafe or called.endswith("enable_unsafe_deserialization"):
                found.append(called)
        elif isinstance(node, ast.keyword) and isinstance(node.value, ast.Constant):
            setting = f"{node.arg}={node.value.value}"
            found += [setting] if setting in ("allow_pickle=True", "safe_mode=False") else []
    return found


@pytest.mark.parametrize("path", ROOM_FILES, ids=name)
def test_imports_follow_the_allowed_arrows(path):
    room = room_of(path)
    assert room in ARROWS, f"{room} is missing from the plan. Add it to ARROWS and to docs/architecture.md"
    package = ".".join(path.relative_to(ROOT).parent.parts)
    allowed = ARROWS[room] | (set() if room in ("errors", "text", "values") else EVERYWHERE)
    wrong = rooms_imported(parse(path), package) - allowed - {room, "__version__"}
    assert not wrong, f"{name(path)} imports {sorted(wrong)}, but may import only {sorted(ARROWS[room])}"


@pytest.mark.parametrize(
    ("target", "importers"),
    [
        ("keras_cv", {"retinanet.py", "yolov8.py"}),
        ("keras_hub", {"kerashub.py", "dfine.py", "kerashub_io.py"}),
        *((f"dupr_tf.detection.{module}", set()) for module in ("retinanet", "yolov8", "kerashub", "dfine")),
    ],
)
def test_kerascv_and_kerashub_are_imported_lazily_by_few_files(target, importers):
    package = {path: ".".join(path.relative_to(ROOT).parent.parts) for path in FILES}
    found = {
        path.name
        for path in FILES
        if any(f"{one}.".startswith(f"{target}.") for one in imported(parse(path), package[path]))
    }
    assert found == importers


def test_arrows_are_acyclic_and_separate_data_from_models():
    order = list(ARROWS)  # each room comes after the rooms it imports
    assert all(order.index(target) < order.index(room) for room, targets in ARROWS.items() for target in targets)
    assert "data" not in ARROWS["models"] and "models" not in ARROWS["data"]


@pytest.mark.parametrize(
    "module",
    [
        *("errors", "text", "registry", "files", "batch", "config", "data"),
        *("weights/paths", "detection/task_labels"),
        *("comparing/statistics", "comparing/record", "comparing/runner", "comparing/plan", "comparing/outputs"),
        *("forecast/device_types", "forecast/assumptions", "forecast/seconds", "forecast/advice"),
        *("probing/image_views", "probing/labelled"),
    ],
)
def test_light_files_import_no_framework(module):
    files = [path for path in FILES if path.relative_to(PACKAGE).with_suffix("").as_posix() == module]
    files += [path for path in FILES if PACKAGE / module in path.parents]
    assert files
    for path in files:
        assert not {target.split(".")[0] for target in imported(parse(path), "dupr_tf")} & FRAMEWORKS


@pytest.mark.parametrize("module", [
    "config", "cli", "commands", "training.pool", "detection.finetune", "probing.load", "weights.names",
    "weights.formats",
])  # fmt: skip
def test_light_module_import_loads_no_tensorflow(module):
    code = f"import sys, dupr_tf.{module}; print(*{FRAMEWORKS}.intersection(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "", f"import {module} loads {done.stdout}"


def test_package_has_no_utility_modules():
    vague = {"utils", "util", "helpers", "helper", "common", "misc"}
    assert not [name(path) for path in FILES if vague & set(path.relative_to(PACKAGE).with_suffix("").parts)]


@pytest.mark.parametrize("path", FILES, ids=name)
def test_package_never_runs_code_from_files(path):
    assert hazards(parse(path)) == []


# ---- tests of the checks: a check that finds nothing would pass everything ----


@pytest.mark.parametrize(
    ("line", "rooms"),
    [
        ("import dupr_tf.models.resnet", {"models"}),
        ("import dupr_tf.models.resnet as r, numpy", {"models"}),
        ("from dupr_tf.cli import main", {"cli"}),
        ("from dupr_tf import ops, models", {"ops", "models"}),
        ("from dupr_tf import DUPR", {"DUPR"}),
        ("import dupr_tf", {"dupr_tf"}),
        ("from ..models import dupr", {"models"}),
        ("from .. import training", {"training"}),
        ("from . import views", {"data"}),
        ("def f():\n    from dupr_tf.training import pretrain", {"training"}),
        ("import importlib\nimportlib.import_module('dupr_tf.detection.fcn')", {"detection"}),
        ("import numpy as np\nfrom keras import ops", set()),
    ],
)
def test_every_kind_of_import_is_detected(line, rooms):
    assert rooms_imported(ast.parse(line), "dupr_tf.data") == rooms


@pytest.mark.parametrize(
    "line",
    [
        "pickle.load(f)",
        "pickle.loads(b)",
        "pickle.Unpickler(f).load()",
        "from pickle import load",
        "eval('1')",
        "exec('1')",
        "yaml.load(f, Loader=yaml.Loader)",
        "np.load(f, allow_pickle=True)",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "keras.saving.load_model(f, safe_mode=False)",
        "keras.config.enable_unsafe_deserialization()",
    ],
)
def test_every_hazard_is_detected(line):
    assert hazards(ast.parse(line))


def test_harmless_calls_are_no_hazards():
    lines = (
        "pickle.dump(x, f)",
        "yaml.safe_load(f)",
        "np.load(f, allow_pickle=False)",
        "torch.load(f, weights_only=True)",
        "model.eval()",
        "'eval(x)'",
    )
    assert hazards(ast.parse("\n".join(lines))) == []
