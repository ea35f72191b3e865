"""Paths of file systems that TensorFlow reaches by address, such as `gs://bucket/photos`, where pathlib cannot go.

A local path stays a `pathlib.Path` and never meets what is written here. `etils.epath` has the same aim, but takes only
the schemes it lists (no `ram://`), and makes local paths a class of its own.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import fnmatch
import functools
import importlib.util
import io
import os
import posixpath
import re
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from types import SimpleNamespace

from dupr_tf.errors import UserError
from dupr_tf.text import one_line

ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
PATIENCE = 60.0  # seconds for the first answer of a bucket or host; TensorFlow itself would try for many minutes
PLUGINS = "tensorflow_io"  # where it is installed, importing it registers s3://, az:// and others
_reached: set[str] = set()


class RemoteError(UserError, OSError):
    """A remote file system that does not answer, or does not let us; an `OSError` for those who can go on without."""

    def __init__(self, problem: str, fix: str = ""):
        super().__init__(None, problem, fix)
        (text,) = self.args
        self.errno, self.strerror = errno.EIO, text

    def __reduce__(self):
        return type(self), (self.problem, self.fix)

    def __str__(self) -> str:
        return self.strerror


def as_path(path: str | os.PathLike | RemotePath) -> Path | RemotePath:
    """A `RemotePath` for an address (`scheme://…`), a `pathlib.Path` for anything else, `file://` included.

    Raises:
        UserError: it is an address that was a `pathlib.Path` before, which takes a slash from it.
    """
    if isinstance(path, RemotePath):
        return path
    found = ADDRESS.fullmatch(path) if isinstance(path, str) else None
    if found is None:
        return _local(Path(path))
    return Path(found[2]) if found[1].lower() == "file" else RemotePath(path)


def _local(path: Path) -> Path:
    first = path.parts[0] if path.parts else ""
    if len(first) > 2 and re.fullmatch(r"[a-z][a-z0-9+.-]*:", first) and not Path(first).exists():
        raise UserError(None, f"Expected an address as a str, received the pathlib.Path {path}.", f"Pass '{first}//…'.")
    return path


def is_remote(path: object) -> bool:
    """Whether a path, or the text of one, is an address."""
    return isinstance(as_path(path), RemotePath) if isinstance(path, str) else isinstance(path, RemotePath)


def absolute(path: str | os.PathLike | RemotePath) -> str:
    """The text of a path that no longer depends on where the program runs; an address never does."""
    path = as_path(path)
    return str(path) if isinstance(path, RemotePath) else os.path.abspath(path)


def are_files(paths: Iterable[Path | RemotePath]) -> list[bool]:
    """Whether each path is a file; of remote folders, one listing each instead of a request a file."""
    names: dict[RemotePath, set[str]] = {}
    found = []
    for path in paths:
        if not isinstance(path, RemotePath):
            found.append(os.path.isfile(path))
            continue
        if path.parent not in names:
            names[path.parent] = set(path.parent.names(missing_ok=True))
        found.append(path.name in names[path.parent])
    return found


@functools.total_ordering
class RemotePath:
    """What this package uses of `pathlib.Path`, for an address.

    It has no `__fspath__`: what only knows local files (`open`, `os`, `pathlib`) fails instead of making a folder named
    `gs:`. Folders are never renamed or linked, since object stores know neither. `..` ends at the bucket.

    Args:
        address: `scheme://bucket/path`.
    """

    __slots__ = ("_path", "scheme")

    def __init__(self, address: str):
        scheme, rest = ADDRESS.fullmatch(address).groups()
        self.scheme = scheme.lower()
        self._path = PurePosixPath(posixpath.normpath("/" + rest.lstrip("/")).lstrip("/"))

    # ---- the address ----

    def __str__(self) -> str:
        path = str(self._path)
        return f"{self.scheme}://{'' if path == '.' else path}"

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    def __hash__(self) -> int:
        return hash(str(self))

    def __eq__(self, other) -> bool:
        return isinstance(other, RemotePath) and str(self) == str(other)

    def __lt__(self, other) -> bool:
        return str(self) < str(other)

    def __truediv__(self, name: str | PurePosixPath) -> RemotePath:
        return RemotePath(f"{self}/{name}")

    def _with(self, path: PurePosixPath) -> RemotePath:
        return RemotePath(f"{self.scheme}://{path}")

    @property
    def name(self) -> str:
        return self._path.name

    @property
    def stem(self) -> str:
        return self._path.stem

    @property
    def suffix(self) -> str:
        return self._path.suffix

    @property
    def parts(self) -> tuple[str, ...]:
        return (f"{self.scheme}://", *self._path.parts)

    @property
    def parent(self) -> RemotePath:
        return self._with(self._path.parent)

    @property
    def parents(self) -> list[RemotePath]:
        return [self._with(path) for path in self._path.parents]

    def with_name(self, name: str) -> RemotePath:
        return self._with(self._path.with_name(name))

    def with_suffix(self, suffix: str) -> RemotePath:
        return self._with(self._path.with_suffix(suffix))

    def relative_to(self, other: RemotePath) -> PurePosixPath:
        return self._path.relative_to(other._path)

    def is_relative_to(self, other: str | RemotePath) -> bool:
        other = as_path(other)
        return isinstance(other, RemotePath) and self.scheme == other.scheme and self._path.is_relative_to(other._path)

    # ---- what is there ----

    def stat(self) -> SimpleNamespace:
        """`st_size` in bytes and `st_mtime_ns`; `is_dir`. Raises FileNotFoundError."""
        found = self._call("stat")
        return SimpleNamespace(st_size=found.length, st_mtime_ns=found.mtime_nsec, is_dir=found.is_directory)

    def _is_dir(self) -> bool | None:
        """None where there is nothing."""
        try:
            return self.stat().is_dir
        except FileNotFoundError:
            return None

    def exists(self) -> bool:
        return self._is_dir() is not None

    def is_dir(self) -> bool:
        return self._is_dir() is True

    def is_file(self) -> bool:
        return self._is_dir() is False

    def names(self, missing_ok: bool = False) -> list[str]:
        """What a folder holds, sorted; folders may end in a slash, as some file systems tell."""
        try:
            names = sorted({name for name in self._call("listdir") if name.strip("/")})
        except FileNotFoundError:
            if missing_ok:
                return []
            raise
        if self.scheme == "ram":  # which takes `ab/` for a child of `a`, named `b`
            return [name for name in names if (self / name).exists()]
        return names

    def iterdir(self) -> Iterator[RemotePath]:
        return (self / name for name in self.names())

    def entries(self) -> Iterator[tuple[RemotePath, bool]]:
        """What a folder holds, and whether each is a folder."""
        for name in self.names():
            child = self / name
            yield child, name.endswith("/") or child.is_dir()

    def glob(self, pattern: str) -> Iterator[RemotePath]:
        first, _, rest = pattern.partition("/")
        for name in self.names(missing_ok=True):
            if fnmatch.fnmatchcase(name.rstrip("/"), first):
                yield from (self / name).glob(rest) if rest else [self / name]

    def rglob(self, pattern: str) -> Iterator[RemotePath]:
        for child, is_folder in self.entries() if self.is_dir() else ():
            if fnmatch.fnmatchcase(child.name, pattern):
                yield child
            if is_folder:
                yield from child.rglob(pattern)

    # ---- contents ----

    def open(
        self, mode: str = "r", encoding: str | None = None, errors: str | None = None
    ) -> io.BufferedIOBase | io.TextIOWrapper:
        """A file to read or write whole; what is written is there when it is closed."""
        kind = mode.replace("b", "")
        if kind not in ("r", "w"):
            raise UserError("mode", f"Expected r or w for {self}, received {mode}.", "Read or write the whole file.")
        if kind == "r":
            if self.stat().is_dir:
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(self))
        elif self.scheme == "ram":  # what is there is added to, and folders are only listed once they are made
            self.unlink(missing_ok=True)
            self.parent.mkdir(parents=True, exist_ok=True)
        raw = _RemoteFile(self, kind)
        binary = io.BufferedReader(raw, 1 << 20) if kind == "r" else io.BufferedWriter(raw)
        return binary if "b" in mode else io.TextIOWrapper(binary, encoding=encoding or "utf-8", errors=errors)

    def read_bytes(self) -> bytes:
        with self.open("rb") as file:
            return file.read()

    def read_text(self, encoding: str = "utf-8", errors: str | None = None) -> str:
        with self.open("r", encoding, errors) as file:
            return file.read()

    def read_range(self, start: int, length: int) -> bytes:
        """Some bytes of a file, without those before them."""
        with _RemoteFile(self, "r") as file:
            file.seek(start)
            return file.read(length)

    def write_bytes(self, content: bytes) -> None:
        with self.open("wb") as file:
            file.write(content)

    def write_text(self, text: str, encoding: str = "utf-8") -> None:
        self.write_bytes(text.encode(encoding))

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        if not exist_ok and self.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(self))
        if self._path.parts:
            self._call("makedirs")

    def unlink(self, missing_ok: bool = False) -> None:
        with contextlib.suppress(*([FileNotFoundError] if missing_ok else [])):
            self._call("remove")

    def replace(self, target: RemotePath) -> None:
        """Gives a file another name. An object store copies it for that and then removes the first."""
        if self.scheme == "ram":
            target.unlink(missing_ok=True)
        self._call("rename", str(target), overwrite=True)

    def rmtree(self) -> None:
        """Removes a folder with all that is in it."""
        files = [path for path in self.rglob("*") if path.is_file()] if self.scheme == "ram" else []
        for file in files:
            file.unlink()
        with contextlib.suppress(*([FileNotFoundError] if files else [])):  # of what ram:// takes for a child
            self._call("rmtree")

    def _call(self, function: str, *arguments, **options):
        return _asked(self, lambda gfile: getattr(gfile, function)(str(self), *arguments, **options))


class _RemoteFile(io.RawIOBase):
    """A `tf.io.gfile.GFile` in the manner of Python's files."""

    def __init__(self, path: RemotePath, kind: str):
        super().__init__()
        self._path, self._kind = path, kind
        self._file = _asked(path, lambda gfile: gfile.GFile(str(path), kind + "b"))
        if kind == "w":
            self._ask(lambda: self._file.write(b""))  # an empty file is a file too

    def _ask(self, operation):
        return _asked(self._path, lambda _: operation())

    def readable(self) -> bool:
        return self._kind == "r"

    def writable(self) -> bool:
        return self._kind == "w"

    def seekable(self) -> bool:
        return self._kind == "r"

    def readinto(self, buffer) -> int:
        content = self._ask(lambda: self._file.read(len(buffer)))
        buffer[: len(content)] = content
        return len(content)

    def readall(self) -> bytes:
        return self._ask(self._file.read)

    def write(self, content) -> int:
        self._ask(lambda: self._file.write(bytes(content)))
        return len(content)

    def tell(self) -> int:
        return self._ask(self._file.tell)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: lambda: 0, os.SEEK_CUR: self._file.tell, os.SEEK_END: self._file.size}[whence]
        self._ask(lambda: self._file.seek(start() + offset))
        return self.tell()

    def close(self) -> None:
        if not self.closed:
            self._ask(self._file.close)
        super().close()


