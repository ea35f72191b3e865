"""An experiment: its sections, the rules between them, derived values."""

from __future__ import annotations

from dupr_tf.config.detector import DetectorConfig
from dupr_tf.config.detector_rules import finetune_problems
from dupr_tf.config.probing import LinearConfig, ProbingConfig
from dupr_tf.config.sections import DataConfig, ModelConfig, OptimizerConfig, TrainConfig, ViewsConfig
from dupr_tf.config.terms import STRIDE_OF, Section, term_arguments


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

    def level_size(self, level: str) -> int:
        """Side of the feature map of a level, in cells."""
        return -(-self.data.image_size // STRIDE_OF[level])

    def steps_per_epoch(self, images: int) -> int:
        """Full batches in one pass over `images` images; at least one."""
        return max(1, images // self.train.batch_size)

    def total_steps(self, images: int) -> int:
        """Optimiser steps of the whole run."""
        steps = self.train.epochs * self.steps_per_epoch(images)
        return steps if self.train.max_steps is None else min(steps, self.train.max_steps)

    def dupr_arguments(self, total_steps: int | None = None) -> dict:
        """What `DUPR` takes beside the backbone.

        Args:
            total_steps: of the run; needed by `model.momentum_schedule: cosine`.
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

    def pretrain_problems(self, replicas: int = 1) -> list[str]:
        """The cross-field mistakes that would make pre-training impossible or meaningless, a line each."""
        problems = [*self._batch_problems(replicas), *self._model_problems(), *self.probing.problems()]
        if self.train.jit == "on" and replicas > 1:
            problems.append(
                f"train.jit: expected auto or off on {replicas} devices, whose exchange of keys XLA does not compile, "
                "received on. Fix: --train.jit auto"
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

    def finetune_problems(self, replicas: int = 1) -> list[str]:
        """The cross-field mistakes that would make fine-tuning a detector impossible or meaningless, a line each."""
        return finetune_problems(self, replicas)

    def _batch_problems(self, replicas: int) -> list[str]:
        batch, groups = self.train.batch_size, self.train.micro_batches
        problems = []
        if groups % replicas:
            problems.append(
                f"train.micro_batches: expected a multiple of the {replicas} devices, received {groups}. "
                f"Fix: --train.micro_batches {replicas * max(1, groups // replicas)}"
            )
        if batch % groups:
            problems.append(
                f"train.batch_size: expected a multiple of train.micro_batches ({groups}), received {batch}. "
                f"Fix: --train.batch_size {max(1, batch // groups) * groups}"
            )
        elif batch // groups < 2:
            problems.append(
                f"train.micro_batches: expected groups of at least 2 images (batch norm needs them), received "
                f"{batch} images in {groups} groups. Fix: --train.micro_batches {max(1, batch // 2)}"
            )
        return problems

    def _model_problems(self) -> list[str]:
        model, problems = self.model, []
        if not model.term_list:
            problems.append(
                "model.image_weights: expected a weight above 0 here or in model.patch_weights, received none. "
                "Fix: --model.image_weights '[0.1,0.4,0.7,1]'"
            )
        for term in model.term_list:
            enqueued = term.keys_per_step(self.train.batch_size)
            if hasattr(term, "bank_size") and term.bank_size < enqueued:
                problems.append(
                    f"model.bank_size: expected at least the {enqueued} keys a step puts in, received "
                    f"{term.bank_size}. Fix: --model.bank_size {enqueued}"
                )
                break
        for level, size in model.patch_sizes.items():
            cells = self.level_size(level)
            if size > cells:
                problems.append(
                    f"model.roi_sizes: expected at most {cells} at {level} (its side at data.image_size "
                    f"{self.data.image_size}), received {size}. Fix: a smaller RoI or larger views"
                )
        if model.patch_sizes and self.views.min_overlap > self.data.image_size:
            problems.append(
                f"views.min_overlap: expected at most data.image_size ({self.data.image_size}), received "
                f"{self.views.min_overlap:g}. Fix: --views.min_overlap 32"
            )
        return problems
