"""An experiment: its sections, the rules between them, derived values."""

from __future__ import annotations

from dupr_tf.config.detector import DetectorConfig
from dupr_tf.config.detector_rules import finetune_problems
from dupr_tf.config.lines import user_errors
from dupr_tf.config.probing import LinearConfig, ProbingConfig
from dupr_tf.config.sections import (
    LEVELS,
    STRIDES,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    Section,
    TrainConfig,
    ViewsConfig,
)
from dupr_tf.errors import UserError


class Config(Section):
    """An experiment. `detector` is read by `finetune` alone, `linear` by `probe linear`."""

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
        """Peak learning rate; scaled linearly with the batch where no number is given (METHOD section 7)."""
        rate = self.optimizer.learning_rate
        return 0.06 * self.train.batch_size / 256 if rate is None else rate

    def level_sizes(self) -> tuple[int, ...]:
        """Side of the feature map of P2..P5, in cells."""
        return tuple(-(-self.data.image_size // stride) for stride in STRIDES)

    def steps_per_epoch(self, images: int) -> int:
        """Full batches in one pass over `images` images; at least one."""
        return max(1, images // self.train.batch_size)

    def total_steps(self, images: int) -> int:
        """Optimiser steps of the whole run."""
        steps = self.train.epochs * self.steps_per_epoch(images)
        return steps if self.train.max_steps is None else min(steps, self.train.max_steps)

    def patch_level_indices(self) -> tuple[int, ...]:
        return tuple(i for i, weight in enumerate(self.model.patch_weights) if weight > 0)

    def pretrain_problems(self, replicas: int = 1) -> list[UserError]:
        """The cross-field mistakes that would make pre-training impossible or meaningless.

        Args:
            replicas: devices that train together.
        """
        problems = [*self._batch_problems(replicas), *user_errors(self._model_problems()), *self.probing.problems()]
        if self.train.jit == "on" and replicas > 1:
            problems.append(
                UserError(
                    "train.jit",
                    f"XLA cannot compile a step in which {replicas} devices exchange keys.",
                    "Use --train.jit auto.",
                )
            )
        return problems

    def pretrain_warnings(self, gpu: bool) -> list[str]:
        """What is allowed but hardly meant, a line each.

        Args:
            gpu: whether this machine has one.
        """
        if self.train.precision == "float16" and not gpu:
            return [
                "train.precision: float16 on a machine without a GPU is slower than float32 and less exact. "
                "Better: --train.precision float32"
            ]
        return []

    def finetune_problems(self, replicas: int = 1) -> list[UserError]:
        """The cross-field mistakes that would make fine-tuning a detector impossible or meaningless.

        Args:
            replicas: devices that train together.
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
            problems.append(
                UserError(
                    "train.micro_batches",
                    f"Batch norm needs groups of at least 2 images, and {batch} images are cut into {groups} groups.",
                    f"Use --train.micro_batches {max(1, batch // 2)}.",
                )
            )
        return problems

    def _model_problems(self) -> list[str]:
        model, problems = self.model, []
        if not any(model.image_weights) and not any(model.patch_weights):
            problems.append(
                "model.image_weights: expected a weight above 0 here or in model.patch_weights, received none. "
                "Fix: --model.image_weights '[0.1,0.4,0.7,1]'"
            )
        enqueued = self.train.batch_size * (model.patch_keys_per_image if any(model.patch_weights) else 1)
        if model.bank_size < enqueued:
            problems.append(
                f"model.bank_size: expected at least the {enqueued} keys a step puts in, received {model.bank_size}. "
                f"Fix: --model.bank_size {enqueued}"
            )
        for i in self.patch_level_indices():
            size, cells = model.roi_sizes[i], self.level_sizes()[i]
            if size > cells:
                problems.append(
                    f"model.roi_sizes: expected at most {cells} at {LEVELS[i]} (its side at data.image_size "
                    f"{self.data.image_size}), received {size}. Fix: a smaller RoI or larger views"
                )
        if any(model.patch_weights) and self.views.min_overlap > self.data.image_size:
            problems.append(
                f"views.min_overlap: expected at most data.image_size ({self.data.image_size}), received "
                f"{self.views.min_overlap:g}. Fix: --views.min_overlap 32"
            )
        return problems
