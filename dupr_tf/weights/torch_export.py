"""Writes ResNets for torchvision and timm as safetensors, and compares them with the library if it is installed."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from dupr_tf.errors import RunFailed
from dupr_tf.models.resnet import IMAGENET_MEAN, IMAGENET_STD, LEVELS, ResNetBackbone
from dupr_tf.weights.formats import installed
from dupr_tf.weights.names import assign_arrays
from dupr_tf.weights.paths import SAFETENSORS_FILE
from dupr_tf.weights.torch_io import read_safetensors, to_torchvision, write_safetensors
from dupr_tf.weights.verify import (
    SIZES,
    Written,
    check_arrays,
    check_images,
    compare,
    features,
    float32_twin,
    normalized,
)

PTH_FILE = "backbone.pth"
TIMM_FILE = "model.safetensors"  # the names timm looks for in a directory
TIMM_CONFIG = "config.json"
PROCESS = Path(__file__).with_name("torch_process.py")


def write_torchvision(backbone, directory):
    """Write `backbone.safetensors`, and `backbone.pth` if PyTorch is installed; read and compare both.

    Args:
        backbone: a `ResNetBackbone`.
        directory: an existing, empty directory.

    Returns:
        A `Written`. With torchvision installed, it includes a comparison with torchvision's own network.
    """
    path = directory / SAFETENSORS_FILE
    written = Written(_write_state(backbone, path))
    if installed("torch"):
        answer = ask({"task": "pth", "weights": str(path), "output": str(directory / PTH_FILE)})
        if "unavailable" in answer:
            written.not_compared.append(f"torch, and no {PTH_FILE} was written: {answer['unavailable']}")
    return _compare_library("torchvision", backbone, path, written)


def write_timm(backbone, directory):
    """Write `model.safetensors` and `config.json` for `timm.create_model("local-dir:…", pretrained=True)`.

    Arguments and result are those of `write_torchvision`, with timm instead of torchvision.
    """
    path = directory / TIMM_FILE
    written = Written(_write_state(backbone, path))
    text = json.dumps(timm_config(backbone.architecture), indent=2)
    (directory / TIMM_CONFIG).write_text(text + "\n", encoding="utf-8")
    return _compare_library("timm", backbone, path, written)


def timm_config(architecture):
    """Return timm's `config.json` of a backbone without classifier: its name, and the image normalisation."""
    facts = {
        "num_classes": 0,
        "input_size": [3, 224, 224],
        "interpolation": "bilinear",
        "mean": [value / 255 for value in IMAGENET_MEAN],  # timm's images are in 0–1
        "std": [value / 255 for value in IMAGENET_STD],
        "first_conv": "conv1",
        "classifier": "fc",
    }
    return {"architecture": architecture, "num_classes": 0, "pretrained_cfg": facts}


def _write_state(backbone, path):
    """Write the state dict, compare the file to the last bit, and compare the features of a backbone made from it."""
    state = to_torchvision(backbone)
    write_safetensors(state, path, {"architecture": backbone.architecture, "width": str(backbone.width)})
    read, _ = read_safetensors(path)
    check_arrays(state, read, path.name)
    return reread_checks(backbone, read, "torchvision", f"{path.name}, read again")


def reread_checks(backbone, arrays, layout, against):
    """Compare a backbone with a new one that gets its weights from `arrays`, `{name in layout: array}`."""
    twin = float32_twin(backbone)
    again = ResNetBackbone.from_config(twin.get_config())
    assign_arrays(again, backbone.architecture, arrays, layout)
    return compare(against, lambda x: features(twin, x), lambda x: features(again, x), _inputs)


def _inputs(size):
    return normalized(check_images(size))


def _why_not(backbone, library):
    """Return why a backbone cannot be run in a library, or nothing."""
    if not installed(library):
        return f"{library}: not installed"
    return "" if backbone.width == 1 else f"{library}: it has no {backbone.architecture} of width {backbone.width:g}"


def _compare_library(library, backbone, weights, written):
    """Add a comparison with the library's own network on the same images, or the reason why there is none."""
    reason = _why_not(backbone, library)
    if reason:
        written.not_compared.append(reason)
        return written
    with tempfile.TemporaryDirectory() as folder:
        images, output = Path(folder) / "images.npz", Path(folder) / "features.npz"
        np.savez(images, **{str(size): _inputs(size) for size in SIZES})
        job = {"task": library, "architecture": backbone.architecture, "weights": str(weights)}
        answer = ask({**job, "images": str(images), "output": str(output)})
        if "unavailable" in answer:
            written.not_compared.append(f"{library}: {answer['unavailable']}")
            return written
        with np.load(output, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    twin = float32_twin(backbone)
    written.checks += compare(
        f"{library} {answer['version']}",
        lambda x: features(twin, x),
        lambda x: {level: arrays[f"{x.shape[1:3]} {level}"] for level in LEVELS},
        _inputs,
    )
    return written


def ask(job):
    """Run a job of `torch_process` in a separate process, and return its result.

    Raises:
        RunFailed: if it fails, or if a name has no counterpart.
    """
    # -P keeps the script's folder off the path; otherwise our modules would hide other packages of the same name.
    command = [sys.executable, "-P", str(PROCESS), json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise RunFailed(f"{job['task']} cannot load the export: {reason[:300]}.")
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    if answer.get("missing") or answer.get("unexpected"):
        raise RunFailed(
            f"{job['task']} finds arrays without a place: missing {answer['missing'][:5]}, unexpected "
            f"{answer['unexpected'][:5]}. This is a defect of the table of names; please report it."
        )
    return answer
