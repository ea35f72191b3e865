"""Tests of downloads of public weights, with a server on loopback. No other address is contacted."""

import hashlib
import json
import logging
import os
import random
import shutil
import socket
import subprocess
import sys

import pytest
import requests

from dupr_tf.errors import RunFailed
from dupr_tf.weights import download
from dupr_tf.weights.catalogue import Remote, find_public
from dupr_tf.weights.download import cache_folder, cached_file, fetch, origin_of
from dupr_tf.weights.transfer import MOST_BYTES, _Answer, _File
from tests.refusals import refusal
from tests.weights.server import serving

CONTENT = random.Random(0).randbytes(300_000)  # the same in every process, since test names have its hash
SHA256, MD5 = hashlib.sha256(CONTENT).hexdigest(), hashlib.md5(CONTENT).hexdigest()
PATH = "/a/weights.npz"


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("DUPR_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serving() as files:
        files.content[PATH] = CONTENT
        yield files


def remote(server, published=None, path=PATH):
    return Remote("some", server.url + path, "weights.npz", published)


def left():
    """Returns the endings of the files in the cache, without those of locks."""
    return sorted(path.name.partition("weights.npz")[2] for path in cache_folder().iterdir() if path.suffix != ".lock")


def failure(source) -> str:
    """Returns the message of the `RunFailed` of a download, after checking that it is one line."""
    with pytest.raises(RunFailed) as caught:
        fetch(source)
    assert "\n" not in str(caught.value) and "." in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("published", [None, f"sha256:{SHA256}", f"sha256:{SHA256[:8]}", f"md5:{MD5[:8]}"])
def test_file_is_downloaded_once_and_its_hash_recorded(server, published):
    source = remote(server, published)
    file = fetch(source)
    assert file.read_bytes() == CONTENT and file.parent == cache_folder() and file.suffix == ".npz"
    record = json.loads(file.with_name(f"{file.name}.json").read_text())
    assert (record["url"], record["sha256"], record["bytes"]) == (source.url, SHA256, len(CONTENT))
    assert origin_of(source) == {"url": source.url, "file_sha256": SHA256}
    assert fetch(source) == file and len(server.requests) == 1 and left() == ["", ".json"]


@pytest.mark.parametrize("published", ["sha256:" + "0" * 64, "sha256:00000000", "md5:00000000"])
def test_download_with_wrong_hash_is_removed(server, published):
    assert published in failure(remote(server, published))
    assert left() == []


def test_broken_connection_is_resumed(server):
    server.breaks[PATH] = [131_072, 65_536]
    assert fetch(remote(server)).read_bytes() == CONTENT
    assert server.requests == [(PATH, None), (PATH, "bytes=131072-"), (PATH, "bytes=196608-")]


def test_next_call_resumes_what_a_kill_left(server):
    server.breaks[PATH] = [131_072, 0]  # the second answer has no byte, so the first call gives up
    assert "131 kB" in failure(remote(server)) and ".part" in left()
    assert fetch(remote(server)).read_bytes() == CONTENT
    assert server.requests[-1] == (PATH, "bytes=131072-") and left() == ["", ".json"]


def test_rest_of_a_file_that_changed_is_not_appended(server):
    server.breaks[PATH] = [131_072, 0]
    failure(remote(server))
    server.content[PATH], server.headers[PATH] = CONTENT[::-1], {"ETag": '"two"'}
    assert fetch(remote(server)).read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("tag", ['W/"one"', ""])
def test_file_without_a_strong_tag_starts_again(server, tag):
    server.headers[PATH] = {"ETag": tag}
    server.breaks[PATH] = [131_072]
    assert fetch(remote(server)).read_bytes() == CONTENT
    assert server.requests == [(PATH, None), (PATH, None)]


def test_server_without_ranges_sends_the_file_again(server):
    server.ranges, server.breaks[PATH] = False, [131_072]
    assert fetch(remote(server)).read_bytes() == CONTENT


def test_part_longer_than_the_file_starts_again(server):
    server.breaks[PATH] = [131_072, 0]
    failure(remote(server))
    server.content[PATH] = CONTENT[:50_000]  # with the same tag, so the server answers 416
    assert fetch(remote(server)).read_bytes() == CONTENT[:50_000]
    assert server.requests[-2:] == [(PATH, "bytes=131072-"), (PATH, None)]


def test_other_part_than_asked_for_is_not_appended(server):
    server.breaks[PATH] = [131_072, 0]
    failure(remote(server))
    server.shift = 1
    failure(remote(server))
    assert fetch(remote(server)).read_bytes() == CONTENT


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_missing_file_is_an_error_of_the_user(server, status):
    server.status[PATH] = status
    error = refusal(fetch, remote(server))
    assert error.field == "--weights" and str(status) in error.problem and server.url in error.problem
    assert left() == []


@pytest.mark.parametrize("status", [416, 429, 500, 503])
def test_failing_server_is_a_failure(server, status):
    server.status[PATH] = status
    assert str(status) in failure(remote(server)) and len(server.requests) == 1


def test_redirect_is_followed(server):
    server.redirects["/old.npz"] = PATH
    file = fetch(remote(server, f"sha256:{SHA256}", "/old.npz"))
    assert file.read_bytes() == CONTENT and len(server.requests) == 2


def test_empty_file_is_a_failure(server):
    server.content[PATH] = b""
    failure(remote(server))
    assert left() == []


@pytest.mark.parametrize(
    ("start", "target"), [("https", "http://example.org/w.npz"), ("https", "//a/w"), ("http", "/w")]
)
def test_encrypted_address_may_not_lead_to_an_open_one(start, target, tmp_path):
    answer = _Answer(Remote("some", f"{start}://example.org/a", "w.npz"), None, tmp_path / "part")
    redirect = requests.Response()
    redirect.status_code, redirect.url, redirect.headers = 302, f"{start}://example.org/a", {"Location": target}
    redirect.headers = requests.structures.CaseInsensitiveDict(redirect.headers)
    if target.startswith("http://"):
        assert refusal(answer, redirect).field == "--weights"
    else:
        answer(redirect)


def test_endless_redirects_end(server):
    server.redirects[PATH] = PATH
    failure(remote(server))


def test_web_page_is_no_file(server):
    server.headers[PATH] = {"Content-Type": "text/html; charset=utf-8"}
    assert server.url in refusal(fetch, remote(server)).problem


def test_unreachable_server_is_one_line(server):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/weights.npz"
    assert url in failure(Remote("some", url, "weights.npz"))


def test_cached_file_needs_no_server(server):
    with serving() as other:
        other.content[PATH] = CONTENT
        source = remote(other)
        file = fetch(source)
    assert fetch(source) == file


def test_cached_file_without_record_is_adopted(server):
    source = remote(server, f"sha256:{SHA256}")
    file = cached_file(source)
    file.parent.mkdir(parents=True)
    file.write_bytes(CONTENT)
    assert fetch(source) == file and origin_of(source)["file_sha256"] == SHA256 and server.requests == []
    file.with_name(f"{file.name}.json").unlink()
    file.write_bytes(CONTENT[1:])
    assert str(file) in failure(source)


def test_changed_file_in_the_cache_is_detected(server):
    source = remote(server)
    file = fetch(source)
    file.write_bytes(b"x" + CONTENT[1:])
    assert str(file) in failure(source)


def test_later_download_is_compared_with_the_first(server):
    source = remote(server)
    file = fetch(source)
    file.unlink()
    assert fetch(source) == file
    file.unlink()
    server.content[PATH] = CONTENT[::-1]
    assert f"{file.name}.json" in failure(source) and not file.exists()


def test_file_of_the_hub_has_the_hash_that_the_hub_announces(server, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    source = find_public("hf:someone/net@v1/a/weights.npz")
    path = "/someone/net/resolve/v1/a/weights.npz"
    server.redirects[path], server.headers[path] = PATH, {"X-Linked-ETag": f'"{"0" * 64}"'}
    assert "0" * 64 in failure(source)
    server.headers[path] = {"X-Linked-ETag": f'"{SHA256}"'}
    assert fetch(source).read_bytes() == CONTENT
    assert origin_of(source)["url"] == "https://huggingface.co/someone/net/resolve/v1/a/weights.npz"


def test_too_little_space_is_noticed_before_the_body(server, monkeypatch):
    usage = shutil.disk_usage(cache_folder().parents[1])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=len(CONTENT) - 1))
    assert "300 kB" in failure(remote(server)) and "" not in left()


