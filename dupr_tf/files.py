"""Files that are there whole or not at all, whatever ends the program, and are on the disk when the call returns.

Of a remote path an object store promises the same: an object is uploaded whole; until then the one before is seen.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from dupr_tf.errors import UserError, UserErrors
from dupr_tf.remote_path import RemotePath, as_path

SEND_EVERY = 30.0  # seconds between two uploads of a file that grows


def write_whole(path: Path | RemotePath, content: str | bytes) -> None:
    """Writes a file, text as UTF-8; makes its folder."""
    content = content.encode("utf-8") if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(path, RemotePath):
        return path.write_bytes(content)
    publish(_write_beside(path, content), path)


def write_all(contents: dict[Path | RemotePath, str]) -> None:
    """Writes several files, in order. Of local ones none is replaced before all are on the disk under other names."""
    if any(isinstance(path, RemotePath) for path in contents):
        for path, content in contents.items():
            write_whole(path, content)
        return
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


def publish(temporary: Path, path: Path | RemotePath) -> None:
    """Gives a file that is on the disk its name, and has the name on the disk too; a remote name: uploads it."""
    if isinstance(path, RemotePath):
        _upload(temporary, path)
        return temporary.unlink()
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def remove_tree(path: Path | RemotePath) -> None:
    """Removes a folder with all that is in it."""
    path.rmtree() if isinstance(path, RemotePath) else shutil.rmtree(path)


def sha256_of(path: str | Path | RemotePath) -> str:
    """The sha256 of a file, in hexadecimal."""
    with as_path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def room_at(folder: Path | RemotePath) -> int | None:
    """Free bytes; None where a remote file system does not say."""
    return None if isinstance(folder, RemotePath) else shutil.disk_usage(folder).free


@contextlib.contextmanager
def local_copy(path: str | Path | RemotePath) -> Iterator[Path]:
    """A local path for what reads local files only: the path itself, or a copy of a remote file while it is needed."""
    path = as_path(path)
    if not isinstance(path, RemotePath):
        yield path
        return
    with _temporary(path) as local:
        with path.open("rb") as source, local.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 22)
        yield local


@contextlib.contextmanager
def written_locally(path: str | Path | RemotePath, last: str | None = None) -> Iterator[Path]:
    """A local path for what writes local files only: the path itself, or one that is uploaded at the end.

    Args:
        path: of a file or a folder.
        last: name of the file in a folder that is uploaded after all others, to say that they are there.
    """
    path = as_path(path)
    if not isinstance(path, RemotePath):
        yield path
        return
    with _temporary(path) as local:
        yield local
        files = [file for file in local.rglob("*") if file.is_file()] if local.is_dir() else [local]
        for file in sorted(files, key=lambda file: (file.name == last, file)):
            _upload(file, path if file == local else path / file.relative_to(local).as_posix())


@contextlib.contextmanager
def _temporary(path: RemotePath) -> Iterator[Path]:
    """A local path of the same name in a folder of its own; errors about it name the remote one."""
    with tempfile.TemporaryDirectory(prefix="dupr-tf-") as folder:
        local = Path(folder) / path.name
        try:
            yield local
        except ValueError as error:
            if folder not in str(error):
                raise
            if not isinstance(error, UserError):
                raise ValueError(str(error).replace(str(local), str(path))) from error
            parts = ((one.field, one.problem, one.fix) for one in error.errors)
            renamed = [UserError(*(part and part.replace(str(local), str(path)) for part in one)) for one in parts]
            raise (UserErrors(renamed) if len(renamed) > 1 else renamed[0]) from error


def _upload(file: Path, path: RemotePath) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with file.open("rb") as source, path.open("wb") as target:
        shutil.copyfileobj(source, target, 1 << 22)


class GrowingFile:
    """A text file that lines are added to.

    A local file has each line at once. Objects cannot grow: of a remote one all lines are kept, and uploaded again
    every half minute and at `flush`, so that a kill costs what came since.

    Args:
        path: of the file; what is in it stays.
    """

    def __init__(self, path: Path | RemotePath):
        self.path = path
        self._remote = isinstance(path, RemotePath)
        self._text = path.read_text(encoding="utf-8") if self._remote and path.is_file() else ""
        self._sent, self._sent_at = len(self._text), time.monotonic()

    def add(self, line: str) -> None:
        """Adds a line, which comes with its line break."""
        if not self._remote:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line)
            return
        self._text += line
        if time.monotonic() - self._sent_at >= SEND_EVERY:
            self.flush()

    def flush(self) -> None:
        """Has every line where the file is."""
        if self._remote and self._sent < len(self._text):
            write_whole(self.path, self._text)
            self._sent = len(self._text)
        self._sent_at = time.monotonic()
