"""Renders the report, one self-contained HTML file."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jinja2

from dupr_tf import __version__
from dupr_tf.config import Config, dump_config
from dupr_tf.environment import environment_rows
from dupr_tf.reporting import charts, findings, tables, verdict
from dupr_tf.reporting.folders import COMPARISON, FINETUNING, PRETRAINING, RunFolder
from dupr_tf.reporting.samples import Samples
from dupr_tf.text import visible

GENERATOR = "dupr_tf report"
SECTIONS = {
    "verdict": "Verdict", "summary": "Summary", "config": "Config", "curves": "Curves", "time": "Time",
    "data": "Data", "views": "Views",
    "probes": "Probes", "exports": "Exports", "detectors": "Fine-tuning", "environment": "Environment",
}  # fmt: skip
TEMPLATES = Path(__file__).parent / "templates"
GROUPS = {  # heading -> prefixes of its scalars
    "Losses": ("loss", "classification_loss", "box_loss"),
    "Scores on val during training": ("validation/",),
    "Accuracies": ("accuracy/",),
    "Similarity of a query to its own key and to the bank, patches matched": ("positive/", "negative/", "match/"),
    "Spread of the keys": ("std/",),
    "Probes in training": ("probe/", "seconds/"),
    "Speed, overlap, learning rate": ("images_per_second", "step_share", "valid_share", "learning_rate"),
}
OTHERS, MOST_OTHERS = "Everything else that was logged", 24
NOT_DRAWN = ("seconds", "batch_size")
READABLE = {
    "valid_share": "share of pairs that overlap", "images_per_second": "images/s", "learning_rate": "learning rate",
    "step_share": "share of the time in steps, the rest in checkpoints and lines",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ChartGroup:
    heading: str
    charts: list[charts.Chart]


def render(runs: Sequence[RunFolder], samples: Sequence[Samples] = (), created: str = "") -> str:
    """Renders the page of some runs.

    Args:
        runs: from `read_folders`.
        samples: sample views, from `sample_views`.
        created: time of creation, as text.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, finalize=visible_value,
    )  # fmt: skip
    environment.filters.update(number=tables.cell_text, data_uri=data_uri)
    pretraining = [run for run in runs if run.kind == PRETRAINING]
    finetuning = [run for run in runs if run.kind == FINETUNING]
    groups = verdict.groups_of(runs)
    return environment.get_template("report.html.j2").render(
        generator=GENERATOR, sections=SECTIONS.items(), version=__version__, created=created,
        runs=runs, samples=samples,
        pretraining=pretraining, finetuning=finetuning,
        comparisons=[run for run in runs if run.kind == COMPARISON],
        findings=[finding for run in runs for finding in findings.findings_of(run)],
        groups=verdict.group_table(groups), verdicts=verdict.verdicts(groups),
        state=findings.state, total_steps=findings.total_steps, time_spent=findings.time_spent,
        summary=tables.summary(runs), dump_config=_yaml,
        config_tables=[tables.config_table(kind) for kind in (pretraining, finetuning)],
        curves=curves(pretraining, runs), detector_curves=curves(finetuning, runs),
        terms=tables.term_table(pretraining), probes=tables.probe_tables(runs), exports=tables.export_tables(runs),
        scores=tables.score_table(finetuning), classes=tables.class_table(finetuning), versions=environment_rows,
        width=charts.WIDTH, height=charts.HEIGHT, left=charts.LEFT, right=charts.WIDTH - charts.RIGHT,
        top=charts.TOP, bottom=charts.HEIGHT - charts.BOTTOM,
    )  # fmt: skip


def curves(of: Sequence[RunFolder], runs: Sequence[RunFolder]) -> list[ChartGroup]:
    """Draws a chart for each logged scalar, with the runs of one kind together.

    Args:
        of: the runs to draw.
        runs: all runs of the page; a run's position in it determines its colour.
    """
    style = {run.label: list(runs).index(run) for run in of}
    names = [n for n in dict.fromkeys(n for run in of for n in run.metrics.names()) if n not in NOT_DRAWN]
    groups = {heading: [n for n in names if n.startswith(starts)] for heading, starts in GROUPS.items()}
    groups[OTHERS] = [n for n in names if not any(n in members for members in groups.values())][:MOST_OTHERS]
    drawn = []
    for heading, members in groups.items():
        made = [_chart(name, of, style) for name in members]
        drawn.append(ChartGroup(heading, [chart for chart in made if chart is not None]))
    return [group for group in drawn if group.charts]


def _chart(name: str, of: Sequence[RunFolder], style: dict[str, int]) -> charts.Chart | None:
    series = {run.label: (style[run.label], points) for run in of if (points := run.metrics.points(name))}
    references = {}
    if name.startswith("loss/"):
        levels = {guess for run in of if run.label in series and (guess := findings.guessing(run)) is not None}
        references = {f"ln(K + 1) = {level:.2f}": level for level in sorted(levels)}
    return charts.line_chart(READABLE.get(name, name.replace("/", ", ").replace("_", " ")), series, references)


def visible_value(value):
    """Escapes control characters and halves of surrogate pairs in a text, for the template."""
    return type(value)(visible(value)) if isinstance(value, str) else value  # Markup stays Markup


def data_uri(picture: bytes) -> str:
    kind = "png" if picture.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


def is_report(path: Path) -> bool:
    """Returns True if a file is an earlier report, which may be replaced."""
    with path.open("rb") as file:
        return GENERATOR.encode() in file.read(2000)


def _yaml(config: Config | None) -> str:
    return "" if config is None else dump_config(config)
