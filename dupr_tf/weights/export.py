"""`export`: a backbone into a directory of its own, read again before it takes its name.

Whatever the format, the directory holds the weights, `model_card.md` and `manifest.json` (sha256 of every
file).
It appears under its name only when it is complete and right: a killed or refused export leaves nothing there.
"""

import errno
import importlib
import os
import shutil

import numpy as np

from dupr_tf.remote_path import RemotePath, as_path
from dupr_tf.weights.compare import TOLERANCE
from dupr_tf.weights.formats import FORMATS, ExportError, check_format
from dupr_tf.weights.manifest import MANIFEST_FILE, check_directory, write_manifest
from dupr_tf.weights.model_card import model_card
from dupr_tf.whole_files import written_locally

__all__ = ["FORMATS", "ExportError", "export"]

# Format -> (module and function that fills a directory and returns a `Written`, files of all weights it makes).
_WRITERS = {
    "keras": ("keras_io", "write_keras", 1),
    "saved_model": ("saved_model", "write_saved_model", 1),
    "onnx": ("onnx_io", "write_onnx_directory", 1),
    "torchvision": ("torch_export", "write_torchvision", 2),
    "timm": ("torch_export", "write_timm", 1),
    "detectron2": ("detectron2_io", "write_detectron2_directory", 1),
    "kerashub": ("kerashub_io", "write_kerashub", 1),
    "kerascv": ("keras_io", "write_kerascv", 1),
}


