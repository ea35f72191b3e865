"""Defines an experiment: its sections, the rules between them, derived values."""

from __future__ import annotations

from dupr_tf.config.detector import DetectorConfig
from dupr_tf.config.detector_rules import finetune_problems
from dupr_tf.config.probing import LinearConfig, ProbingConfig
from dupr_tf.config.sections import DataConfig, ModelConfig, OptimizerConfig, TrainConfig, ViewsConfig
from dupr_tf.config.terms import STRIDE_OF, Section, term_arguments
from dupr_tf.errors import UserError


class Config(Section):
    """Holds the sections of an experiment. Only `finetune` reads `detector`, and only `probe linear` reads `linear`."""

    data: DataConfig = DataConfig()
    views: ViewsConfig = ViewsConfig()
    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    probing: ProbingConfig = ProbingConfig()
    detector: DetectorConfig | None = None
    linear: LinearConfig | None = None

    @property
    def learning_rate(self) -> float:
        """Returns the peak learning rate, scaled linearly with the batch unless set (docs/method.md, Optimiser)."""
        rate = self.optimizer.learning_rate
        return 0.06 * self.train.batch_size / 256 if rate is None else rate

    def level_size(self, level: str) -> int:
        """Returns the side of the feature map of a level, in cells."""
        return -(-self.data.image_size // STRIDE_OF[level])

    def steps_per_epoch(self, images: int) -> int:
        """Returns the full batches in one pass over `images` images; at least one."""
        return max(1, images // self.train.batch_size)

    def total_steps(self, images: int) -> int:
        """Returns the optimiser steps of the whole run."""
        steps = self.train.epochs * self.steps_per_epoch(images)
        return steps if self.train.max_steps is None else min(steps, self.train.max_steps)

    def dupr_arguments(self, total_steps: int | None = None) -> dict:
        """Returns the arguments of `DUPR` except the backbone.

        Args:
            total_steps: steps of the run; required by `model.momentum_schedule: cosine`.
        """
        return {
            "terms": [term_arguments(term) for term in self.model.term_list],
            "momentum": self.model.momentum,
            "momentum_schedule": self.model.momentum_schedule,
            "total_steps": total_steps if self.model.momentum_schedule == "cosine" else None,
            "photometric": self.views.photometric,
            "micro_batches": self.train.micro_batches,
            "seed": self.train.seed,
        }

    def pretrain_problems(self, replicas: int = 1) -> list[UserError]:
        """Lists the cross-field mistakes that would make pre-training impossible or meaningless.

        Args:
            replicas: number of devices that train together.
        """
        problems = [*self._batch_problems(replicas), *self._model_problems(), *self.probing.problems()]
        problems += self.milestone_problems()
        if self.train.jit == "on" and replicas > 1:
            problems.append(
                UserError(
                    "train.jit",
                    f"XLA cannot compile a step in which {replicas} devices exchange keys.",
                    "Use --train.jit auto.",
                )
            )
        return problems

    def milestone_problems(self) -> list[UserError]:
        """Returns an error if milestones are given to a schedule that has none."""
        optimizer = self.optimizer
        name = "milestone_steps" if optimizer.milestone_steps else "milestones"
        if optimizer.schedule == "milestones" or not getattr(optimizer, name):
            return []
        problem = f"Expected milestones, since optimizer.{name} is set, received {optimizer.schedule}."
        return [
            UserError(
                "optimizer.schedule", problem, f"Pass --optimizer.schedule milestones, or remove optimizer.{name}."
            )
        ]

    def pretrain_warnings(self, gpu: bool) -> list[str]:
        """Lists settings that are allowed but probably not intended, one line each.

        Args:
            gpu: True if this machine has a GPU.
        """
        warnings = []
        if self.detector is not None:
            warnings.append(
                "detector: this is the config of a detector, which `finetune` reads. Pre-training ignores its section "
                "detector. Better: a config without that section, such as configs/demo.yaml"
            )
        if self.train.precision == "float16" and not gpu:
            warnings.append(
                "train.precision: float16 on a machine without a GPU is slower than float32 and less exact. "
                "Better: --train.precision float32"
            )
        return warnings

    def schedule_warnings(self, images: int) -> list[str]:
        """Lists the parts of the schedule that a run over a number of images never reaches, one line each."""
        optimizer, total, per_epoch = self.optimizer, self.total_steps(images), self.steps_per_epoch(images)
        warnings, warmup = [], optimizer.warmup_steps
        if warmup >= total:
            highest = self.learning_rate * total / warmup
            warnings.append(
                f"optimizer.warmup_steps: the run ends at step {total:,}, before its warm-up of {warmup:,} steps does. "
                f"The learning rate reaches {highest:.2g} at most, not {self.learning_rate:g}. "
                f"Better: --optimizer.warmup_steps {total // 10}, or a longer run."
            )
        if optimizer.schedule != "milestones":
            return warnings
        of_steps = bool(optimizer.milestone_steps)
        milestones = optimizer.milestone_steps or optimizer.milestones
        late = [f"{at:g}" for at in milestones if round(at if of_steps else at * per_epoch) >= total]
        if late or not milestones:
            last, unit = (total, "step") if of_steps else (total / per_epoch, "epoch")
            name = "milestone_steps" if of_steps else "milestones"
            which = f"before the milestones at {unit} {', '.join(late)}" if late else "and there are no milestones"
            warnings.append(
                f"optimizer.{name}: the run ends at {unit} {last:g}, {which}. The learning rate does not fall there. "
                "Better: earlier milestones, a longer run, or --optimizer.schedule cosine."
            )
        return warnings

    def finetune_problems(self, replicas: int = 1) -> list[UserError]:
        """Lists the cross-field mistakes that would make fine-tuning a detector impossible or meaningless.

        Args:
            replicas: number of devices that train together.
        """
        return finetune_problems(self, replicas)

    def _batch_problems(self, replicas: int) -> list[UserError]:
        batch, groups = self.train.batch_size, self.train.micro_batches
        problems = []
        if groups % replicas:
            problems.append(
                UserError(
                    "train.micro_batches",
                    f"Expected a multiple of the {replicas} devices, received {groups}.",
                    f"Use --train.micro_batches {replicas * max(1, groups // replicas)}.",
                )
            )
        if batch % groups:
            problems.append(
                UserError(
                    "train.batch_size",
                    f"Expected a multiple of train.micro_batches ({groups}), received {batch}.",
                    f"Use --train.batch_size {max(1, batch // groups) * groups}.",
                )
            )
        elif batch // groups < 2:
            field, fix = ("micro_batches", batch // 2) if batch > 1 else ("batch_size", 2)
            problem = f"Batch norm needs groups of at least 2 images, and the groups have {batch // groups}."
            problems.append(UserError(f"train.{field}", problem, f"Use --train.{field} {fix}."))
        return problems

    def _model_problems(self) -> list[UserError]:
        model, problems = self.model, []
        if not model.term_list:
            fix = "Use --model.image_weights '[0.1,0.4,0.7,1]'."
            problems.append(UserError("model.image_weights", "All image and patch weights are 0.", fix))
        short = model.terms is None
        for term in model.term_list:
            keys = term.keys_per_step(self.train.batch_size)
            if hasattr(term, "bank_size") and term.bank_size < keys:
                expected = f"at least the {keys} keys that {term.full_name} stores each step"
                problem = f"Expected {expected}, received {term.bank_size}."
                fix = f"Use a bank_size of {keys} or more."
                problems.append(UserError("model.bank_size" if short else "model.terms", problem, fix))
                break
        side = self.data.image_size
        if side % 32:
            fix = f"Use {max(32, round(side / 32) * 32)}."
            problems.append(UserError("data.image_size", f"Expected a multiple of 32, received {side}.", fix))
        for level, size in model.patch_sizes.items():
            cells = self.level_size(level)
            if size > cells:
                expected = f"at most {cells} at {level}, its side at data.image_size {side}"
                problem, fix = f"Expected {expected}, received {size}.", "Use a smaller size, or larger views."
                problems.append(UserError("model.roi_sizes" if short else "model.terms", problem, fix))
        if model.patch_sizes and self.views.min_overlap > side:
            problem = f"Expected at most data.image_size ({side}), received {self.views.min_overlap:g}."
            problems.append(UserError("views.min_overlap", problem, "Use --views.min_overlap 32."))
        return problems
