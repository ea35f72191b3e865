"""`export`: a backbone into a directory of its own, read again before it takes its name.

Whatever the format, the directory holds the weights, `model_card.md` and `manifest.json` (sha256 of every
file).
It appears under its name only when it is complete and right: a killed or refused export leaves nothing there.
"""

import os
import pickletools
import shutil
from pathlib import Path

import numpy as np

from dupr_tf.models.resnet import pyramid
from dupr_tf.weights.detectron2_io import write_detectron2
from dupr_tf.weights.loading import KERAS_FILE, SAFETENSORS_FILE, load_backbone
from dupr_tf.weights.manifest import MANIFEST_FILE, check_directory, write_manifest
from dupr_tf.weights.model_card import model_card
from dupr_tf.weights.names import torch_arrays
from dupr_tf.weights.saved_model import write_saved_model
from dupr_tf.weights.torch_io import to_torchvision, write_safetensors

FORMATS = ("saved_model", "keras", "detectron2", "torchvision")
DETECTRON2_FILE = "backbone.pkl"
TOLERANCE = 1e-4  # largest difference of any feature, between the model in memory and what was written


def export(backbone, to, output, overwrite=False, card=None):
    """Write a backbone in one format, verify it by reading it again, and describe it.

    Args:
        backbone: a `ResNetBackbone`; for `keras` and `saved_model` any model `pyramid` accepts.
        to: `saved_model` (raw images in, P2..P5 out), `keras` (`backbone.keras`), `detectron2`
            (`backbone.pkl`) or `torchvision` (`backbone.safetensors`).
        output: the directory to make.
        overwrite: replace `output` if it is an earlier export (it has a `manifest.json`).
        card: further facts for the model card, `{"data": "…", "epochs": 200}`.

    Returns:
        The path of the directory.

    Raises:
        ValueError: for an unknown format, an output that exists, or features that differ by more than 1e-4.
    """
    output = Path(output)
    if to not in FORMATS:
        raise ValueError(f"Expected one of {', '.join(FORMATS)}, received {to!r}. Fix: choose one of them.")
    _check_output(output, overwrite)
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        difference = _WRITERS[to](backbone, partial)
        if not difference <= TOLERANCE:  # NaN is refused too
            raise ValueError(
                f"Expected the {to} export to give the model's features to {TOLERANCE}, received a "
                f"difference of {difference}. Fix: check the weights for NaN; nothing was left at {output}."
            )
        text = model_card(backbone, to, difference, card or {})
        (partial / "model_card.md").write_text(text, encoding="utf-8")
        write_manifest(partial, {"format": to, "written_by": "dupr_tf", "difference": difference})
        check_directory(partial)
        _move_into_place(partial, output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return output


def _check_output(output, overwrite):
    """Refuse whatever would have to be destroyed that is not an export."""
    if output.suffix in (".keras", ".pkl", ".safetensors"):
        raise ValueError(
            f"Expected a directory as output, received {output}. Fix: drop the ending; the file goes inside."
        )
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not overwrite:
        raise ValueError(
            f"Expected a new output, received {output}, which exists. Fix: pass overwrite, or another name."
        )
    if not (output / MANIFEST_FILE).is_file():
        raise ValueError(
            f"Expected an earlier export to overwrite, received {output}, which has no {MANIFEST_FILE}. "
            "Fix: choose another output, or remove it yourself."
        )


def _move_into_place(partial, output):
    """Rename; an earlier export steps aside first and is removed last: one of the two is always whole."""
    if not output.exists():
        partial.rename(output)
        return
    earlier = output.with_name(f".{output.name}.earlier-{os.getpid()}")
    output.rename(earlier)
    partial.rename(output)
    shutil.rmtree(earlier)


# Each writer fills a directory, reads it again, and returns the largest difference it found.


def _write_keras(backbone, directory):
    backbone.save(directory / KERAS_FILE)
    return _reloaded_difference(backbone, directory)


def _write_torchvision(backbone, directory):
    state = to_torchvision(backbone)  # first: it refuses other models
    facts = {"architecture": backbone.architecture, "width": str(backbone.width)}
    write_safetensors(state, directory / SAFETENSORS_FILE, metadata=facts)
    return _reloaded_difference(backbone, directory)


def _write_detectron2(backbone, directory):
    """No pickle is loaded, ours included: its opcodes are listed, which runs nothing, its bytes compared."""
    write_detectron2(backbone, directory / DETECTRON2_FILE)
    strings, blobs = set(), []
    for opcode, argument, _ in pickletools.genops((directory / DETECTRON2_FILE).read_bytes()):
        if opcode.name == "BINBYTES":
            blobs.append(np.frombuffer(argument, "<f4"))
        elif opcode.name == "BINUNICODE":
            strings.add(argument)
    arrays = torch_arrays(backbone, "detectron2")
    if len(blobs) != len(arrays) or not strings.issuperset(arrays):
        return float("inf")
    return _largest_difference([array.ravel() for array in arrays.values()], blobs)


_WRITERS = {
    "saved_model": write_saved_model,
    "keras": _write_keras,
    "detectron2": _write_detectron2,
    "torchvision": _write_torchvision,
}


def _reloaded_difference(backbone, directory):
    """Features of one image, from the model in memory and from the file, loaded the way a user would."""
    loaded = load_backbone(directory, getattr(backbone, "include_normalization", None))
    image = np.random.default_rng(0).integers(0, 256, (1, 96, 128, 3), dtype=np.uint8)
    levels = tuple(getattr(backbone, "pyramid_outputs", None) or backbone.pyramid_level_inputs)
    expected, received = (pyramid(model, levels)(image, training=False) for model in (backbone, loaded))
    return _largest_difference([expected[level] for level in levels], [received[level] for level in levels])


def _largest_difference(expected, received):
    """Over pairs of arrays: infinite if shapes differ, NaN if there is one (Python's `max` would hide it)."""
    pairs = [(np.float32(a), np.float32(b)) for a, b in zip(expected, received, strict=True)]
    if any(a.shape != b.shape for a, b in pairs):
        return float("inf")
    return float(np.max([np.max(np.abs(a - b)) for a, b in pairs]))
