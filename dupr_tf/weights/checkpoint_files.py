"""Lists, checks and removes the files of checkpoints. Imports no TensorFlow."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from dupr_tf.errors import UserError
from dupr_tf.files import discarded_on_error, read_bounded, sha256_of
from dupr_tf.text import escape

DATA, INDEX, SUMS = ".data-00000-of-00001", ".index", ".sha256"
ENDINGS = (DATA.removeprefix("."), INDEX.removeprefix("."))  # endings of TensorFlow's files
MOST_SUMS = 4096  # bytes
NAME = re.compile(r"(ckpt-(?:0|[1-9][0-9]{0,17}))\.(index|sha256|data-00000-of-00001)")


def saved_checkpoints(folder: str | Path) -> list[Path]:
    """Lists the checkpoints in a folder, damaged or not, newest first, as paths without the endings."""
    matches = map(NAME.fullmatch, _names(Path(folder)))
    paths = {Path(folder) / match[1] for match in matches if match and match[2] in ("index", "sha256")}
    return sorted(paths, key=step_of, reverse=True)


def check_files(folder: Path) -> None:
    """Raises UserError for a folder, pipe or dead link where a file of a checkpoint belongs."""
    if os.path.lexists(folder) and not folder.is_dir():
        raise UserError(None, f"{escape(str(folder))} is no folder.", "Remove it, or choose another --output.")
    for name in _names(folder):
        if NAME.fullmatch(name) and not (folder / name).is_file():
            problem = f"{escape(str(folder / name))} is named like a checkpoint, but it is no file."
            raise UserError(None, problem, "Remove or rename it.")


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []


def step_of(path: Path) -> int:
    """Returns the step of `…/ckpt-STEP`."""
    return int(path.name.removeprefix("ckpt-"))


def find_damage(path: Path) -> str | None:
    """Returns the damaged file of a checkpoint, or None. Without sha256 sums it uses TensorFlow's own checksums."""
    sums = path.with_suffix(".sha256")
    if not sums.exists():
        return None
    try:
        written = read_bounded(sums, MOST_SUMS).decode("ascii", "replace").splitlines(keepends=True)
        lines = [_sum_line(file) for file in _files(path)]
    except (OSError, ValueError) as error:
        return f"{getattr(error, 'filename', None) or sums.name}: {getattr(error, 'strerror', None) or error}"
    if written == lines:
        return None
    wrong = [line[66:].rstrip("\n") for line in lines if line not in written]
    missing = [name for name in (f"{path.name}.{ending}" for ending in ENDINGS) if not path.with_name(name).exists()]
    return f"{', '.join([*missing, *wrong]) or 'something else'} is not as {sums.name} has it"


def write_sums(path: Path) -> None:
    """Writes the sha256 of a checkpoint's files, which marks it as complete."""
    temporary = path.with_suffix(".sums_temp")
    with discarded_on_error(temporary):
        temporary.write_text("".join(map(_sum_line, _files(path))), encoding="ascii")
        temporary.replace(path.with_suffix(".sha256"))


def _sum_line(file: Path) -> str:
    return f"{sha256_of(file)}  {file.name}\n"


def _files(path: Path) -> list[Path]:
    """Lists TensorFlow's files of a checkpoint."""
    return [file for file in (path.with_name(f"{path.name}.{ending}") for ending in ENDINGS) if file.exists()]


def remove_checkpoint(path: Path) -> None:
    """Removes the files of a checkpoint that exist."""
    for file in [
        path.with_suffix(".sha256"),
        *reversed(_files(path)),
    ]:  # a kill leaves no incomplete checkpoint
        file.unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Removes the files of a killed save: files under other names, and data whose index was never written."""
    for leftover in [*folder.glob("ckpt-*_temp*"), *folder.glob("ckpt-*.tempstate*")]:
        shutil.rmtree(leftover) if leftover.is_dir() and not leftover.is_symlink() else leftover.unlink()
    for data in (folder / name for name in _names(folder) if name.endswith(DATA) and NAME.fullmatch(name)):
        path = data.with_suffix("")
        if not any(path.with_suffix(ending).exists() for ending in (INDEX, SUMS)):
            data.unlink()
