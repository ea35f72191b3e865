"""Makes the tables of the report, as headings and rows of text."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from dupr_tf.config import Config, DetectorConfig
from dupr_tf.reporting.findings import guessing, state, time_spent
from dupr_tf.reporting.folders import PRETRAINING, Export, RunFolder
from dupr_tf.reporting.metrics import is_number, number
from dupr_tf.text import number_text

ABSENT = "–"
MOST_COLUMNS = 24  # most numbers of a probe that are shown


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of cells under headings; the first cell of a row names it."""

    head: list[str]
    rows: list[list[str]]
    caption: str = ""
    picture: bytes | None = None
    picture_alt: str = ""


def cell_text(value: Any) -> str:
    """Formats a number as `number_text` does, None as `–`; other values do not change."""
    if value is None:
        return ABSENT
    return number_text(value) if is_number(value) else str(value)


def summary(runs: Sequence[RunFolder]) -> Table:
    """Makes a row for each run: kind, progress, last loss, speed, skipped images."""
    head = ["run", "what", "state", "mean loss, last fifth", "images/s, median", "pairs that overlap", "skipped images"]
    rows = []
    for run in runs:
        spent = time_spent(run)
        share = run.metrics.mean_of_last("valid_share", 1.0)
        rows.append([
            run.label, run.kind, state(run) if run.metrics.rows or run.scores or run.diverged else ABSENT,
            cell_text(run.metrics.mean_of_last("loss")),
            ABSENT if spent is None else f"{spent.median_rate:.1f}",
            ABSENT if share is None else f"{share:.1%}",
            ABSENT if run.kind != PRETRAINING else cell_text(run.bad.count if run.bad else 0),
        ])  # fmt: skip
    return Table(head, rows)


def config_table(runs: Sequence[RunFolder]) -> Table:
    """Lists the fields in which runs differ; for fields of one run alone, those that differ from the default."""
    configured = [run for run in runs if run.config is not None]
    flat = {run.label: flat_config(run.config) for run in configured}
    default = flat_config(Config(detector=DetectorConfig()))
    names = dict.fromkeys(name for fields in flat.values() for name in fields)
    rows = [
        [name, *(str(fields.get(name, ABSENT)) for fields in flat.values()), str(default.get(name, ABSENT))]
        for name in names
        if _differs([fields[name] for fields in flat.values() if name in fields], default.get(name))
    ]
    return Table(["field", *flat, "default"], rows)


def _differs(values: list, default) -> bool:
    """Returns True if the runs that have a field differ in it, or the only such run differs from the default."""
    return any(value != values[0] for value in values[1:]) if len(values) > 1 else values[0] != default


def flat_config(config: Config) -> dict[str, Any]:
    """Returns {dotted field: value} of a config."""
    sections = config.model_dump(mode="json")
    return {f"{s}.{name}": value for s, fields in sections.items() for name, value in (fields or {}).items()}


def term_table(runs: Sequence[RunFolder]) -> Table:
    """Lists loss and accuracy of each term, means of the last fifth of the steps, with the values of guessing."""
    names = dict.fromkeys(n for run in runs for n in run.metrics.names() if n.startswith("loss/"))
    head, rows = ["term"], []
    for run in runs:
        guess = guessing(run)
        head.append(f"{run.label}, loss" + (f" (guessing {guess:.2f})" if guess else ""))
        head.append(f"{run.label}, accuracy")
    for name in names:
        row = [name.removeprefix("loss/").replace("_", " ")]
        for run in runs:
            means = (run.metrics.mean_of_last(n) for n in (name, name.replace("loss/", "accuracy/")))
            row += [cell_text(mean) for mean in means]
        rows.append(row)
    return Table(head, rows)


def probe_tables(runs: Sequence[RunFolder]) -> list[Table]:
    """Makes a table for each probe with the same settings, with a row for each backbone's weights."""
    groups: dict[tuple, list] = {}
    for run in runs:
        for probe in run.probes:
            groups.setdefault((probe.probe, str(sorted(probe.settings.items(), key=str))), []).append((run, probe))
    return [table for (_, members) in groups.items() for table in _probe_table(members)]


