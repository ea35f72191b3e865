"""Tests of the benchmark runner, on contestants that do no work."""

import dataclasses
import importlib
import io
import json
import re

import pytest
from rich.console import Console

from benchmarks.__main__ import NAMES, as_json, floor_lines, table_of
from benchmarks.contest import ROOT, Case, Contestant, run_case

WORKERS = "tests.benchmarks.workers"


def contest(*contestants, rounds=3):
    case = Case("a case", "units/s", contestants)
    lines = []
    return case, run_case(case, rounds, lines.append), lines


def sleeper(name, seconds, **settings):
    return Contestant(name, f"{WORKERS}:sleeper", {"seconds": seconds}, **settings)


def test_contestants_are_timed_in_turn_and_compared():
    case, (ours, peer), lines = contest(sleeper("ours", 0.02), sleeper("peer", 0.1))
    assert len(ours.rates) == len(peer.rates) == 3
    assert ours.rate > peer.rate
    assert [line.split(", ")[-1].split(":")[0] for line in lines if "round" in line] == ["ours", "peer"] * 3
    written = json.loads(json.dumps(as_json(case, [ours, peer])))
    assert written["contestants"][1]["ratio"] == ours.rate / peer.rate
    assert written["contestants"][0]["seconds"] == 0.02  # a fact
    assert table_of(case, [ours, peer]).row_count == 2


def test_only_fastest_of_heat_is_measured():
    _, results, _ = contest(
        sleeper("ours", 0.01), *(sleeper(f"peer {s}", s, heat="peers") for s in (0.1, 0.02, 0.2)), rounds=2
    )
    assert [r.name for r in results] == ["ours", "peer 0.02", "peer 0.1", "peer 0.2"]
    assert results[1].note == "" and len(results[1].rates) >= 2
    assert all(r.note.startswith("slower") and len(r.rates) == 1 for r in results[2:])


def test_missing_peer_is_noted_in_its_row():
    case, results, _ = contest(sleeper("ours", 0.0), sleeper("peer", 0.0, needs=("no_such_package",)))
    assert results[1].rate is None
    console = Console(width=200, file=io.StringIO())
    console.print(table_of(case, results))
    assert "no_such_package not installed. Fix: pip install -e '.[peers]'" in console.file.getvalue()


def test_dead_contestant_error_shows_its_last_output():
    with pytest.raises(RuntimeError, match=r"(?s)peer ended: .*no such luck"):
        contest(sleeper("ours", 0.0), Contestant("peer", f"{WORKERS}:broken"))


def test_memory_of_repeats_is_separate_from_warm_up():
    _, (result,), _ = contest(Contestant("ours", f"{WORKERS}:holder", {"mib": 50}), rounds=3)
    assert 190 < result.peak_mib - result.built_mib < 260  # the warm-up's array and three more


def test_floor_follows_from_counted_operations():
    _, (result,), _ = contest(sleeper("ours", 0.1), rounds=1)
    assert floor_lines(result) == []
    result.facts = {"gflop_an_image": {"convolutions": 3.0, "heads": 1.0}, "gflops_of_a_product": 80.0}
    result.rates = [10.0]
    assert floor_lines(result)[1].endswith("floor at the 80 GFLOP/s of a large product: 20 images/s; ours is 50%")


CONTESTS = [name for name in NAMES if name != "scaling"]  # it draws curves instead
TINY = {
    "architecture": "resnet18", "size": 64, "batch": 2, "groups": 1, "bank": 64, "roi_sizes": (16, 8, 4, 2),
    "queries": 32, "keys": 64, "images": 1, "channels": 8, "files": 8, "count": 2,
}  # fmt: skip


def contestants(name):
    return [each for case in importlib.import_module(f"benchmarks.{name}").cases(None) for each in case.contestants]


@pytest.mark.parametrize("name", CONTESTS)
def test_cases_of_every_benchmark_name_existing_functions(name):
    for contestant in contestants(name):
        module, _, function = contestant.build.partition(":")
        source = (ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")  # the module may import a peer
        assert re.search(rf"def {function}\({'[^)]*'.join(contestant.options)}", source)


def tiny():
    """Returns every contestant whose code path differs, at tiny sizes."""
    found = {}
    for name in CONTESTS:
        for each in contestants(name):
            small = dataclasses.replace(each, options={k: TINY.get(k, v) for k, v in each.options.items()})
            found.setdefault(f"{small.build} {small.options}", (name, small))
    return [pytest.param(small, id=f"{name}: {small.name}") for name, small in found.values()]


@pytest.mark.slow
@pytest.mark.parametrize("contestant", tiny())
def test_every_contestant_runs_at_tiny_sizes(contestant):
    _, (result,), _ = contest(contestant, rounds=1)
    if result.note:
        pytest.skip(result.note)
    assert result.rate > 0
