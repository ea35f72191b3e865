"""Loads a backbone from disk: a run's directory, an export's, a `.keras` file, or another tool's checkpoint."""

import dataclasses
import hashlib
import os

import keras
import numpy as np

from dupr_tf.errors import RunFailed, UserError
from dupr_tf.files import local_path
from dupr_tf.models.resnet import ResNetBackbone, stage_channels
from dupr_tf.models.twins import in_full_precision
from dupr_tf.text import one_line
from dupr_tf.weights.archives import check_archive
from dupr_tf.weights.foreign import read_checkpoint
from dupr_tf.weights.manifest import check_file
from dupr_tf.weights.names import weight_names
from dupr_tf.weights.paths import backbone_output, checkpoint_file, weights_file
from dupr_tf.weights.torch_io import dropped_keys, find_prefix, from_torchvision
from dupr_tf.weights.unfinished import load_unfinished


def load_backbone(path, include_normalization=None, allow_nonfinite=False):
    """Load a backbone: `dupr_tf.load_backbone("runs/photos")`, `dupr_tf.load_backbone("imagenet/resnet50")`.

    The key prefix of a checkpoint is detected automatically (`module.encoder_q.` for MoCo). Heads are skipped and
    listed in the log. A missing array of the backbone is an error.

    Args:
        path: a directory with `backbone.keras` (a run, an export) or `backbone.safetensors`, such a file under any
            name, or another tool's checkpoint with a ResNet (see `read_checkpoint`). As text also a public checkpoint,
            which is downloaded: a name of `dupr-tf list weights`, `hf:OWNER/NAME` or `https://…`. Of a run that has not
            ended, the newest undamaged checkpoint is read, and its step is logged. Files are checked against the
            `manifest.json` in the same directory, if there is one. Code in a `.keras` file (a `Lambda` layer) is never
            run, and pickles are not read.
        include_normalization: True or False gives a `ResNetBackbone` with or without the normalisation inside.
            Default: as saved (a safetensors file has none).
        allow_nonfinite: load NaN and infinity too, which are an error otherwise.

    Returns:
        A Keras model with `pyramid_outputs` or `pyramid_level_inputs`, which computes in float32.

    Raises:
        UserError: for a path that is missing, of another type, damaged, or not a backbone.
    """
    file = weights_file(path)
    check_file(file)
    if file.suffix in (".keras", ".index"):
        backbone = _load_keras(file) if file.suffix == ".keras" else load_unfinished(local_path(path))
        if not allow_nonfinite:
            _check_finite(backbone, file)
    else:
        backbone = from_torchvision(read_checkpoint(file), allow_nonfinite=allow_nonfinite)
    backbone = in_full_precision(backbone)
    if include_normalization in (None, getattr(backbone, "include_normalization", None)):
        return backbone
    return with_normalization(backbone, include_normalization)


def load_weights_for(architecture, width, path, include_normalization):
    """Load a backbone for a config; a `ResNetBackbone` must have the config's architecture and width.

    Raises:
        UserError: as for `load_backbone`, and for another architecture or width.
    """
    return check_architecture(load_backbone(path, include_normalization), architecture, width, path)


def check_architecture(backbone, architecture, width, path):
    """Return a backbone from a path. Raise UserError if it is a `ResNetBackbone` of another architecture or width."""
    if not isinstance(backbone, ResNetBackbone):
        return backbone
    if (backbone.architecture, stage_channels(backbone.width)) != (architecture, stage_channels(width)):
        raise UserError(
            None,
            f"Expected weights of {architecture} at width {width:g}, received {backbone.architecture} at "
            f"width {backbone.width:g} from {path}.",
            f"Use --model.backbone {backbone.architecture} --model.width {backbone.width:g}.",
        )
    return backbone


