"""Exports a backbone into its own directory, and reads it again before the directory gets its name.

In every format the directory holds the weights, `model_card.md` and `manifest.json` (sha256 of every file).
It appears under its name only when it is complete and verified: a killed or rejected export leaves nothing there.
"""

import os
import shutil

import numpy as np

from dupr_tf.errors import RunFailed, UserError, is_disk_full
from dupr_tf.files import plain_alias
from dupr_tf.weights.formats import EXPORTS, FORMATS
from dupr_tf.weights.manifest import check_directory, write_manifest
from dupr_tf.weights.model_card import model_card
from dupr_tf.weights.paths import export_output, export_stem, left_by_killed
from dupr_tf.weights.verify import TOLERANCE

__all__ = ["FORMATS", "export"]


def export(backbone, to, output, overwrite=False, card=None, allow_nonfinite=False, license=None):
    """Write a backbone in one format, verify it by reading it again, and describe it.

    Two images, an even-sized and an odd-sized one, go through the model and through the written file. The other
    library itself computes the features if it is installed; otherwise a backbone made from the file does.

    Args:
        backbone: a `ResNetBackbone`; for `keras`, `kerascv`, `saved_model` and `onnx` any model `pyramid` accepts.
            One that computes in half precision is written in float32.
        to: `keras` (`backbone.keras`), `saved_model` (raw images in, P2..P5 out), `onnx` (`backbone.onnx`, the same;
            extra `onnx`), `torchvision` (`backbone.safetensors`, and `backbone.pth` where PyTorch is installed),
            `timm` (`model.safetensors` and `config.json`), `detectron2` (`backbone.pkl` and its config lines),
            `kerashub` (a preset; extra `kerashub`), `kerascv` (`backbone.keras`, normalisation inside).
        output: the directory to create.
        overwrite: replace `output` if it is an earlier export, and has no other file.
        card: further facts for the model card, `{"data": "…", "epochs": 200}`.
        allow_nonfinite: write weights and features that are NaN or infinite, which are rejected otherwise.
        license: license of the weights, for the model card. Default: the card states that it is unknown.

    Returns:
        The path of the directory. Its manifest lists every comparison made.

    Raises:
        UserError: an unknown format or one whose extra is not installed, an output that exists, weights that are
            not finite, or a model that the format cannot hold.
        RunFailed: a tensor that is missing or has no name, features that differ by more than 1e-4 of the largest, or
            a full disk. `output` is then absent, or unchanged if it existed.
    """
    write = EXPORTS.load(to)
    output = export_output(output, overwrite)
    if not allow_nonfinite:
        check_finite(backbone)
    from dupr_tf.models.twins import in_full_precision  # loads TensorFlow

    backbone = in_full_precision(backbone)

    def fill(directory):
        written = write(backbone, directory)
        _check_features(written, to, output, allow_nonfinite)
        text = model_card(backbone, to, written, card or {}, license)
        (directory / "model_card.md").write_text(text, encoding="utf-8")
        return manifest_facts(to, written)

    return write_export(output, bytes_wanted(backbone, EXPORTS[to].facts.get("copies", 1)), fill)


def write_export(output, wanted, fill):
    """Fill a directory under a temporary name, add its manifest, and give it its name.

    Libraries do not accept every path, so the temporary one is plain, however odd `output` is.

    Args:
        output: the directory, as `export_output` returns it.
        wanted: bytes of its files, roughly.
        fill: function that writes into an empty directory, verifies it, and returns the facts for its manifest.

    Returns:
        `output`.

    Raises:
        RunFailed: the disk is full. `output` is then absent, or unchanged if it existed, as with any other error.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    _check_space(output.parent, wanted)
    with plain_alias(output.parent) as parent:
        for left in left_by_killed(output):
            shutil.rmtree(left, ignore_errors=True)
        stem = export_stem(output)
        partial, earlier = parent / f"{stem}.partial-{os.getpid()}", output.with_name(f"{stem}.earlier-{os.getpid()}")
        partial.mkdir()
        try:
            write_manifest(partial, fill(partial))
            check_directory(partial)
            _move_into_place(partial, output, earlier)
        except Exception as error:  # h5py, safetensors and TensorFlow each raise their own error for a full disk
            if not is_disk_full(error):
                raise
            raise RunFailed(_full(output.parent, wanted)) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return output


def check_finite(model, can_allow=True):
    """Raise UserError if a weight is NaN or infinite. With `can_allow`, it names the flag that writes them anyway."""
    bad = [variable.path for variable in model.weights if not np.isfinite(np.asarray(variable, np.float32)).all()]
    if bad:
        problem = f"{len(bad)} tensors of the weights contain NaN or infinity ({', '.join(bad[:3])})."
        allow = ", or pass --allow-nonfinite to write them anyway" if can_allow else ""
        raise UserError(None, problem, f"Use an earlier, sound checkpoint{allow}.")


def _check_features(written, to, output, allow_nonfinite):
    worst = written.worst()
    if not worst.relative <= TOLERANCE:
        raise RunFailed(
            f"The features of the {to} export differ from the model's by {worst.relative:.2e} of the largest "
            f"({worst.difference:.2e}; at most {TOLERANCE} is allowed) at {worst.level} of an image of {worst.image} "
            f"in {worst.against}. This is a defect, please report it; {output} was not written."
        )
    if not allow_nonfinite and not all(check.finite for check in written.checks):
        raise RunFailed(
            "The features contain NaN or infinity though the weights are finite: they overflow. Pass --allow-nonfinite "
            f"to write them anyway; {output} was not written."
        )


def manifest_facts(to, written):
    """Return the manifest's facts about a `Written`."""
    return {
        "format": to,
        "written_by": "dupr_tf",
        "difference": written.difference(),
        "relative_difference": written.worst().relative,
        "checks": [check._asdict() for check in written.checks],
        "not_compared": written.not_compared,
    }


def bytes_wanted(model, copies=1):
    """Estimate the bytes of the files: every weight in each copy, and a twentieth for names, graphs and the card."""
    weights = sum(4 * int(np.prod(variable.shape)) for variable in model.weights)
    return int(1.05 * weights * copies) + 1_000_000


def _check_space(directory, wanted):
    free = shutil.disk_usage(directory).free
    if free < wanted:
        raise RunFailed(_full(directory, wanted))


def _full(directory, wanted):
    free = shutil.disk_usage(directory).free
    return (
        f"The disk is full: the export takes {wanted:,} bytes and {directory} has {free:,} left. "
        "Free some space, or choose another output; nothing was written."
    )


def _move_into_place(partial, output, earlier):
    """Rename a directory. An earlier export is moved to `earlier`, removed last, and restored if the rename fails."""
    if not output.exists():
        partial.rename(output)
        return
    output.rename(earlier)
    try:
        partial.rename(output)
    except OSError:
        earlier.rename(output)
        raise
    shutil.rmtree(earlier)
