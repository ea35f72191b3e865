"""Reads the reportable contents of a folder: a run, exports, probes. Their files are not trusted.

Missing or damaged files become notes, not errors. Only a folder without any of these contents is rejected.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from dupr_tf.config import Config, load_config
from dupr_tf.data.images.bad_images import further_images, kind_of, read_list
from dupr_tf.environment import ENVIRONMENT_FILE
from dupr_tf.errors import UserError, raise_all
from dupr_tf.files import sha256_of
from dupr_tf.probing.embed import PICTURE as FEATURES_PICTURE
from dupr_tf.records import listing, mapping, read_record
from dupr_tf.reporting.comparisons import Compared, is_comparison, picture_of, read_compared
from dupr_tf.reporting.metrics import Metrics, read_metrics
from dupr_tf.text import count_text
from dupr_tf.training.pool import Exclusion, read_exclusion
from dupr_tf.training.run import CONFIG_FILE, FORMAT_FILE
from dupr_tf.weights.manifest import MANIFEST_FILE
from dupr_tf.weights.paths import START_FILE

PRETRAINING, FINETUNING, EXPORT, PROBES = "pre-training", "fine-tuning", "export", "probes"
COMPARISON = "comparison"
MOST_PICTURE = 8 << 20  # bytes
MOST_BAD_LISTED = 50
MOST_NAMED = 5
EVALUATION_PICTURES = {  # file of a fine-tuning -> what it shows
    "detections.png": "Validation images with detections and labels",
    "segments.png": "Validation images with predicted classes and labels",
    "precision_recall.png": "Precision and recall of each class",
    "confusion.png": "Confusion of classes: true class by detected class",
}
PROBES_FOLDER = Path("runs/probes")  # where `dupr-tf probe` writes by default
DEPTH, MOST_FOLDERS = 2, 500  # depth below a run to which exports and probes are searched
PNG = b"\x89PNG\r\n\x1a\n"


@dataclasses.dataclass(frozen=True)
class BadImageCounts:
    """The contents of bad_images.tsv: number, reasons, and the first images."""

    count: int
    reasons: list[tuple[str, int]]  # the most frequent first
    first: list[tuple[str, str]]  # (name, reason)


@dataclasses.dataclass(frozen=True)
class Export:
    """The manifest of an export, and the files that differ from it."""

    path: Path
    manifest: dict
    wrong: list[str]  # files that are missing, different, or outside


@dataclasses.dataclass(frozen=True)
class ProbeResult:
    """A probe.json of `dupr-tf probe`, and its picture."""

    path: Path
    probe: str
    settings: dict
    numbers: dict[str, dict]
    seconds: dict
    picture: bytes | None
    weights: tuple = ()  # paths of the probed weights


@dataclasses.dataclass
class RunFolder:
    """The contents read from a folder."""

    path: Path
    label: str
    kind: str
    config: Config | None = None
    metrics: Metrics = dataclasses.field(default_factory=Metrics)
    scores: dict | None = None  # metrics.json
    environments: list[dict] = dataclasses.field(default_factory=list)
    images: dict | None = None  # images.json
    start: dict | None = None  # start.json
    diverged: dict | None = None  # diverged.json
    excluded: Exclusion | None = None  # excluded.json
    bad: BadImageCounts | None = None
    pictures: list[tuple[str, bytes]] = dataclasses.field(default_factory=list)  # of an evaluation, with descriptions
    compared: Compared | None = None  # of a comparison
    plot: bytes | None = None  # compare.png
    exports: list[Export] = dataclasses.field(default_factory=list)
    probes: list[ProbeResult] = dataclasses.field(default_factory=list)
    features: list[tuple[str, bytes]] = dataclasses.field(default_factory=list)  # path below the folder, and PNG
    notes: list[str] = dataclasses.field(default_factory=list)  # notes on missing or damaged files, a sentence each


def read_folders(paths: list[Path]) -> list[RunFolder]:
    """Reads the folders of a report.

    Raises:
        UserError: some are no folders, or have nothing to report.
    """
    raise_all([problem for path in paths for problem in _problems(path)])
    runs = [_read(path, label) for path, label in zip(paths, labels(paths), strict=True)]
    _add_probes_elsewhere(runs)
    return runs


def labels(paths: list[Path]) -> list[str]:
    """Returns the shortest ends of the paths that distinguish them."""
    parts = [Path(os.path.abspath(path)).parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-length:]) for p in parts]
        if len(set(names)) == len(set(parts)):
            break
    counts = collections.Counter()
    for i, name in enumerate(names):
        counts[name] += 1
        names[i] = name if counts[name] == 1 else f"{name} ({counts[name]})"
    return names


def _problems(path: Path) -> list[UserError]:
    fix = "Pass the --output of pretrain, finetune, compare, export or probe."
    if not path.is_dir():
        return [UserError(None, f"{path} {'is a file' if path.exists() else 'does not exist'}.", fix)]
    if _kind(path) is None:
        inside = [str(folder) for folder in _folders(path)[:MOST_FOLDERS] if _kind(folder) is not None][:MOST_NAMED]
        fix = f"Pass what it contains: {' '.join(inside)}." if inside else fix
        return [UserError(None, f"{path} holds no run, export or probe.", fix)]
    return []


def _kind(path: Path) -> str | None:
    if is_comparison(path):
        return COMPARISON
    scores = _json(path / "metrics.json", [])
    if scores is not None and {"AP", "mIoU", "per_class"} & set(scores):
        return FINETUNING
    if _is_run(path):
        return PRETRAINING
    if (path / MANIFEST_FILE).is_file():
        return EXPORT
    return PROBES if next(_below(path, "probe.json", 1), None) else None


def _is_run(path: Path) -> bool:
    """Returns True for the folder of a run, also if its config or its metrics are damaged or missing."""
    if (path / FORMAT_FILE).is_file():
        return True
    with contextlib.suppress(OSError):
        if read_metrics(path / "metrics.jsonl").rows:
            return True
    with contextlib.suppress(UserError, OSError):
        load_config(path / CONFIG_FILE)
        return True
    return False


def _read(path: Path, label: str) -> RunFolder:
    run = RunFolder(path, label, _kind(path))
    if run.kind == COMPARISON:
        run.compared, run.plot = read_compared(path, run.notes), _picture(picture_of(path))
        return run
    if run.kind in (PRETRAINING, FINETUNING):
        _read_config(run)
        if run.config is not None and run.config.detector is not None:
            run.kind = FINETUNING  # it has no scores yet
        _read_metrics(run)
        _read_records(run)
    run.exports = [export for file in _below(path, MANIFEST_FILE) if (export := _export(file, run.notes))]
    run.probes = [probe for file in _below(path, "probe.json") if (probe := _probe(file, run.notes))]
    pictures = {file: _picture(file) for file in _below(path, f"*{FEATURES_PICTURE}")}
    run.features = [(str(file.relative_to(path)), picture) for file, picture in pictures.items() if picture]
    return run


def _add_probes_elsewhere(runs: list[RunFolder]) -> None:
    """Adds the probes of these runs from their parent folders, or from the default output of `dupr-tf probe`."""
    seen = {os.path.realpath(probe.path) for run in runs for probe in run.probes}
    roots = dict.fromkeys([*(run.path.absolute().parent for run in runs), PROBES_FOLDER.absolute()])
    for file in [file for root in roots for file in _below(root, "probe.json")]:
        probe = None if os.path.realpath(file.parent) in seen else _probe(file, [])
        owner = probe and next((run for run in runs if _has_probed(probe, run)), None)
        if owner:
            owner.probes.append(probe)
            seen.add(os.path.realpath(file.parent))


def _has_probed(probe: ProbeResult, run: RunFolder) -> bool:
    places = [os.path.realpath(path) for path in probe.weights if isinstance(path, str)]
    return os.path.realpath(run.path) in [*places, *map(os.path.dirname, places)]


def _read_config(run: RunFolder) -> None:
    try:
        run.config = load_config(run.path / "config.yaml")
    except UserError as error:
        missing = not (run.path / "config.yaml").is_file()
        run.notes.append("There is no config.yaml." if missing else f"config.yaml cannot be read. {error.errors[0]}")
    except OSError as error:
        run.notes.append(f"config.yaml cannot be read: {error.strerror}.")


def _read_metrics(run: RunFolder) -> None:
    try:
        run.metrics = read_metrics(run.path / "metrics.jsonl")
    except OSError as error:
        run.notes.append(f"There is no metrics.jsonl to draw curves from ({error.strerror}).")
        return
    metrics = run.metrics
    whole = metrics.damaged - metrics.cut
    if metrics.cut:
        run.notes.append("The last line of metrics.jsonl was cut short, as a kill leaves it; it is left out.")
    if whole:
        run.notes.append(f"{count_text(whole, 'line')} of metrics.jsonl could not be read and {_is(whole)} left out.")
    if metrics.disordered:
        count = count_text(metrics.disordered, "line")
        run.notes.append(f"{count} of metrics.jsonl came after a later step and {_is(metrics.disordered)} left out.")
    if not metrics.rows:
        run.notes.append("metrics.jsonl holds no line yet.")


def _read_records(run: RunFolder) -> None:
    """Reads the small files in the folder of metrics.jsonl."""
    environments = _json(run.path / ENVIRONMENT_FILE, run.notes, listing)
    run.environments = [entry for entry in environments or [] if isinstance(entry, dict)]
    if run.kind == FINETUNING:
        run.scores = _json(run.path / "metrics.json", run.notes)
        pictures = ((what, _picture(run.path / name)) for name, what in EVALUATION_PICTURES.items())
        run.pictures = [(what, picture) for what, picture in pictures if picture]
        return
    run.images = _json(run.path / "images.json", run.notes)
    run.start = _json(run.path / START_FILE, run.notes)
    run.diverged = _json(run.path / "diverged.json", run.notes)
    try:
        run.excluded = read_exclusion(run.path)
    except UserError as error:
        run.notes.append(error.problem)
    run.bad = _bad_images(run.path / "bad_images.tsv")


def _json(path: Path, notes: list[str], schema: Callable = mapping):
    """Reads a JSON file. Returns None if it is missing, and None with a note if it is damaged."""
    if not path.is_file():
        return None
    try:
        return read_record(path, schema)
    except UserError as error:
        notes.append(error.problem)
        return None


def _picture(path: Path) -> bytes | None:
    if not path.is_file() or path.stat().st_size > MOST_PICTURE:
        return None
    content = path.read_bytes()
    return content if content.startswith(PNG) else None


def _bad_images(path: Path) -> BadImageCounts | None:
    if not path.is_file():
        return None
    count, first, reasons = 0, [], collections.Counter()
    for name, reason in read_list(path):
        more = further_images(name, reason)
        count += more or 1
        reasons["of reasons that are not listed" if more else kind_of(reason)[:80]] += more or 1
        if len(first) < MOST_BAD_LISTED and not more:
            first.append((name, reason))
    return BadImageCounts(count, reasons.most_common(20), first)


def _export(file: Path, notes: list[str]) -> Export | None:
    manifest = _json(file, notes)
    if manifest is None or "format" not in manifest or not isinstance(manifest.get("files"), dict):
        return None  # the manifest of another program, or of shards
    wrong = [name for name, digest in manifest["files"].items() if not _matches_digest(file.parent, name, digest)]
    return Export(file.parent, manifest, wrong)


def _matches_digest(folder: Path, name: str, digest) -> bool:
    path = Path(os.path.abspath(folder / name))
    return path.is_relative_to(os.path.abspath(folder)) and path.is_file() and sha256_of(path) == digest


def _probe(file: Path, notes: list[str]) -> ProbeResult | None:
    content = _json(file, notes)
    if content is None:
        return None
    numbers, name = content.get("numbers"), content.get("probe")
    if not isinstance(numbers, dict) or not isinstance(name, str):
        notes.append(f"{file.parent.name}/probe.json holds no numbers.")
        return None
    settings, seconds = (content[k] if isinstance(content.get(k), dict) else {} for k in ("settings", "seconds"))
    numbers = {label: values for label, values in numbers.items() if isinstance(values, dict)}
    picture = _picture(file.parent / f"{name}.png") if os.path.basename(name) == name else None
    weights = content.get("weights") if isinstance(content.get("weights"), dict) else {}
    return ProbeResult(file.parent, name, settings, numbers, seconds, picture, tuple(weights.values()))


def _below(root: Path, name: str, deepest: int = DEPTH) -> Iterator[Path]:
    """Yields files of a name or pattern in a folder and, to a depth, below it; links are not followed."""
    level, count = [root], 0
    for depth in range(deepest + 1):
        yield from (file for folder in level for file in sorted(folder.glob(name)) if file.is_file())
        if depth == deepest or count > MOST_FOLDERS:
            return
        level = [folder for parent in level for folder in _folders(parent)]
        count += len(level)


def _folders(parent: Path) -> list[Path]:
    try:
        with os.scandir(parent) as entries:
            return sorted(Path(e.path) for e in entries if e.is_dir(follow_symlinks=False) and e.name[:1] != ".")
    except OSError:
        return []  # a folder that cannot be read has nothing to show


def _is(count: int) -> str:
    return "is" if count == 1 else "are"