def weights_digest(backbone):
    """Return the sha256 of a backbone's weights, the same for every file format."""
    digest = hashlib.sha256()
    for value in backbone.get_weights():
        digest.update(f"{value.dtype}{value.shape}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class Imported:
    """The result of `import_backbone`: what it loaded from a checkpoint."""

    architecture: str
    width: float
    prefix: str  # prefix of the names of the ResNet that was used
    matched: int  # number of arrays
    dropped: tuple[str, ...]  # names not used: heads, queues, averaged encoders


def import_backbone(file, output, prefix=None, overwrite=False, allow_nonfinite=False):
    """Convert another tool's checkpoint to `output`, a `.keras` backbone, and read that file again.

    Args:
        file: see `read_checkpoint`.
        output: a path that ends in `.keras`. The file appears when it is complete.
        prefix: prefix of the names of the ResNet to use. Default: detected, see `find_prefix`.
        overwrite: replace an earlier output.
        allow_nonfinite: accept NaN and infinity too; otherwise the array that holds them is named and rejected.

    Returns:
        An `Imported`.

    Raises:
        UserError: names what is missing, of another shape, unknown or not finite, or why the output cannot be
            written. No output is then left.
        RunFailed: the disk is full.
    """
    output = backbone_output(output, overwrite)
    file = checkpoint_file(file)
    check_file(file)
    state = read_checkpoint(file)
    prefix = find_prefix(state) if prefix is None else prefix
    backbone = from_torchvision(state, prefix, allow_nonfinite=allow_nonfinite)
    dropped = dropped_keys(state, prefix)
    _save_keras(backbone, output)
    matched = len(weight_names(backbone.architecture))
    return Imported(backbone.architecture, backbone.width, prefix, matched, tuple(dropped))


def with_normalization(backbone, include_normalization):
    """Return a copy of a `ResNetBackbone` that normalises its images itself, or one that does not."""
    if not isinstance(backbone, ResNetBackbone):
        raise UserError(
            "backbone",
            f"Expected a ResNetBackbone, received `{backbone.name}` ({type(backbone).__name__}).",
            "Pass include_normalization=None and normalise images as that model needs it.",
        )
    copy = ResNetBackbone.from_config({**backbone.get_config(), "include_normalization": include_normalization})
    copy.set_weights(backbone.get_weights())  # the normalisation has no weights, so the lists are the same
    return copy


def _save_keras(backbone, output):
    """Save under a temporary name, read that file again, and only then rename it."""
    partial = output.with_name(f".{output.stem}.partial-{os.getpid()}.keras")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        try:
            backbone.save(partial)
            _compare(_load_keras(partial), backbone)
            os.replace(partial, output)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise RunFailed(
            f"{output} could not be written ({one_line(error, 120)}). Free some space or choose another output; "
            "nothing was written."
        ) from error


def _compare(written, backbone):
    for value, wanted in zip(written.get_weights(), backbone.get_weights(), strict=True):
        if not np.array_equal(value, wanted, equal_nan=True):
            raise OSError("the file read back differs from the written weights")


def _check_finite(backbone, file):
    for variable in backbone.weights:
        if not np.isfinite(np.asarray(variable, dtype=np.float32)).all():
            raise UserError(
                None,
                f"{variable.path} of {file} contains NaN or infinity.",
                "Use a run that did not diverge, or load_backbone(path, allow_nonfinite=True).",
            )


def read_keras(file):
    """Read the model of a `.keras` file. Code in it (a `Lambda` layer) is never run.

    Raises:
        UserError: if it cannot be read.
    """
    check_archive(file)
    try:
        return keras.saving.load_model(file, compile=False)  # safe_mode is Keras' default: no Lambda, no pickle
    except Exception as error:  # Keras passes on any error of zipfile, json and h5py
        raise UserError(
            None,
            f"{file} cannot be loaded as a Keras model without running its code ({one_line(error, 200)}).",
            "Copy the file again; for a model with custom classes, import them first.",
        ) from error


def _load_keras(file):
    model = read_keras(file)
    if not (getattr(model, "pyramid_outputs", None) or getattr(model, "pyramid_level_inputs", None)):
        raise UserError(
            None,
            f"{file} holds a {type(model).__name__} without a feature pyramid.",
            "Save the backbone itself (a ResNetBackbone), not a classifier or a detector on top of it.",
        )
    return model
