"""Checks the paths that weights are read from and written to. Imports no TensorFlow."""

from __future__ import annotations

import difflib
import hashlib
import os
import platform
from pathlib import Path, PurePath

from dupr_tf.config import load_config
from dupr_tf.errors import UserError
from dupr_tf.files import local_path
from dupr_tf.text import listed
from dupr_tf.weights.catalogue import CATALOGUE, ENDINGS, find_public, is_public
from dupr_tf.weights.checkpoint_files import find_damage, saved_checkpoints
from dupr_tf.weights.download import fetch
from dupr_tf.weights.manifest import unlisted
from dupr_tf.weights.saved_detectors import find_detector

RANDOM = "random"  # weights drawn from the seed
KERAS_FILE = "backbone.keras"
SAFETENSORS_FILE = "backbone.safetensors"
EXCLUDED_FILE = "excluded.json"  # record of `pretrain --exclude`
CONFIG_FILE = "config.yaml"  # of a run
CHECKPOINTS_FOLDER = "checkpoints"
START_FILE = "start.json"  # record of the weights that a run started from


def weights_file(path: str | Path, detectors: bool = False) -> Path:
    """Return the file that `load_backbone` reads for a path. For a run that has not ended, it is that of a checkpoint.

    A name of the catalogue or an address is downloaded, if it is not in the cache. With `detectors`, the file of a
    detector is returned too.

    Raises:
        UserError: it does not exist, is of an unknown kind, or is a detector.
        RunFailed: it could not be downloaded.
    """
    path = fetch(find_public(path)) if is_public(path) else local_path(path, "weights")
    if path.is_dir():
        for name in (KERAS_FILE, SAFETENSORS_FILE):
            if (path / name).is_file():
                return path / name
        _refuse_detector(path)
        saved = saved_checkpoints(path / CHECKPOINTS_FOLDER)
        if saved and (path / CONFIG_FILE).is_file() and load_config(path / CONFIG_FILE).detector is None:
            newest = next((checkpoint for checkpoint in saved if find_damage(checkpoint) is None), saved[0])
            return newest.with_suffix(".index")
        raise UserError(
            None,
            f"The directory {path} has no {KERAS_FILE}, no {SAFETENSORS_FILE} and no checkpoint of pre-training.",
            "Pass a run of `pretrain`, or an export to keras or torchvision.",
        )
    if not path.exists():
        raise UserError(None, f"There is no file or directory {path}.", f"Pass a run, an export{_or_name(path)}.")
    if not path.is_file():
        raise UserError(None, f"{path} is a pipe or device.", "Pass a run, an export or a file of weights.")
    if path.suffix not in (".keras", *ENDINGS):
        raise UserError(
            None,
            f"Expected a directory, or a file ending in .keras, {', '.join(ENDINGS)}, received {path}.",
            "Convert .pkl and .h5 files first; pickles can run code, so they are not read.",
        )
    if not detectors:
        _refuse_detector(path)
    return path


def check_weights_file(path: str | Path, detectors: bool = False) -> None:
    """Raise the errors of `weights_file`. Names of the catalogue and addresses are checked without a download."""
    if is_public(path):
        find_public(path)
    else:
        weights_file(path, detectors)


def _or_name(path: Path) -> str:
    """Return the end of a list of what weights may be, with names similar to a path that does not exist."""
    near = difflib.get_close_matches(path.as_posix(), CATALOGUE, 1)
    return (
        f", or {near[0]}, the name of a public checkpoint" if near else ", a file, or a name of `dupr-tf list weights`"
    )


def _refuse_detector(path: Path) -> None:
    saved = find_detector(path)
    if saved is not None:
        raise UserError(
            None,
            f"{saved[0]} holds a detector ({saved[1].kind}), not a backbone.",
            "Pass the run, the export or the file of the backbone that the detector was trained from.",
        )


