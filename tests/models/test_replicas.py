"""Compares the same step on one device and on several logical devices (docs/method.md, Step)."""

import subprocess
import sys

import numpy as np
import pytest


def run(folder, *names):
    """Returns the results of runs of `replica_run` in one process."""
    command = [sys.executable, "-m", "tests.models.replica_run", str(folder), *names]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return [dict(np.load(folder / f"{name}.npz")) for name in names]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Returns {run: results} of one device with all groups, and of two devices that share them."""
    names = ["terms,1,4,3", "terms,2,4,3", "overflow,2,2,1"]
    return dict(zip(names, run(tmp_path_factory.mktemp("replicas"), *names), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("groups", [4, 8])
def test_as_many_devices_as_groups_equal_one_device(tmp_path, groups):
    one, many = run(tmp_path, f"recipe,1,{groups},4", f"recipe,{groups},{groups},4")
    same_numbers(one, many)
    assert many["replicas_agree"]


def same_numbers(one, many):
    np.testing.assert_allclose(many["losses"][0], one["losses"][0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(many["losses"], one["losses"], rtol=2e-5, atol=1e-6)  # rounding adds up over steps
    for name in one:
        if name.startswith("bank"):
            np.testing.assert_allclose(many[name], one[name], atol=2e-4, err_msg=name)
    for name in ("weights", "key_weights"):
        np.testing.assert_allclose(many[name], one[name], atol=1e-5, err_msg=name)


def test_two_devices_equal_one_device(runs):
    """Logs, weights, banks and optimiser steps are equal, with DUPR's terms and with others."""
    one, two = logs_and_state(runs["terms,1,4,3"]), logs_and_state(runs["terms,2,4,3"])
    assert one.keys() == two.keys()
    for name, value in one.items():
        if "moving" not in name:  # each replica keeps the statistics of the groups it computed
            np.testing.assert_allclose(two[name], value, rtol=1e-4, atol=2e-5, err_msg=name)
    np.testing.assert_allclose(runs["terms,2,4,3"]["losses"][0], runs["terms,1,4,3"]["losses"][0], rtol=1e-5, atol=1e-6)
    assert runs["terms,2,4,3"]["replicas_agree"]


def logs_and_state(result):
    logs = dict(zip(result["names"], result["losses"].T, strict=True))
    return logs | {name: value for name, value in result.items() if name.startswith("state ")}


def test_terms_of_other_methods_log_their_columns(runs):
    logs = logs_and_state(runs["terms,1,4,3"])
    expected = {"loss/byol", "cosine/byol", "loss/classes", "accuracy/classes", "std/image_P5", "match/patch_P4"}
    assert expected <= set(logs)
    assert not {"std/byol", "accuracy/byol"} & set(logs)
    assert logs["loss/classes"][0] == 0.0  # no label in the first batch
    np.testing.assert_allclose(logs["loss/byol"], 2.0 - 2.0 * logs["cosine/byol"], rtol=1e-5)
    weights = {"byol": 0.5, "classes": 0.7, "image_P5": 1.0, "patch_P4": 0.3}
    np.testing.assert_allclose(logs["loss"], sum(w * logs[f"loss/{name}"] for name, w in weights.items()), rtol=1e-5)


@pytest.mark.slow
def test_every_replica_holds_the_same_bits_after_fifty_steps(tmp_path):
    assert run(tmp_path, "plain,2,2,50")[0]["replicas_agree"]


@pytest.mark.slow
def test_number_of_groups_changes_the_results(tmp_path):
    many, few = (result["losses"][0] for result in run(tmp_path, "float32,1,4,1", "coarse,1,4,1"))
    assert np.abs(few - many).max() > 1e-2


@pytest.mark.slow
def test_float16_trains_on_two_devices_as_float32_does(tmp_path):
    half, full = run(tmp_path, "float16,2,2,2", "plain,2,2,2")
    assert half["replicas_agree"] and half["moved"] > 0
    losses = [name.startswith("loss") for name in half["names"]]
    np.testing.assert_allclose(half["losses"][0][losses], full["losses"][0][losses], rtol=0.02, atol=1e-3)
    assert all(half[name].dtype == np.float32 for name in half if name.startswith("bank"))


def test_overflow_on_one_replica_skips_the_step_on_all(runs):
    """Keras' loss scaling looks only at the first replica. It would let NaN from the second reach every weight."""
    result = runs["overflow,2,2,1"]
    assert result["replicas_agree"]
    assert result["moved"] == 0 and np.isfinite(result["weights"]).all()
    assert result["loss_scale"] == 2.0**14  # the scale was halved


@pytest.mark.slow
def test_nan_on_one_replica_is_logged_by_all(tmp_path):
    (poisoned,) = run(tmp_path, "nan,2,2,2")
    assert np.isnan(poisoned["losses"]).any(axis=1).tolist() == [False, True, True]
