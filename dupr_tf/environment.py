"""Describes the environment of a run (commit, hardware, versions) and sets Keras' options.

Commit, hardware and versions are saved in the run's folder and shown on model cards.
"""

import importlib.metadata
import json
import logging
import os
import platform
import subprocess
import time
from pathlib import Path

from dupr_tf import __version__
from dupr_tf.errors import UserError
from dupr_tf.files import write_whole
from dupr_tf.records import listing, mapping, read_record

log = logging.getLogger(__name__)
PACKAGE = Path(__file__).parent
ENVIRONMENT_FILE = "environment.json"
ZIP_YEARS = 1980, 2107
PACKAGES = ("tensorflow", "tensorflow-cpu", "keras", "numpy", "pillow", "simplejpeg", "cykooz.resizer", "grain")


def describe_environment():
    """Return `{"commit", "hardware", "versions"}` of this process; unknown values are marked as such."""
    return {
        "commit": commit() or "unknown: not run from a git checkout",
        "hardware": hardware(),
        "versions": versions(),
    }


def record_environment(run):
    """Record this environment in a run's `environment.json`. A resume elsewhere or by other code adds an entry."""
    path = Path(run) / ENVIRONMENT_FILE
    entries, entry = read_environments(run), describe_environment()
    if entries[-1:] == [entry]:
        return
    write_whole(path, json.dumps([*entries, entry], indent=2, ensure_ascii=False) + "\n")


def read_environments(run):
    """Return the entries of a run's `environment.json`, oldest first; [] if the file is missing or damaged."""
    path = Path(run) / ENVIRONMENT_FILE
    try:
        return read_record(path, lambda entries: [mapping(entry) for entry in listing(entries)])
    except UserError as error:
        if os.path.lexists(path):
            log.warning("%s A new file is written.", error.problem)
        return []


def commit():
    """Return the checked-out commit of this package, with `+changes` if files differ; None outside of git."""
    if not _git("ls-files", "__init__.py"):  # a package installed inside another repository is not part of it
        return None
    head = _git("rev-parse", "HEAD")
    return head and head + ("+changes" if _git("status", "--porcelain", ".") else "")


def hardware():
    """Return processors and GPUs in one line, such as `2 × Intel(R) Xeon(R), no GPU`."""
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    names = [tf.config.experimental.get_device_details(gpu).get("device_name", "GPU") for gpu in gpus]
    return f"{os.cpu_count()} × {_processor()}, {', '.join(names) or 'no GPU'}"


def check_clock() -> None:
    """Raises UserError if the clock shows a year that .keras and .npz files, which are zip archives, cannot hold."""
    year = time.localtime().tm_year
    if not ZIP_YEARS[0] <= year <= ZIP_YEARS[1]:
        problem = f"The clock of this machine shows the year {year}, and no .keras file can be written then."
        raise UserError(None, problem, "Set the clock.")


def environment_rows(entry: dict) -> list[tuple[str, str]]:
    """Return (name, value) pairs of an entry of environment.json."""
    rows = []
    for name, value in entry.items():
        inner = value.items() if isinstance(value, dict) else [("", value)]
        rows += [(f"{name} {part}".strip(), str(v)) for part, v in inner]
    return rows


def versions():
    """Return `{package: version}` of the packages that results can depend on."""
    entries = {"dupr_tf": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            entries[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # only one of tensorflow and tensorflow-cpu is installed
    return entries


def _processor():
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), platform.processor() or platform.machine())


def _git(*arguments):
    """Return git's output, stripped. None without git, without a repository, or after a timeout."""
    try:
        done = subprocess.run(["git", "-C", str(PACKAGE), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def set_keras() -> None:
    """Give Keras the settings that this package needs, whatever another project wrote to `~/.keras/keras.json`.

    A changed data format or precision is logged, because it affects all models of the process.

    Raises:
        UserError: Keras was imported with another backend than TensorFlow.
    """
    import keras

    if keras.config.backend() != "tensorflow":
        problem = f"Keras was imported with the backend {keras.config.backend()}, and dupr_tf needs TensorFlow."
        raise UserError("KERAS_BACKEND", problem, "Import dupr_tf before Keras, or set KERAS_BACKEND=tensorflow.")
    before = keras.config.image_data_format(), keras.config.floatx()
    keras.config.set_image_data_format("channels_last")
    keras.config.set_floatx("float32")
    keras.config.set_epsilon(1e-7)
    if before != ("channels_last", "float32"):
        log.info("Keras now uses channels_last and float32 instead of %s and %s", *before)
