"""Tests of the build: an editable install wins over a folder of the same name; a wheel holds the whole package."""

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BACKEND = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["build-backend"]


def build(kind: str, folder: Path) -> zipfile.ZipFile:
    """Builds a wheel (`kind` "wheel" or "editable") of this checkout as pip does, and opens it."""
    code = f"import sys, {BACKEND} as backend; backend.build_{kind}(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return zipfile.ZipFile(wheel)


@pytest.mark.skipif(sys.platform == "win32", reason="symbolic links need a privilege")
def test_editable_install_wins_over_folder_of_same_name(tmp_path):
    build("editable", tmp_path).extractall(tmp_path / "site")
    (tmp_path / "dupr_tf").symlink_to(ROOT)  # a clone, in the folder that Python starts in
    code = f"import site; site.addsitedir({str(tmp_path / 'site')!r}); import dupr_tf; print(dupr_tf.__file__)"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-S", "-c", code]  # without site-packages, which contain an install too
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == str(ROOT / "dupr_tf" / "__init__.py"), done.stderr


def test_wheel_holds_every_file_of_the_package(tmp_path):
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "dupr_tf").rglob("*") if path.is_file()}
    packed = {name for name in build("wheel", tmp_path).namelist() if name.startswith("dupr_tf/")}
    assert packed == {name for name in files if "__pycache__" not in name}
    assert any("/templates/" in name for name in packed)