def _probe_table(members) -> list[Table]:
    first = members[0][1]
    rows = [(run, probe, label, scalars(values)) for run, probe in members for label, values in probe.numbers.items()]
    names = list(dict.fromkeys(name for *_, numbers in rows for name in numbers))[:MOST_COLUMNS]
    cells = [
        [label if len(members) == 1 else f"{label} ({run.label}, {probe.path.name})"]
        + [cell_text(numbers.get(name)) for name in names]
        + [cell_text(number(probe.seconds.get(label)))]
        for run, probe, label, numbers in rows
    ]
    settings = ", ".join(f"{name} {value}" for name, value in first.settings.items())
    table = Table(["weights", *names, "seconds"], cells, f"{first.probe}: {settings}", first.picture, _alt(first))
    others = [
        Table([], [], f"{probe.probe} of {run.label}, {probe.path.name}", probe.picture, _alt(probe))
        for run, probe in members[1:]
        if probe.picture is not None
    ]
    return [table, *others]


def _alt(probe) -> str:
    return f"Picture of the probe {probe.probe} for {', '.join(probe.numbers)}; its numbers are in the table"


def scalars(values: dict) -> dict[str, float]:
    """Returns the numbers of a probe, those of its levels under `LEVEL name`, without lists, which are for pictures."""
    numbers = {}
    for name, value in values.items():
        if is_number(value):
            numbers[name] = value
        elif isinstance(value, dict):
            numbers |= {f"{name} {inner}": v for inner, v in value.items() if is_number(v)}
    return numbers


def export_tables(runs: Sequence[RunFolder]) -> list[tuple[RunFolder, Export, Table, str]]:
    """Returns for each export the largest differences by level, and a sentence on its files."""
    return [(run, export, _checks(export), _files(export)) for run in runs for export in run.exports]


def _checks(export: Export) -> Table:
    largest: dict[tuple[str, str], list[float]] = {}
    checks = export.manifest.get("checks")
    for check in checks if isinstance(checks, list) else ():
        if not isinstance(check, dict):
            continue
        difference, scale = number(check.get("difference")), number(check.get("scale"))
        entry = largest.setdefault((str(check.get("against")), str(check.get("level"))), [0.0, 0.0])
        if difference is None:
            entry[:] = [float("inf"), float("inf")]
        elif difference >= entry[0]:
            entry[:] = [difference, difference / scale if scale else difference]
    rows = [[against, level, f"{d:.1e}", f"{r:.1e}"] for (against, level), (d, r) in largest.items()]
    return Table(["compared with", "level", "largest difference", "of the largest feature"], rows)


def _files(export: Export) -> str:
    count = len(export.manifest["files"])
    if export.wrong:
        named = ", ".join(export.wrong[:5])
        return f"{len(export.wrong)} of {count} files are missing or differ from the manifest: {named}."
    return f"All {count} files have the sha256 of the manifest."


def score_table(runs: Sequence[RunFolder]) -> Table:
    """Makes a row for each number in the metrics.json of fine-tuning runs, a column for each run."""
    scored = [run for run in runs if run.scores]
    names = dict.fromkeys(
        n for run in scored for n, v in run.scores.items() if v is None or is_number(v) or isinstance(v, str)
    )
    rows = [[name, *(cell_text(run.scores.get(name)) for run in scored)] for name in names]
    return Table(["", *(run.label for run in scored)], rows)


def class_table(runs: Sequence[RunFolder]) -> Table:
    """Lists AP by class, a column for each run."""
    by_class = {
        run.label: run.scores["per_class"] for run in runs if isinstance((run.scores or {}).get("per_class"), dict)
    }
    names = dict.fromkeys(name for classes in by_class.values() for name in classes)
    rows = [[name, *(cell_text(classes.get(name)) for classes in by_class.values())] for name in names]
    return Table(["class", *by_class], rows)
