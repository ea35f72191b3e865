"""Writes files atomically: a file is complete or absent, even after a kill, and on the disk when the call returns.

Paths are those of `pathlib`, local or mounted.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, BinaryIO

from dupr_tf.errors import UserError
from dupr_tf.text import escape, one_line

log = logging.getLogger(__name__)
GROWTH = 1 << 20  # bytes by which a file may grow while it is read
LAST_BYTES = 4096  # in which `last_lines` looks
ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)  # a `Path` keeps only one slash of gs://bucket


def local_path(path: str | os.PathLike, field: str | None = None) -> Path:
    """Returns the path as a `pathlib.Path`, with `~` expanded.

    Args:
        path: local or mounted path, absolute or relative.
        field: the user's name of the path, for the error.

    Raises:
        UserError: the path is an address, such as `gs://bucket/photos`, or starts with `~NAME` of an unknown user.
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
    """Writes a file atomically, text as UTF-8. Creates its folder."""
    content = content.encode("utf-8") if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    with publishing(path, "wb") as file:
        file.write(content)


def write_all(contents: dict[Path, str | bytes]) -> None:
    """Writes several files, in order. No file is replaced before all are on the disk under temporary names."""
    written = {path: path.with_name(path.name + ".tmp") for path in contents}
    with contextlib.ExitStack() as cleanup:
        for path, content in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            cleanup.enter_context(discarded_on_error(written[path]))
            with written[path].open("wb") as file:
                file.write(content.encode("utf-8") if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
    for path, temporary in written.items():
        publish(temporary, path)


@contextlib.contextmanager
def discarded_on_error(temporary: Path) -> Iterator[None]:
    """Removes a file, if it exists, when the block that writes it raises an error."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # the error of the block names the problem
            temporary.unlink(missing_ok=True)
        raise


def publish(temporary: Path, path: Path) -> None:
    """Gives a temporary file on the disk its final name, and writes the name to the disk too."""
    with discarded_on_error(temporary):
        os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextlib.contextmanager
def publishing(path: Path, mode: str, **options) -> Iterator[IO]:
    """Opens a file under a temporary name, and renames it once it is complete and on the disk.

    Args:
        path: file to write, which is replaced as a whole.
        mode, options: as in `open`.
    """
    temporary = path.with_name(path.name + ".tmp")
    with discarded_on_error(temporary), temporary.open(mode, **options) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    publish(temporary, path)


def sha256_of(path: str | Path) -> str:
    """Computes the sha256 of a file, in hexadecimal."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_file(path: str | os.PathLike, buffering: int = -1) -> BinaryIO:
    """Opens a regular file for reading bytes. A pipe is refused, so nothing waits for it.

    Args:
        path: the file, or a link to it.
        buffering: as in `open`.

    Raises:
        OSError: the file does not exist, or is a folder, pipe or device.
    """
    file = open(path, "rb", buffering, opener=_open_without_waiting)  # noqa: SIM115 — the caller closes it
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EISDIR, "it is a folder, pipe or device", os.fspath(path))
    return file


def _open_without_waiting(path, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def read_bounded(path: str | os.PathLike, most: int) -> bytes:
    """Returns the bytes of a regular file of at most `most` bytes.

    Raises:
        ValueError: the file has more bytes.
        OSError: as in `open_file`.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        limit = min(most, size + GROWTH)  # Python allocates as many bytes as the argument says
        content = file.read(limit + 1) if size <= most else b""
    if max(size, len(content)) > limit:
        raise ValueError(f"it has {size:,} bytes, and at most {most:,} are read")
    return content


def last_lines(path: str | os.PathLike) -> list[bytes]:
    """Returns the lines at the end of a file that may grow. The first one may be cut.

    Raises:
        OSError: as in `open_file`.
    """
    with open_file(path) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - LAST_BYTES))
        return file.read(LAST_BYTES).splitlines()


@contextlib.contextmanager
def plain_alias(folder: Path) -> Iterator[Path]:
    """Yields a path to a folder that no library mistakes for a pattern.

    TensorFlow reads `[` in the path of a checkpoint as the start of a pattern, and accepts only UTF-8 paths. For such a
    folder, a link in the system's temporary folder is created. Other paths do not change.
    """
    if "[" not in str(folder) and folder.as_posix().isascii():
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="dupr_tf-") as temporary:
        link = Path(temporary) / "folder"
        link.symlink_to(folder.absolute(), target_is_directory=True)
        yield link


def draw_pictures(pictures: dict[str, Callable[[Path], None]], output: Path) -> None:
    """Draws pictures into a folder. A picture that fails causes only a warning, because all results are written.

    Args:
        pictures: {file name: function that draws it}.
        output: folder of the pictures.
    """
    for name, draw in pictures.items():
        try:
            draw(output / name)
        except Exception as error:
            reason = escape(one_line(f"{type(error).__name__}: {error}", 200))
            log.warning("%s was not drawn (%s)", escape(str(output / name)), reason)
