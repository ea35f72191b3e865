"""Tests of records as data: a damaged or hostile file gives one line at once."""

import os

import pytest

from dupr_tf.records import MOST_BYTES, digest, listing, mapping, parse_json, read_record, text, whole
from tests.refusals import refusal


def test_record_is_parsed(tmp_path):
    (tmp_path / "a.json").write_text('{"count": 3}')
    assert read_record(tmp_path / "a.json", lambda value: whole(value["count"])) == 3


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[" * 100_000,
        b'{"count": ' * 50_000,
        b"\xff",
        b"NaN",
        b'{"count": 1e999}',
        b"1" * 5000,
        b"[1]",
        b"null",
    ],
    ids=lambda content: repr(content[:12]),
)
def test_odd_record_names_its_file(tmp_path, content):
    path = tmp_path / "a\nb.json"
    path.write_bytes(content)
    error = refusal(read_record, path, lambda value: whole(value["count"]))
    assert "a\\nb.json" in error.problem and len(error.problem) < 400


def test_large_record_is_refused_without_reading(tmp_path):
    path = tmp_path / "a.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # sparse: reading it would take all memory
    refusal(read_record, path, mapping)
    path.write_bytes(b" " * (MOST_BYTES - 2) + b"{}")
    assert read_record(path, mapping) == {}


def test_path_that_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dead").symlink_to("nothing")
    for name in ("pipe", "folder", "loop", "dead", "missing"):
        assert name in refusal(read_record, tmp_path / name, mapping).problem


@pytest.mark.parametrize("value", [-1, 2**53 + 1, 2**64 - 40, 1.0, True, "1", None, [], 10**400])
def test_whole_refuses_all_but_natural_numbers(value):
    with pytest.raises(ValueError):
        whole(value)


def test_schemas_refuse_other_kinds():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    for schema in (mapping, text, digest, whole):
        with pytest.raises(ValueError) as error:
            schema(deep)
        assert len(str(error.value)) < 100
    for schema, value in ((listing, {}), (mapping, []), (text, "a" * 70_000), (digest, "A" * 64)):
        with pytest.raises(ValueError):
            schema(value)
    while deep:  # freeing a deep list at once overflows the stack of some interpreters
        deep = deep[0]


def test_key_that_occurs_twice_is_refused(tmp_path):
    with pytest.raises(ValueError, match="the key 'a' twice"):
        parse_json('{"b": [{"a": 1, "c": 2, "a": 3}]}')
