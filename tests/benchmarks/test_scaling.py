"""Tests of `bench scaling`: points measure what they claim, and a second start measures only missing points."""

import json

import pytest

from benchmarks import scaling
from benchmarks.scaling_points import IMAGE, names, shards, write_shards
from dupr_tf.data.shards.read import ShardSource


def point(part, value, seconds=1.0, mib=2.0):
    return {"part": part, "value": value, "seconds": {"all": seconds}, "mib": {"held": mib}}


def test_written_shards_can_be_read_by_a_run(tmp_path):
    write_shards(tmp_path, images=25, count=4)
    source = ShardSource(tmp_path)
    assert len(source) == 25 and len(source.shards) == 4
    assert [source.read(index) for index in (0, 7, 24)] == [IMAGE] * 3


def test_slopes_are_those_of_the_fitted_line():
    points = [point("shards", n, seconds=0.5 + 2e-6 * n, mib=10 + 20 * n / 2**20) for n in (10, 100, 1000)]
    assert scaling.slopes(points) == {"seconds of all": "2 µs", "memory held": "20 bytes"}
    assert scaling.slopes(points[:1]) == {}


def test_second_start_measures_only_missing_points(tmp_path, monkeypatch):
    asked = []

    def measured(part, values):
        asked.append((part, values))
        yield from (point(part, value) for value in values)

    monkeypatch.setattr(scaling, "ORDERS", (("shards", (10, 100)), ("names", (5,))))
    monkeypatch.setattr(scaling, "measured", measured)
    (tmp_path / "scaling.json").write_text(json.dumps([point("shards", 10)]))
    lines = []
    scaling.measure(tmp_path, "a machine", "a commit", lines.append)
    assert asked == [("shards", [100]), ("names", [5])]
    written = json.loads((tmp_path / "scaling.json").read_text())
    assert [(entry["part"], entry["value"]) for entry in written] == [("shards", 10), ("shards", 100), ("names", 5)]
    assert written[1]["machine"] == "a machine" and lines[0] == "shards 100: all 1000 ms; memory held 2.0 MiB"
    assert all((tmp_path / f"scaling_{part}.png").read_bytes()[:4] == b"\x89PNG" for part in ("shards", "names"))


def test_failed_part_error_shows_its_last_output(monkeypatch):
    monkeypatch.setattr(scaling, "POINTS", ("-c", "print('{\"value\": 1}', flush=True); raise KeyError('gone')"))
    found = scaling.measured("shards", [1, 2])
    assert next(found) == {"value": 1}
    with pytest.raises(RuntimeError, match=r"(?s)^shards ended: .*KeyError: 'gone'"):
        next(found)


@pytest.mark.parametrize("part", [names, lambda count: shards(count)])
def test_points_hold_seconds_and_memory(part, monkeypatch):
    monkeypatch.setattr("benchmarks.scaling_points.IMAGES", 50)
    monkeypatch.setattr("benchmarks.scaling_points.MOST", 1)
    found = part(5)
    assert all(value >= 0 for value in found["seconds"].values()) and set(found) == {"seconds", "mib"}