# ---- asking TensorFlow ----


def _asked(path: RemotePath, operation):
    """What an operation of `tf.io.gfile` gives; its errors as Python's. A place not yet met gets PATIENCE, not more."""
    import tensorflow as tf

    place = "".join(path.parts[:2])
    if place not in _reached:
        _check_scheme(tf.io.gfile, path)
    try:
        found = operation(tf.io.gfile) if place in _reached else _in_time(lambda: operation(tf.io.gfile), path)
    except tf.errors.NotFoundError:
        _reached.add(place)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from None
    except tf.errors.OpError as error:
        reason = f"{type(error).__name__.removesuffix('Error')}: {one_line(error.message, 300).rstrip('.')}"
        raise RemoteError(
            f"{path} cannot be used: {reason}.", "Check the address, the network and the credentials."
        ) from None
    _reached.add(place)
    return found


def _in_time(operation, path: RemotePath):
    """The result of an operation, waited for no longer than PATIENCE."""
    done: list = []

    def attempt():
        try:
            done.append((operation(), None))
        except Exception as error:  # handed over to the thread that waits
            done.append((None, error))

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    if not done:
        raise RemoteError(
            f"{path} has not answered in {PATIENCE:g} s.", "Check the network, the proxy and the address."
        )
    result, error = done[0]
    if error is not None:
        raise error
    return result


def _check_scheme(gfile, path: RemotePath) -> None:
    if path.scheme not in gfile.get_registered_schemes() and importlib.util.find_spec(PLUGINS) is not None:
        importlib.import_module(PLUGINS)
    known = sorted(filter(None, gfile.get_registered_schemes()))
    if path.scheme in known:
        return
    near = difflib.get_close_matches(path.scheme, known, 1, 0.6)
    rest = str(path).partition("://")[2]
    fix = f"Did you mean {near[0]}://{rest}?" if near else "Use one of these, or install tensorflow-io."
    names = ", ".join(f"{name}://" for name in known)
    raise RemoteError(f"{path} is on a file system that TensorFlow does not know; it knows {names}.", fix)
