"""Formats counts, seconds and plans as text. All commands print the same count by the same function."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dupr_tf.forecast.counts import Counts
from dupr_tf.forecast.seconds import Step
from dupr_tf.text import count_text, number_text, size_text

if TYPE_CHECKING:
    from dupr_tf.forecast.plan import Plan

Section = list[tuple[str, str]]  # (part, value), the sum last


def count_sections(counts: Counts) -> dict[str, Section]:
    """Returns parameters, operations and memory by title. Norms, photometrics and exponentials are no operations."""
    return {
        "parameters": _parts(counts.parameters, lambda value: f"{value:,}"),
        "operations of a step": _parts(counts.flops, lambda value: f"{number_text(value / 1e12)} TFLOP"),
        "memory a device": _parts(counts.memory, size_text),
    }


def step_section(step: Step) -> dict[str, Section]:
    """Returns the seconds of a step by title."""
    total = sum(step.seconds.values())
    parts = _parts(step.seconds, lambda value: f"{value:.4g} s  {value / total:4.0%}")
    return {f"a step of {step.batch} images": parts}


def plan_lines(plan: Plan) -> list[str]:
    """Returns the plan as lines of text."""
    step, counts = plan.step, plan.counts
    lines = [
        f"{plan.config} on {plan.devices} × {plan.device}, {count_text(step.machines, 'machine')}: "
        f"{number_text(step.images_per_second)} images/s (an estimate, see the assumptions at the end)",
    ]
    for title, parts in (count_sections(counts) | step_section(step)).items():
        lines += ["", title, *_columns(parts)]
    if plan.error is not None:
        lines.append(
            f"  measured here, in seconds of a core: {plan.measured_seconds:.4g} s without the input; predicted "
            f"{plan.step_alone:.4g} s, error {plan.error:+.0%}"
        )
    lines += [
        "", "exchanged in a step (each replica holds the whole afterwards)",
        *_columns(_parts({f"all-reduced, {part}": value for part, value in counts.reduced.items()}
                         | {f"all-gathered, {part}": value for part, value in counts.gathered.items()}, size_text)),
        "", f"input: {number_text(step.demand)} images/s are needed; a core reads "
        f"{number_text(plan.assumed['input_images_s_a_core'].value)}: {count_text(plan.cores, 'core')} a machine",
        "", f"by number of devices (train.micro_batches allows {', '.join(map(str, plan.by_devices))})",
        *_columns(_device_rows(plan)),
        "", "by number of images",
        *_columns(_size_rows(plan)),
        "", "assumptions (change any with --assume name=value)",
        *_columns([(name, number_text(entry.value), entry.unit, entry.source) for name, entry in plan.assumed.items()]),
    ]  # fmt: skip
    return lines


def _device_rows(plan):
    rows = [("devices", "s a step", "of it exchange", "images/s", "of n times one")]
    one = next(iter(plan.by_devices.values())).images_per_second
    for number, step in plan.by_devices.items():
        total, exchange = sum(step.seconds.values()), step.seconds["exchange between devices"]
        rate = step.images_per_second
        rows.append(
            (
                str(number),
                f"{total:.4g}",
                f"{exchange / total:.0%}",
                number_text(rate),
                f"{rate / one / number:.0%}",
            )
        )
    return rows


def _size_rows(plan):
    rows = [("", *(f"{size.images:,}" for size in plan.sizes))]
    cells = {
        "steps": lambda size: f"{size.steps:,}",
        "hours": lambda size: number_text(size.hours),
        "device-hours": lambda size: number_text(size.device_hours),
        "hours an epoch": lambda size: number_text(size.epoch_hours),
        "shards": lambda size: f"{size.shards:,}",
        "storage of shards": lambda size: size_text(size.storage),
        "index in memory, each worker": lambda size: size_text(size.index),
        "checkpoints written": lambda size: f"{size.checkpoints:,}",
        "checkpoints on disk at a time": lambda size: size_text(size.checkpoint_bytes),
    }
    return rows + [(name, *map(text, plan.sizes)) for name, text in cells.items()]


def _parts(parts: dict, text) -> Section:
    return [*((part, text(value)) for part, value in parts.items()), ("sum", text(sum(parts.values())))]


def _columns(rows) -> list[str]:
    """Aligns rows in columns: the first to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) if i == 0 or not _is_figure(cell) else cell.rjust(width)
                 for i, (cell, width) in enumerate(zip(row, widths, strict=True))]  # fmt: skip
        lines.append(("  " + "  ".join(cells)).rstrip())
    return lines


def _is_figure(cell: str) -> bool:
    return cell[:1].isdigit() or cell in ("s a step", "of it exchange", "images/s", "of n times one")
