"""Prints a plan as text and converts it to plain data."""

from __future__ import annotations

import dataclasses

from dupr_tf.planning.assumptions import Assumption
from dupr_tf.planning.estimate import Counts, Size, Step
from dupr_tf.text import number_text, size_text


@dataclasses.dataclass(frozen=True)
class Plan:
    """The results of `dupr-tf plan`.

    Args:
        config: the config file.
        device, devices: type of device, and number of devices that share the batch.
        counts, step: for this number of devices.
        cores: cores needed on each machine.
        sizes: runs over different numbers of images.
        by_devices: {devices: step} of all numbers of devices that can share the batch.
        assumed: assumptions by name.
        measured_seconds: seconds of a real step here, or None if not requested.
    """

    config: str
    device: str
    devices: int
    counts: Counts
    step: Step
    cores: int
    sizes: tuple[Size, ...]
    by_devices: dict[int, Step]
    assumed: dict[str, Assumption]
    measured_seconds: float | None = None

    @property
    def error(self) -> float | None:
        """Returns the error of the predicted seconds of a step, relative to the measured ones."""
        if self.measured_seconds is None:
            return None
        return self.step_alone / self.measured_seconds - 1

    @property
    def step_alone(self) -> float:
        """Returns the predicted seconds of a step whose images are in memory."""
        return sum(value for part, value in self.step.seconds.items() if not part.startswith("reading"))

    def problems(self) -> list[str]:
        """Lists the reasons why the run cannot work as planned, a sentence or two each."""
        found = []
        held, there = sum(self.counts.memory.values()), 1e9 * self.assumed["memory_gb"].value
        if held > there:
            found.append(
                f"A device needs {size_text(held)} and has {size_text(there)}. Use more devices, more "
                "train.micro_batches, a smaller model.bank_size, or --train.precision bfloat16."
            )
        if self.step.input_limit < self.step.asked:
            found.append(
                f"The input reads {self.step.input_limit:,.0f} images/s where {self.step.asked:,.0f} are needed, and "
                f"slows the run down. Use {self.cores} cores a machine, or smaller files (pack)."
            )
        return found

    def as_json(self) -> dict:
        """Returns everything as plain data: bytes, seconds, images, TFLOP/s."""
        return {
            "config": self.config, "device": self.device, "devices": self.devices, "machines": self.step.machines,
            "counts": dataclasses.asdict(self.counts),
            "step": {"seconds": self.step.seconds, "images_per_second": self.step.images_per_second},
            "input": {"images_per_second_needed": self.step.asked, "cores_a_machine": self.cores},
            "by_devices": {str(n): {"seconds": step.seconds, "images_per_second": step.images_per_second}
                           for n, step in self.by_devices.items()},
            "sizes": [dataclasses.asdict(size) for size in self.sizes],
            "assumptions": {name: dataclasses.asdict(entry) for name, entry in self.assumed.items()},
            "measured_step_seconds": self.measured_seconds, "error": self.error, "problems": self.problems(),
        }  # fmt: skip


def plan_lines(plan: Plan) -> list[str]:
    """Returns the plan as lines of text."""
    step, counts = plan.step, plan.counts
    total = sum(step.seconds.values())
    lines = [
        f"{plan.config} on {plan.devices} × {plan.device}, {_plural(step.machines, 'machine')}: "
        f"{number_text(step.images_per_second)} images/s (an estimate, see the assumptions at the end)",
        "", "operations of a step, all devices (norms, photometrics and exponentials are not counted)",
        *_parts(counts.flops, lambda value: f"{number_text(value / 1e12)} TFLOP"),
        "", f"seconds of a step of {step.batch} images",
        *_parts(step.seconds, lambda value: f"{value:.4g} s  {value / total:4.0%}"),
    ]  # fmt: skip
    if plan.error is not None:
        lines.append(
            f"  measured here, in seconds of a core: {plan.measured_seconds:.4g} s without the input; predicted "
            f"{plan.step_alone:.4g} s, error {plan.error:+.0%}"
        )
    lines += [
        "", "memory a device",
        *_parts(counts.memory, size_text),
        "", "exchanged in a step (each replica holds the whole afterwards)",
        *_parts({f"all-reduced, {part}": value for part, value in counts.reduced.items()}
                | {f"all-gathered, {part}": value for part, value in counts.gathered.items()}, size_text),
        "", f"input: {number_text(step.asked)} images/s are needed; a core reads "
        f"{number_text(plan.assumed['input_images_s_a_core'].value)}: {_plural(plan.cores, 'core')} a machine",
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


def _parts(parts: dict, text) -> list[str]:
    return _columns([(part, text(value)) for part, value in parts.items()] + [("sum", text(sum(parts.values())))])


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


def _plural(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