def checkpoint_file(path: str | Path) -> Path:
    """Return the path of another tool's weights. Raises UserError if it does not exist or is of an unknown kind.

    A name of the catalogue or an address is downloaded, if it is not in the cache.
    """
    if is_public(path):
        check_ending(path)
        return fetch(find_public(path))
    path = local_path(path)
    if not path.is_file():
        raise UserError(None, f"There is no file {path}.", f"Pass a file of weights{_or_name(path)}.")
    check_ending(path)
    return path


def check_ending(path: str | Path) -> None:
    """Raise UserError if the name of another tool's weights has an ending that is not read. Nothing is downloaded."""
    name = PurePath(find_public(path).file if is_public(path) else path)
    if name.suffix not in ENDINGS:
        raise UserError(
            None,
            f"Expected a file ending in {', '.join(ENDINGS)}, received {path}.",
            "Pass .keras files to --weights. Convert others; pickles (.pkl) can run code, so they are not read.",
        )


def recorded_name(weights: str | Path) -> str:
    """Return weights as a record names them: a path is absolute, other names stay."""
    return str(weights) if str(weights) == RANDOM or is_public(weights) else os.path.abspath(local_path(weights))


def backbone_output(output: str | Path, overwrite: bool = False) -> Path:
    """Return the `.keras` file that `import_backbone` may write. Raises UserError if it may not."""
    output = local_path(output, "output")
    if output.suffix != ".keras":
        raise UserError(
            "output", f"Expected a name ending in .keras, received {output}.", f"Use {output.with_suffix('.keras')}."
        )
    if output.exists() and not overwrite:
        raise UserError("output", f"{output} exists already.", "Pass --overwrite, or choose another name.")
    return output


def export_output(output: str | Path, overwrite: bool = False) -> Path:
    """Return the directory that `export` may write. Raises UserError if it would overwrite anything but an export."""
    output = local_path(output, "output").resolve()
    if output == Path.cwd() or os.path.ismount(output):
        problem = f"{output} is the current folder or a mount point, which an export cannot replace."
        raise UserError("output", problem, "Pass a folder in it.")
    if output.suffix in (".keras", ".pkl", ".safetensors", ".onnx", ".pth"):
        problem = f"Expected the name of a directory, received {output}."
        raise UserError("output", problem, "Drop the ending; the file is written inside.")
    _restore_earlier(output)
    if not output.exists() or _is_empty(output):
        return output
    if not overwrite:
        raise UserError("output", f"{output} exists already.", "Pass --overwrite, or choose another name.")
    if not output.is_dir():
        raise UserError("output", f"{output} is a file, which an export cannot replace.", "Choose another output.")
    others = unlisted(output)
    if others:
        problem = f"{output} has other files than those of an export ({listed(others)}), so it is not overwritten."
        raise UserError("output", problem, "Choose another output, or remove it yourself.")
    return output


def export_stem(output: Path) -> str:
    """Return the start of the names that an export has on its way; other machines have others, as their processes."""
    return f".export-{hashlib.sha256(os.fsencode(f'{platform.node()}/{output.name}')).hexdigest()[:8]}"


def left_by_killed(output: Path, kind: str = "*") -> list[Path]:
    """Return the folders that killed exports into `output` left: `partial` ones, and `earlier` exports moved aside."""
    paths = output.parent.glob(f"{export_stem(output)}.{kind}-*")
    numbers = [(path, path.name.rpartition("-")[2]) for path in paths]
    return [
        path
        for path, number in numbers
        if number == str(os.getpid()) or (number.isdecimal() and not is_running(int(number)))
    ]


def _restore_earlier(output: Path) -> None:
    """Give an earlier export its name again if a process was killed between its two renames."""
    for earlier in left_by_killed(output, "earlier"):
        if output.exists() and not _is_empty(output):
            return
        if output.exists():
            output.rmdir()
        earlier.rename(output)


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def is_running(process: int) -> bool:
    """Return whether this machine runs a process of this number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True
