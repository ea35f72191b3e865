"""Transfers one file over HTTP with pooch, and resumes a transfer that broke."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urljoin

from dupr_tf import __version__
from dupr_tf.errors import RunFailed, UserError
from dupr_tf.files import read_bounded, write_whole
from dupr_tf.text import one_line, size_text
from dupr_tf.weights.catalogue import Remote

log = logging.getLogger(__name__)
CHUNK = 1 << 16  # bytes; a broken connection loses less than one
MOST_BYTES = 16 << 30
TIMEOUT = (10, 60)  # seconds to connect, and between two pieces
ATTEMPTS = 5  # as long as each brings some bytes
MOST_TAG = 1000  # bytes
MISSING = "Only public files can be downloaded. Check the name, or pass the path of a file that you have downloaded."


def transfer(remote: Remote, part: Path) -> str | None:
    """Downloads a file to `part`, and resumes there if an earlier attempt broke.

    Returns:
        The sha256 that the Hugging Face hub announces for the file; None for other servers.

    Raises:
        UserError: there is no public file at the address.
        RunFailed: the server cannot be reached or fails, or the disk has too little space.
    """
    import requests

    for attempt in range(ATTEMPTS):
        before = _size(part)
        try:
            return _request(remote, part)
        except requests.exceptions.HTTPError as error:
            status = error.response.status_code
            if status != 416 or not before:
                raise _refusal(remote, status) from None
            discard(part)  # it is as long as the file, or longer
        except requests.exceptions.RequestException as error:
            if attempt == ATTEMPTS - 1 or _size(part) <= before:
                raise _unreachable(remote, error, part) from None
            log.info("the connection broke after %s; resuming", size_text(_size(part)))
    raise RunFailed(f"The download of {remote.url} did not end. Run the same command again to resume.")


class _Answer:
    """Checks the answers of a server before a body is written.

    requests calls it for each answer, redirects included. It raises for an answer that is no file.
    """

    def __init__(self, remote: Remote, file: _File, part: Path):
        self.remote, self.file, self.part = remote, file, part
        self.announced: str | None = None
        self.total: int | None = None

    def __call__(self, response, **_) -> None:
        if self.remote.on_hub:
            linked = response.headers.get("X-Linked-ETag", "").strip('W/"')
            self.announced = linked if re.fullmatch("[0-9a-f]{64}", linked) else self.announced
        if response.is_redirect:
            self._check_redirect(response)
        elif response.ok:
            self._check_file(response)

    def _check_redirect(self, response) -> None:
        target = urljoin(response.url, response.headers["Location"])
        if response.url.startswith("https://") and not target.startswith("https://"):
            problem = f"The server of {self.remote.url} sends on to an address that is not encrypted."
            raise UserError("--weights", problem, "Download the file yourself, and pass its path.")

    def _check_file(self, response) -> None:
        import requests

        if response.headers.get("Content-Type", "").startswith("text/html"):
            raise UserError("--weights", f"The server sent a web page for {self.remote.url}, no file.", MISSING)
        if response.status_code != 206:
            self.file.start_again()
        elif not _continues(response, self.file.size):
            self.file.start_again()
            raise requests.exceptions.ConnectionError("the server sent another part of the file than asked for")
        length = response.headers.get("Content-Length", "")
        if length.isdigit():
            self.total = self.file.size + int(length)
            self._check_space(int(length))
        _keep_tag(response, self.part)

    def _check_space(self, length: int) -> None:
        free = shutil.disk_usage(self.part.parent).free
        if length > free:
            raise RunFailed(
                f"{self.remote.name} needs {size_text(length)}, and {self.part.parent} has {size_text(free)} left. "
                "Free some space, or set DUPR_CACHE to another folder."
            )


class _File:
    """Writes to the end of an unfinished file, up to a limit, and moves a bar.

    Args:
        file: opened for appending.
        limit: largest number of bytes.
    """

    def __init__(self, file, limit: int = MOST_BYTES):
        self._file, self._limit = file, limit
        self.size = os.fstat(file.fileno()).st_size
        self.moved = lambda size: None

    def start_again(self) -> None:
        self._file.truncate(0)
        self.size = 0

    def write(self, chunk: bytes) -> None:
        self.size += len(chunk)
        if self.size > self._limit:
            raise UserError("--weights", f"The file has more than {size_text(self._limit)}.", "Pass another address.")
        self._file.write(chunk)
        self.moved(self.size)

    def flush(self) -> None:
        self._file.flush()


def _request(remote: Remote, part: Path) -> str | None:
    """Sends one request, and writes the body to the end of `part`. Returns the announced sha256."""
    import pooch
    import requests

    tag = _read_tag(part)
    if tag is None:
        discard(part)  # without a tag of the server, the rest might be that of another file
    headers = {"Accept-Encoding": "identity", "User-Agent": f"dupr_tf/{__version__}"}
    if _size(part):
        headers |= {"Range": f"bytes={_size(part)}-", "If-Range": tag}
    try:
        with part.open("ab") as opened:
            file = _File(opened)
            answer = _Answer(remote, file, part)
            get = pooch.HTTPDownloader(chunk_size=CHUNK, timeout=TIMEOUT, headers=headers, hooks={"response": answer})
            with _bar(remote, file, answer):
                get(remote.contacted, file, None)
            opened.flush()
            os.fsync(opened.fileno())
    finally:
        if not _size(part):
            discard(part)
    if not file.size or (answer.total is not None and file.size < answer.total):
        raise requests.exceptions.ConnectionError("the connection ended early")
    return answer.announced


@contextlib.contextmanager
def _bar(remote: Remote, file: _File, answer: _Answer) -> Iterator[None]:
    """Shows the progress on a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(remote.name, total=None)
        file.moved = lambda size: progress.update(task, completed=size, total=answer.total)
        yield


def _continues(response, size: int) -> bool:
    """Returns True if a partial answer starts where the file on the disk ends."""
    match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return match is not None and int(match[1]) == size


def tag_file(part: Path) -> Path:
    """Returns the file with the server's tag of an unfinished download."""
    return part.with_name(f"{part.name}.tag")


def _keep_tag(response, part: Path) -> None:
    """Writes the mark of this version of the file: a strong ETag, or the date of its last change."""
    tag = response.headers.get("ETag", "")
    tag = tag if tag.startswith('"') else response.headers.get("Last-Modified", "")
    if tag and len(tag) <= MOST_TAG and tag.isascii():
        write_whole(tag_file(part), tag)
    else:
        tag_file(part).unlink(missing_ok=True)


def _read_tag(part: Path) -> str | None:
    try:
        return read_bounded(tag_file(part), MOST_TAG).decode("ascii")
    except (OSError, ValueError):
        return None


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def discard(part: Path) -> None:
    """Removes an unfinished download."""
    part.unlink(missing_ok=True)
    tag_file(part).unlink(missing_ok=True)


def _refusal(remote: Remote, status: int) -> Exception:
    """Returns the error for a status of the server."""
    if status in (401, 403, 404, 410):
        return UserError("--weights", f"There is no public file at {remote.contacted} (status {status}).", MISSING)
    return RunFailed(f"The server of {remote.contacted} answered with status {status}. Try again later.")


def _unreachable(remote: Remote, error: Exception, part: Path) -> RunFailed:
    reason = getattr(error.args[0] if error.args else None, "reason", error)  # of urllib3: why it could not connect
    rest = f" {size_text(_size(part))} are kept, and the next attempt resumes." if _size(part) else ""
    return RunFailed(
        f"{remote.contacted} could not be downloaded ({one_line(reason, 160)}).{rest} Check the network, or pass the "
        "path of a file that you have."
    )
