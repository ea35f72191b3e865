"""The command that plans a run."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import tyro

from dupr_tf.commands.checks import config_or_problems, problems_of
from dupr_tf.commands.screen import print_line
from dupr_tf.config import Config
from dupr_tf.data.images.listing import check_root
from dupr_tf.errors import UserError, raise_all
from dupr_tf.files import write_whole
from dupr_tf.forecast.assumptions import assumptions_of, replace_assumptions
from dupr_tf.forecast.device_types import CPU, NAMES
from dupr_tf.text import suggestion

UNITS = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9}
MOST_IMAGES = 10**12


@dataclasses.dataclass
class Plan:
    """Predict what a pre-training run needs.

    Prints operations, memory, traffic between devices, cores, storage and hours. Nothing is trained.
    Any field of the config is a flag too: --train.epochs 10. `dupr-tf fields` lists them.
    """

    EXAMPLE = "dupr-tf plan configs/dupr_r50_imagenet_200ep.yaml --images 1.28M --gpus 8"

    config: tyro.conf.Positional[Path]
    """Config of a pre-training run."""
    images: str | None = None
    """Number of images, such as 1280000, 12M or 1B. Default: the number in --data."""
    gpus: int | None = None
    """Devices that share the batch. Default: the largest divisor of train.micro_batches up to 8, or 1 for cpu."""
    gpu_type: str = "a100-40gb"
    """Device: t4, v100-32gb, a10, l4, a100-40gb, a100-80gb, h100, or cpu, for the cores of this machine."""
    data: Path | None = None
    """Images to measure the input with: a folder, shards, or tfds:NAME. Default: a figure measured elsewhere."""
    assume: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """NAME=VALUE, instead of an assumption in the last table of the plan. It may be given several times."""
    check: bool = False
    """Take real steps on this machine and print the error of the prediction. Needs --gpu-type cpu --gpus 1."""
    json: Path | None = None
    """JSON file for all figures. Default: they are only printed."""

    def run(self, overrides: dict[str, str]) -> None:
        config, devices, images = self._check(overrides)
        from dupr_tf.forecast.plan import build_plan
        from dupr_tf.forecast.printing import plan_lines

        plan = build_plan(config, str(self.config), self.gpu_type, devices, images, self.data, self.assume, self.check)
        print(*plan_lines(plan), sep="\n")
        for problem in plan.problems():
            print_line(f"* {problem}")
        if self.json is not None:
            write_whole(self.json, json.dumps(plan.as_json(), indent=2) + "\n")

    def _check(self, overrides) -> tuple[Config, int, int | None]:
        """Returns config, devices and images before TensorFlow loads; raises all mistakes at once."""
        config, problems = config_or_problems(self.config, overrides)
        devices = self.gpus if self.gpus is not None else self._default_devices(config)
        if devices < 1:
            problems.append(UserError("--gpus", f"Expected 1 or more, received {devices}."))
        elif config is not None and config.detector is not None:
            problem = f"{self.config} is a config for finetune, and plan is about pre-training."
            problems.append(UserError("detector", problem, "Pass a config of pretrain."))
        elif config is not None:
            problems += config.pretrain_problems(devices)
        if self.gpu_type not in NAMES:
            fix = suggestion(self.gpu_type.lower(), NAMES, cutoff=0.5)
            problems.append(UserError("--gpu-type", f"There is no device called {self.gpu_type!r:.40}.", fix))
        problems += problems_of(self._assumptions, config)
        if self.images is not None:
            problems += problems_of(images_in, self.images)
        if self.data is not None:
            problems += problems_of(check_root, self.data, config.data.kind if config else "auto")
        if self.check and (self.gpu_type, devices) != (CPU, 1):
            problem = "A check runs one process on the cores of this machine."
            problems.append(UserError("--check", problem, "Pass --gpu-type cpu --gpus 1."))
        if self.json is not None and not _writable(self.json):
            fix = "Pass the name of a file in a folder that exists."
            problems.append(UserError("--json", f"{self.json} cannot be written.", fix))
        raise_all(problems)
        return config, devices, None if self.images is None else images_in(self.images)

    def _default_devices(self, config: Config | None) -> int:
        if self.gpu_type == CPU or config is None:
            return 1
        return max(number for number in range(1, 9) if config.train.micro_batches % number == 0)

    def _assumptions(self, config: Config | None):
        """Returns the assumptions of the device, or of any if it or the config is unknown: the names are the same."""
        both = config is not None and self.gpu_type in NAMES
        of = (self.gpu_type, config.train.precision, config.data.image_size) if both else (CPU, "float32", 224)
        return replace_assumptions(assumptions_of(*of), self.assume)


def images_in(text: str) -> int:
    """Returns the number that `1280000`, `1.28M` or `1B` stands for.

    Raises:
        UserError: it is not a number from 1 to 10^12.
    """
    match = re.fullmatch(r"(\d{1,13}(?:\.\d{1,9})?)([kMB]?)", text.strip(), re.ASCII)
    number = float(match[1]) * UNITS[match[2]] if match else 0
    if not 1 <= number <= MOST_IMAGES or abs(number - round(number)) > 1e-6 * number:
        raise UserError("--images", f"Expected a number of images such as 1280000 or 12M, received {text!r:.40}.")
    return round(number)


def _writable(path) -> bool:
    return path.absolute().parent.is_dir() and not path.is_dir()
