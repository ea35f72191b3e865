"""A backbone from disk: a run's directory, an export's, a `.keras` file or torchvision-named safetensors."""

from pathlib import Path

import keras

from dupr_tf.models.resnet import ResNetBackbone
from dupr_tf.weights.manifest import check_file
from dupr_tf.weights.torch_io import from_torchvision, read_safetensors

KERAS_FILE = "backbone.keras"
SAFETENSORS_FILE = "backbone.safetensors"


def load_backbone(path, include_normalization=None):
    """Load a backbone.

    Args:
        path: a directory with `backbone.keras` (a run, an export) or `backbone.safetensors`, or such a file
            by any name. Files are checked against the `manifest.json` beside them, if there is one. Code in a
            `.keras` file (a `Lambda` layer) is never run, and pickles are not read.
        include_normalization: None keeps what was saved (a safetensors file has none); True or False gives a
            `ResNetBackbone` with or without the normalisation inside.

    Returns:
        A Keras model with `pyramid_outputs` or `pyramid_level_inputs`.

    Raises:
        ValueError: in one line, for a path that is missing, of another type, damaged, or not a backbone.
    """
    file = _file_of(Path(path))
    check_file(file)
    torch_layout = file.suffix == ".safetensors"
    backbone = from_torchvision(read_safetensors(file)[0]) if torch_layout else _load_keras(file)
    if include_normalization in (None, getattr(backbone, "include_normalization", None)):
        return backbone
    return with_normalization(backbone, include_normalization)


def with_normalization(backbone, include_normalization):
    """Return a copy of a `ResNetBackbone` that normalises its images itself, or one that does not."""
    if not isinstance(backbone, ResNetBackbone):
        raise ValueError(
            f"Expected a ResNetBackbone, received `{backbone.name}` ({type(backbone).__name__}). "
            "Fix: pass include_normalization=None and normalise as that model needs it."
        )
    copy = ResNetBackbone.from_config({**backbone.get_config(), "include_normalization": include_normalization})
    copy.set_weights(backbone.get_weights())  # the normalisation has none, so the lists are the same
    return copy


def _file_of(path):
    """The file a path stands for."""
    if path.is_dir():
        for name in (KERAS_FILE, SAFETENSORS_FILE):
            if (path / name).is_file():
                return path / name
        raise ValueError(
            f"Expected {KERAS_FILE} or {SAFETENSORS_FILE} in {path}, received a directory without them. "
            "Fix: give a finished run, or an export to keras or torchvision."
        )
    if not path.exists():
        raise ValueError(f"Expected a run directory or a backbone file, received {path}: no such file. Fix: the path.")
    if path.suffix not in (".keras", ".safetensors"):
        raise ValueError(
            f"Expected a directory, a .keras or a .safetensors file, received {path}. "
            "Fix: convert .pth, .pkl and .h5 files first; pickles are not read here."
        )
    return path


def _load_keras(file):
    try:
        model = keras.saving.load_model(file, compile=False)  # safe_mode is Keras' default: no Lambda, no pickle
    except Exception as error:  # Keras lets through whatever zipfile, json and h5py raise
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"Expected a Keras model that loads without running its code, received {file} ({reason}). "
            "Fix: copy the file again; for a model with classes of its own, import them first."
        ) from error
    if not (getattr(model, "pyramid_outputs", None) or getattr(model, "pyramid_level_inputs", None)):
        raise ValueError(
            f"Expected a backbone with a feature pyramid, received {file}, a {type(model).__name__} without. "
            "Fix: save the backbone itself (a ResNetBackbone), not a classifier or a detector on top of it."
        )
    return model