def test_full_disk_is_one_line(server, monkeypatch):
    def full(self, chunk):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(_File, "write", full)
    assert "full" in failure(remote(server))


def test_limit_of_size(tmp_path):
    with (tmp_path / "part").open("ab") as opened:
        file = _File(opened, limit=10)
        file.write(b"x" * 10)
        assert refusal(file.write, b"x").field == "--weights"
    assert MOST_BYTES > 1 << 30


def test_two_processes_download_once(server):
    server.delay = 0.5
    code = (
        "import sys; from dupr_tf.weights.catalogue import find_public; from dupr_tf.weights.download import fetch; "
        "print(fetch(find_public(sys.argv[1])))"
    )
    command = [sys.executable, "-c", code, server.url + PATH]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = {process.communicate(timeout=60)[0] for process in processes}
    assert len(printed) == 1 and [process.returncode for process in processes] == [0, 0]
    assert len(server.requests) == 1 and left() == ["", ".json"]


def test_unverified_hash_is_logged(server, caplog):
    caplog.set_level(logging.INFO, download.log.name)
    fetch(remote(server))
    assert SHA256 in caplog.text and len(server.requests) == 1


def test_cache_is_the_users_by_default(monkeypatch):
    monkeypatch.delenv("DUPR_CACHE", raising=False)
    assert cache_folder().is_absolute() and cache_folder().parts[-2:] == ("dupr_tf", "weights")
