"""The files of a run's checkpoints: their names, order and sums. Imports no TensorFlow."""

from __future__ import annotations

from pathlib import Path

from dupr_tf.files import sha256_of

ENDINGS = ("data-00000-of-00001", "index")  # endings of TensorFlow's files


def saved_checkpoints(folder: str | Path) -> list[Path]:
    """Lists the checkpoints in a folder, damaged or not, newest first, as paths without the endings."""
    found = {path.with_suffix("") for ending in ("index", "sha256") for path in Path(folder).glob(f"ckpt-*.{ending}")}
    return sorted((path for path in found if path.name[5:].isdigit()), key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """Returns the step of `…/ckpt-STEP`."""
    return int(path.name.removeprefix("ckpt-"))


def find_damage(path: Path) -> str | None:
    """Returns the damaged file of a checkpoint, or None. Without sha256 sums it uses TensorFlow's own checksums."""
    sums = path.with_suffix(".sha256")
    if not sums.exists():
        return None
    written = sums.read_bytes().decode("ascii", "replace").splitlines(keepends=True)
    found = [sum_line(file) for file in files_of(path)]
    if written == found:
        return None
    wrong = [line[66:].rstrip("\n") for line in found if line not in written]
    missing = [name for name in (f"{path.name}.{ending}" for ending in ENDINGS) if not path.with_name(name).exists()]
    return f"{', '.join([*missing, *wrong]) or 'something else'} is not as {sums.name} has it"


def sum_line(file: Path) -> str:
    """Returns the line of a file in the format of `sha256sum`."""
    return f"{sha256_of(file)}  {file.name}\n"


def files_of(path: Path) -> list[Path]:
    """Lists TensorFlow's files of a checkpoint."""
    return [file for file in (path.with_name(f"{path.name}.{ending}") for ending in ENDINGS) if file.exists()]