def export(backbone, to, output, overwrite=False, card=None, allow_nonfinite=False, license=None):
    """Write a backbone in one format, verify it by reading it again, and describe it.

    Two images, an even-sized and an odd-sized one, go through the model and through what was written: in the other
    library itself where that is installed, otherwise in a backbone made from the file.

    Args:
        backbone: a `ResNetBackbone`; for `keras`, `kerascv`, `saved_model` and `onnx` any model `pyramid` accepts.
        to: `keras` (`backbone.keras`), `saved_model` (raw images in, P2..P5 out), `onnx` (`backbone.onnx`, the same;
            extra `onnx`), `torchvision` (`backbone.safetensors`, and `backbone.pth` where PyTorch is installed),
            `timm` (`model.safetensors` and `config.json`), `detectron2` (`backbone.pkl` and its config lines),
            `kerashub` (a preset; extra `kerashub`), `kerascv` (`backbone.keras`, normalisation inside).
        output: the directory to make.
        overwrite: replace `output` if it is an earlier export (it has a `manifest.json`).
        card: further facts for the model card, `{"data": "…", "epochs": 200}`.
        allow_nonfinite: write weights and features that are NaN or infinite, which are refused otherwise.
        license: of the weights, for the model card; None says that it is not stated.

    Returns:
        The path of the directory. Its manifest has every comparison that was made.

    Raises:
        ValueError: for an unknown format or one whose extra is not installed, an output that exists, weights that are
            not finite, or a model that the format has no place for.
        ExportError: for a tensor that is missing or has no name, features that differ by more than 1e-4 of the
            largest, or a full disk. Nothing is left at `output`, or what was there before.
    """
    output = as_path(output)
    check_format(to)
    _check_output(output, overwrite)
    if isinstance(output, RemotePath):
        return _export_remotely(output, backbone, to, overwrite, card, allow_nonfinite, license)
    if not allow_nonfinite:
        _check_finite(backbone)
    wanted = _bytes_wanted(backbone, to)
    output.parent.mkdir(parents=True, exist_ok=True)
    _check_space(output.parent, wanted)
    partial = output.with_name(f".{output.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        written = _write(backbone, to, partial)
        _check_features(written, to, output, allow_nonfinite)
        text = model_card(backbone, to, written, card or {}, license)
        (partial / "model_card.md").write_text(text, encoding="utf-8")
        write_manifest(partial, _manifest_facts(to, written))
        check_directory(partial)
        _move_into_place(partial, output)
    except Exception as error:  # h5py, safetensors and TensorFlow each tell of a full disk in their own way
        if not _disk_is_full(error):
            raise
        raise ExportError(_full(output.parent, wanted)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return output


def _export_remotely(output, backbone, to, overwrite, *options):
    """Export here, then upload; the manifest comes last, and that of an earlier export goes first."""
    with written_locally(output, last=MANIFEST_FILE) as local:
        export(backbone, to, local, False, *options)
        if overwrite and output.exists():
            (output / MANIFEST_FILE).unlink(missing_ok=True)
            output.rmtree()
    return output


def _write(backbone, to, directory):
    module, function, _ = _WRITERS[to]
    return getattr(importlib.import_module(f"dupr_tf.weights.{module}"), function)(backbone, directory)


def _check_output(output, overwrite):
    """Refuse whatever would have to be destroyed that is not an export."""
    if output.suffix in (".keras", ".pkl", ".safetensors", ".onnx", ".pth"):
        raise ValueError(
            f"Expected a directory as output, received {output}. Fix: drop the ending; the file goes inside."
        )
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not overwrite:
        raise ValueError(
            f"Expected a new output, received {output}, which exists. Fix: pass --overwrite, or another name."
        )
    if not (output / MANIFEST_FILE).is_file():
        raise ValueError(
            f"Expected an earlier export to overwrite, received {output}, which has no {MANIFEST_FILE}. "
            "Fix: choose another output, or remove it yourself."
        )


def _check_finite(backbone):
    bad = [variable.path for variable in backbone.weights if not np.isfinite(np.asarray(variable, np.float32)).all()]
    if bad:
        raise ValueError(
            f"Expected finite weights, received NaN or infinity in {len(bad)} tensors ({', '.join(bad[:3])}). "
            "Fix: use an earlier, sound checkpoint; --allow-nonfinite writes them all the same."
        )


def _check_features(written, to, output, allow_nonfinite):
    worst = written.worst()
    if not worst.relative <= TOLERANCE:
        raise ExportError(
            f"Expected the {to} export to give the model's features to {TOLERANCE} of the largest, received "
            f"{worst.relative:.2e} ({worst.difference:.2e}) at {worst.level} of an image of {worst.image} in "
            f"{worst.against}. Fix: this is a defect, please report it; nothing was left at {output}."
        )
    if not allow_nonfinite and not all(check.finite for check in written.checks):
        raise ExportError(
            "Expected finite features from finite weights, received NaN or infinity. "
            f"Fix: these weights overflow; --allow-nonfinite writes them all the same. Nothing was left at {output}."
        )


def _manifest_facts(to, written):
    return {
        "format": to,
        "written_by": "dupr_tf",
        "difference": written.difference(),
        "relative_difference": written.worst().relative,
        "checks": [check._asdict() for check in written.checks],
        "not_compared": written.not_compared,
    }


def _bytes_wanted(backbone, to):
    """What the files will take: every weight in each copy, and a twentieth for names, graphs and the card."""
    weights = sum(4 * int(np.prod(variable.shape)) for variable in backbone.weights)
    return int(1.05 * weights * _WRITERS[to][2]) + 1_000_000


def _check_space(directory, wanted):
    free = shutil.disk_usage(directory).free
    if free < wanted:
        raise ExportError(_full(directory, wanted))


def _full(directory, wanted):
    free = shutil.disk_usage(directory).free
    return (
        f"Expected room for {wanted:,} bytes in {directory}, received a disk that is full ({free:,} bytes free). "
        "Fix: make room, or choose another output; nothing was left there."
    )


def _disk_is_full(error):
    """Whether an error, or one it came from, is that of a full disk or quota."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(os.strerror(code) in str(error) for code in (errno.ENOSPC, errno.EDQUOT)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _move_into_place(partial, output):
    """Rename; an earlier export steps aside first and is removed last: one of the two is always whole."""
    if not output.exists():
        partial.rename(output)
        return
    earlier = output.with_name(f".{output.name}.earlier-{os.getpid()}")
    output.rename(earlier)
    partial.rename(output)
    shutil.rmtree(earlier)
