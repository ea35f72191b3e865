"""Lists the assumptions of a plan, each with its unit and source. `--assume name=value` changes them."""

from __future__ import annotations

import dataclasses
import math

from dupr_tf.errors import UserError, raise_all
from dupr_tf.forecast.device_types import CPU, TYPES
from dupr_tf.text import suggestion

NEVER_MEASURED = "assumed, never measured here"
COUNTS = ("devices_a_machine", "cores_a_machine", "images_a_shard")  # whole numbers
# Milliseconds of a core from an image of 500 px to two views of 64 and of 224 px: docs/performance.md.
INPUT_64, INPUT_224 = 1.7, 3.2
# Both were fitted to eight steps of ResNet-18, 34 and 50 on one core, to 12 %. Nine steps of another session were
# predicted to 11 %: docs/scaling.md. The passes cover all other operations: norms, photometrics, exponentials.
CPU_SHARE, CPU_PASSES = 0.95, 55


@dataclasses.dataclass(frozen=True)
class Assumption:
    """A number on which a plan depends: its value, its unit, and its source."""

    value: float
    unit: str
    source: str


def assumptions_of(device: str, precision: str, image_size: int) -> dict[str, Assumption]:
    """Returns all assumptions for a device. Those that can be measured on a CPU are NaN until they are.

    Args:
        device: a name from `device_types.NAMES`.
        precision: `train.precision`.
        image_size: side of a view, px.
    """
    entries = _cpu() if device == CPU else _gpu(device, precision)
    size = (image_size**2 - 64**2) / (224**2 - 64**2)
    milliseconds = max(0.5, INPUT_64 + (INPUT_224 - INPUT_64) * size)
    return entries | {
        "weight_passes": Assumption(20, "times a step reads or writes each weight", "counted in the step's code"),
        "bank_passes": Assumption(4, "times a step reads or writes each key of a bank", "counted in the step's code"),
        "share_of_network": Assumption(0.7, "of link and network that a ring reaches", NEVER_MEASURED),
        "input_images_s_a_core": Assumption(
            1000 / milliseconds, "images/s to two views", "measured on an EPYC of 2 GHz, 500 px: docs/performance.md"
        ),
        "bytes_an_image": Assumption(110_000, "bytes", "ImageNet's mean; photos of a phone have 20 times as many"),
        "images_a_shard": Assumption(2000, "images", "the default of dupr-tf pack"),
    }  # fmt: skip


def _gpu(device, precision) -> dict[str, Assumption]:
    sheet = TYPES[device]
    if precision not in sheet.peak:
        raise UserError(
            "train.precision",
            f"Expected a precision of {device} ({', '.join(sheet.peak)}), received {precision}.",
            "Use --train.precision float16.",
        )
    return {
        "peak_tflops": Assumption(sheet.peak[precision], f"TFLOP/s in {precision}", sheet.source),
        "share_of_peak": Assumption(0.35, "of it that convolutions and products reach", NEVER_MEASURED),
        "memory_gb": Assumption(sheet.memory, "GB", sheet.source),
        "memory_gb_s": Assumption(sheet.bandwidth, "GB/s", sheet.source),
        "share_of_bandwidth": Assumption(0.7, "of it that is reached", NEVER_MEASURED),
        "activation_passes": Assumption(16, "times a step reads or writes each activation", NEVER_MEASURED),
        "devices_a_machine": Assumption(8, "GPUs", "assumed"),
        "cores_a_machine": Assumption(64, "cores for the input", "assumed"),
        "link_gb_s": Assumption(sheet.link, "GB/s between GPUs of a machine, one direction", sheet.source),
        "network_gb_s": Assumption(12.5, "GB/s between machines, one direction (100 Gb/s)", NEVER_MEASURED),
    }


def _cpu() -> dict[str, Assumption]:
    measured = "measured just now, in seconds of a core"
    return {
        "peak_tflops": Assumption(math.nan, "TFLOP/s of a large product on these cores", measured),
        "share_of_peak": Assumption(
            CPU_SHARE, "of it that convolutions and products reach", "fitted here, docs/scaling.md"
        ),
        "memory_gb": Assumption(math.nan, "GB", "free on this machine"),
        "memory_gb_s": Assumption(math.nan, "GB/s of copying", measured),
        "share_of_bandwidth": Assumption(1.0, "of it that is reached", "assumed"),
        "activation_passes": Assumption(
            CPU_PASSES, "times a step reads or writes each activation", "fitted here, docs/scaling.md"
        ),
        "devices_a_machine": Assumption(1, "processes", "assumed"),
        "cores_a_machine": Assumption(math.nan, "cores, which the step needs too", "this process may use them"),
        "link_gb_s": Assumption(1.25, "GB/s between processes, one direction", NEVER_MEASURED),
        "network_gb_s": Assumption(1.25, "GB/s between machines, one direction (10 Gb/s)", NEVER_MEASURED),
    }


def replace_assumptions(assumptions: dict[str, Assumption], replacements: tuple[str, ...]) -> dict[str, Assumption]:
    """Replaces the assumptions that `--assume` names.

    Args:
        assumptions: as from `assumptions_of`.
        replacements: `name=value` each.

    Raises:
        UserError: an assumption is malformed, unknown, or not a possible number; a UserErrors for several.
    """
    changed, problems = dict(assumptions), []
    for text in replacements:
        name, equals, value = text.partition("=")
        try:
            if not equals:
                raise UserError("--assume", f"Expected name=value, received {text!r:.60}.")
            number = _read_number(assumptions, name, value)
            changed[name] = dataclasses.replace(assumptions[name], value=number, source="given with --assume")
        except UserError as error:
            problems.append(error)
    raise_all(problems)
    return changed


def _read_number(assumptions, name, value) -> float:
    if name not in assumptions:
        problem = f"There is no assumption called {name!r:.60}."
        raise UserError("--assume", problem, suggestion(name, assumptions))
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    limit = 1.0 if name.startswith("share_") else 1e15
    whole = name not in COUNTS or number == math.floor(number) if math.isfinite(number) else False
    if not whole or not 0 < number <= limit:
        kind = "a whole number above 0" if name in COUNTS else f"a number above 0{' up to 1' if limit == 1 else ''}"
        raise UserError("--assume", f"Expected {kind} for {name}, received {value!r:.40}.")
    return number
