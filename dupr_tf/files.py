"""Files that are there whole or not at all, whatever ends the program, and are on the disk when the call returns.

Paths are those of `pathlib`, local or mounted.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from dupr_tf.errors import UserError

ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)  # a `Path` of gs://bucket has one slash left


def local_path(path: str | os.PathLike, field: str | None = None) -> Path:
    """Returns the path as a `pathlib.Path`, with `~` expanded.

    Args:
        path: of something local or mounted, absolute or not.
        field: what the user knows the path by, for the error.

    Raises:
        UserError: it is an address, such as `gs://bucket/photos`, or it starts with `~NAME` of an unknown user.
    """
    address = ADDRESS.fullmatch(os.fspath(path))
    if address is None:
        try:
            return Path(path).expanduser()
        except RuntimeError:
            problem = f"The home folder in {path} is unknown."
            raise UserError(field, problem, "Pass the full path, or ./~NAME for a folder of that name.") from None
    scheme, rest = address.groups()
    fix = "Mount the bucket or share (docs/mounts.md), and pass the path of the mounted folder."
    if scheme.lower() == "file":
        fix = f"Pass /{rest}."
    raise UserError(field, f"{scheme}://{rest} is an address, and only local or mounted paths can be used.", fix)


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file, text as UTF-8; makes its folder."""
    content = content.encode("utf-8") if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    publish(_write_beside(path, content), path)


def write_all(contents: dict[Path, str]) -> None:
    """Writes several files, in order. None is replaced before all are on the disk under other names."""
    written = {}
    try:
        for path, content in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            written[path] = path.with_name(path.name + ".tmp")
            _write_beside(path, content.encode("utf-8"))
    except OSError:
        for temporary in written.values():
            temporary.unlink(missing_ok=True)
        raise
    for path, temporary in written.items():
        publish(temporary, path)


def _write_beside(path: Path, content: bytes) -> Path:
    """Has the content on the disk under another name, and returns that."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return temporary


def publish(temporary: Path, path: Path) -> None:
    """Gives a file that is on the disk its name, and has the name on the disk too."""
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def sha256_of(path: str | Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
