"""Pre-trains a backbone from a config and a folder of images. The same command resumes the run."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from dupr_tf.config import Config
from dupr_tf.data.images.bad_images import BadImages, check_readable, warn_of_few_levels
from dupr_tf.data.images.source import ImageSource, as_source
from dupr_tf.data.pipeline import view_pairs
from dupr_tf.errors import UserError, raise_all
from dupr_tf.files import discarded_on_error, local_path
from dupr_tf.locks import locked
from dupr_tf.models import DUPR, build_backbone
from dupr_tf.models.multi_worker import MultiWorkerDUPR
from dupr_tf.models.twins import in_full_precision
from dupr_tf.training.callbacks import Probe, RunProbes
from dupr_tf.training.checkpoints import RunCheckpoints
from dupr_tf.training.cluster import Cluster, check_shared, cluster_of, record_cluster
from dupr_tf.training.distribution import (
    choose_jit,
    choose_strategy,
    distribute,
    is_multi_worker,
    local_devices,
    replicas,
    scope,
)
from dupr_tf.training.feed import feed
from dupr_tf.training.health import (
    CheckBadImages,
    StopOnDivergence,
    WarnOfCollapse,
    WarnOfDecline,
    WarnOfLittleOverlap,
)
from dupr_tf.training.loop import chief_callbacks, train
from dupr_tf.training.metrics_log import MetricsLog
from dupr_tf.training.optimizers import build_optimizer
from dupr_tf.training.pool import Pool, exclusion_changes, open_pool
from dupr_tf.training.run import check, record, refuse_late_changes, require_checkpoint, run_id, starting_weights
from dupr_tf.training.run_images import images_entry
from dupr_tf.training.schedule import AfterChangeName, Schedule, next_schedule, write_schedule
from dupr_tf.training.signals import noted_signals
from dupr_tf.training.worker_facts import image_facts, program_facts
from dupr_tf.training.workers import Alone, ReportToChief, Workers

log = logging.getLogger(__name__)
BAD_IMAGES_FILE = "bad_images.tsv"
BACKBONE_FILE = "backbone.keras"


@dataclasses.dataclass(frozen=True)
class PretrainResult:
    """Holds the results of a run.

    Args:
        run: its folder.
        backbone: the backbone's file.
        step: the last step.
        bad_images: {name: reason} of the skipped images, of the first 10,000 if there are more.
        skipped: {kind of reason: number of images}, of all skipped images.
    """

    run: Path
    backbone: Path
    step: int
    bad_images: dict[str, str]
    skipped: dict[str, int]


def pretrain(
    config: Config,
    output: str | Path,
    data: str | Path | None = None,
    weights: str | Path | None = None,
    allow_change: bool = False,
    probe: Probe | None = None,
    after_change: AfterChangeName | None = None,
    exclude: Sequence[str | Path] = (),
    pool: Pool | None = None,
) -> PretrainResult:
    """Trains a backbone on unlabelled images. Resumes an earlier start of the same run.

    Args:
        config: the experiment.
        output: the run's folder. It receives `config.yaml`, `images.json`, `environment.json`, `metrics.jsonl`,
            `tensorboard/`, `checkpoints/`, `backbone.keras`, and `bad_images.tsv` if images had to be skipped. With
            `exclude` also `excluded.json`, `excluded.tsv` and `hashes.bin`.
        data: folder of images, COCO or VOC root, shards, or `tfds:NAME`. Default: `config.data.root`.
        weights: initial weights of both encoders: a run, an export, `.keras`, another tool's checkpoint, or the name
            or address of a public one (docs/weights.md). `imagenet` is that of the config's backbone. Default: random
            weights, or in a resumed run those it started from.
        allow_change: resume with another config or other images, and log the differences.
        after_change: learning rate after an allowed change, see `dupr_tf.training.schedule`.
        exclude: test images, each a folder or a labelled data set, whose split val is taken. Images of `data` with the
            same bytes or nearly the same picture are left out. Default: none, or in a resumed run those of its start.
        pool: the images of `data`, if `open_pool` has opened them already for this output.
        probe: called every `config.probing.every_epochs` epochs and at the end, see `dupr_tf.probing.in_training`.

    Raises:
        UserError: a folder without images, impossible settings or weights of another network. Also an output folder
            that another process has locked, or a run there with another config, images or initial weights.
        RunFailed: the loss diverged, or something could not be written, as on a full disk.
        RunInterrupted: SIGTERM, SIGINT or SIGHUP came. The step was finished and saved. It is a `KeyboardInterrupt`.
    """
    run = local_path(output, "output")
    _require_probe(config, probe)
    cluster = cluster_of(config)
    with join_workers(cluster, config) as workers, locked(run) if workers.chief else contextlib.nullcontext():
        pool = pool or open_pool(config, data, exclude, run, workers.index)
        model, bad, checkpoints, step, schedule = _start(
            run, pool, weights, allow_change, after_change, workers, cluster
        )
        step = _fit(model, pool, bad, checkpoints, step, run, probe, workers, cluster, schedule)
        backbone = _write_backbone(model, run) if workers.chief else run / BACKBONE_FILE
        return PretrainResult(run, backbone, step, bad.reasons, dict(bad.kinds))


def _require_probe(config: Config, probe: Probe | None) -> None:
    if config.probing.every_epochs and probe is None:
        raise UserError(
            "probe",
            f"probing.every_epochs is {config.probing.every_epochs}, and no probe is given.",
            "Pass probe=dupr_tf.probing.in_training.build_probe(config.probing), or set every_epochs to 0.",
        )


@contextlib.contextmanager
def join_workers(cluster: Cluster | None, config: Config):
    """Connects to the other workers of a cluster, and checks that all do the same run."""
    if cluster is None:
        yield Alone(choose_strategy(config.train.strategy))
        return
    devices = len(local_devices())
    with Workers(cluster, config.train.worker_timeout, config.train.start_timeout) as workers:
        log.info("%d workers of %d devices; this is %s", workers.count, devices, cluster.called(cluster.index))
        workers.agree(program_facts(config, cluster, devices))
        yield workers


def _start(run: Path, pool: Pool, weights, allow_change: bool, after_change, workers, cluster) -> tuple:
    """Checks that the run can start or resume, builds its model at the newest checkpoint, and records the start.

    Returns:
        The model, the list of unreadable images, the checkpoints, the step, and the schedule.
    """
    config, source, devices = pool.config, pool.source, replicas(workers.strategy)
    bad = check_images(pool, devices, run / BAD_IMAGES_FILE if workers.chief else None)
    workers.agree(image_facts(pool) if cluster else {})
    images = images_entry(config.data.root, source)
    others = exclusion_changes(run, pool.exclusion) if workers.chief else []
    changes = check(run, config, images, allow_change, others) if workers.chief else []
    backbone, entry = starting_weights(run, config, weights)
    workers.agree({"--weights": entry["sha256"] if entry else "random"} if cluster else {})
    start = None if backbone is None else backbone.get_weights()
    with scope(workers.strategy):
        model = compiled_model(config, len(source), start, devices)
    checkpoints = RunCheckpoints(model, run / "checkpoints", config.train.keep_checkpoints, run_id(run))
    checkpoints.announce = workers.announce
    step = _restore(checkpoints, workers)
    require_checkpoint(step, backbone is not None, entry)
    refuse_late_changes(changes, step, config.total_steps(len(source)))
    arguments = run, config, len(source), step, bool(changes), after_change
    schedule = next_schedule(*arguments) if workers.chief else None
    schedule = Schedule(**workers.agree({}, dataclasses.asdict(schedule) if schedule else None))
    model.optimizer.learning_rate = schedule.rates(config)
    _record(run, pool, images, entry, bad, workers, cluster, schedule)
    checkpoints.run = run_id(run)
    return model, bad, checkpoints, step, schedule


def _record(
    run: Path, pool: Pool, images: dict, weights: dict | None, bad: BadImages, workers, cluster, schedule
) -> None:
    """Makes the chief record the start of the run after all checks have passed; the other workers then read it."""
    token = ""
    if workers.chief:
        write_schedule(run, schedule)
        record(run, pool.config, images, weights, pool.files())
        token = record_cluster(run, cluster)
        bad.writes = True
    message = workers.agree({}, {"token": token})
    if not workers.chief:
        check_shared(run, cluster, message["token"])


def check_images(pool: Pool, replicas: int, report: Path | None = None) -> BadImages:
    """Rejects what cannot work, and returns the list of the unreadable images."""
    raise_all(pool.config.pretrain_problems(replicas))
    bad = BadImages.of(pool.source, pool.config.data, report)
    bad.writes = False  # until the run is recorded
    check_readable(pool.source, bad)
    warn_of_few_levels(pool.source, pool.config.data.depth)
    return bad


def compiled_model(config: Config, images: int, start: list[np.ndarray] | None = None, replicas: int = 1) -> DUPR:
    """Builds `build_model` with the optimiser of a run over `images` images on `replicas` devices."""
    jit, reason = choose_jit(config.train.jit, replicas)
    log.info("XLA %s: %s", "compiles the step" if jit else "is not used", reason)
    model = build_model(config, start, config.total_steps(images))
    model.compile(optimizer=build_optimizer(config, images), jit_compile=jit)
    model.optimizer.build(model.query_variables)
    return model


def build_model(config: Config, start: list[np.ndarray] | None = None, total_steps: int | None = None) -> DUPR:
    """Builds the pre-training model of a config, with weights drawn from `train.seed`.

    Args:
        config: the experiment.
        start: initial weights of the backbone instead of random ones. Both encoders get them; the heads stay random.
        total_steps: steps of the run; required by `model.momentum_schedule: cosine`.
    """
    keras.utils.set_random_seed(config.train.seed)
    policy = config.train.policy
    backbone = build_backbone(config.model.backbone, width=config.model.width, dtype=policy)
    if start is not None:
        backbone.set_weights(start)  # before DUPR copies the query encoder into the key encoder
    kind = MultiWorkerDUPR if is_multi_worker(tf.distribute.get_strategy()) else DUPR
    return kind(backbone, dtype=policy, **config.dupr_arguments(total_steps))


def _fit(model, pool: Pool, bad, checkpoints, step, run, probe, workers, cluster, schedule) -> int:
    """Trains from a step to the last, and returns the last step."""
    config, source = pool.config, pool.source
    per_epoch, total = config.steps_per_epoch(len(source)), config.total_steps(len(source))
    if workers.chief and step < total:
        (run / BACKBONE_FILE).unlink(missing_ok=True)  # the last step of the run before it became longer
    if step > total:
        log.warning("%s has taken %d steps already, and the config now has %d", run, step, total)
    elif step == total:
        log.info("%s has ended before, at step %d", run, step)
    elif step:
        log.info("resuming %s at step %d of %d", run, step, total)

    def open_reader(first, last):
        return view_pairs(source, config, first, last, bad, (workers.index, workers.count))

    def feed_rows(reader):
        return distribute(model.distribute_strategy, feed(reader))

    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(noted_signals())
        callbacks = [ReportToChief(workers, bad, signals, step)] if cluster else []
        if workers.chief:
            metrics = _open_metrics(run, config, step, total, per_epoch, checkpoints.extra, schedule)
            stack.callback(metrics.close)
            stack.callback(bad.close)
            every = config.probing.every_epochs * per_epoch
            callbacks += chief_callbacks(
                metrics,
                checkpoints,
                config.train.checkpoint_interval,
                signals,
                guards=[StopOnDivergence(run, lambda of: batch_images(source, config, of, bad), step)],
                validation=RunProbes(workers.announce(probe), model.backbone, every, step, total) if every else None,
                checks=[
                    WarnOfCollapse(config, step),
                    WarnOfDecline(config, step, checkpoints.extra),
                    WarnOfLittleOverlap(config, step),
                    CheckBadImages(bad, step),
                ],
            )
        train(model, open_reader, (step, total), per_epoch, callbacks, feed_rows)
        if total > step and workers.chief:
            checkpoints.save()
    return max(step, total)


def _open_metrics(run, config: Config, step, total, per_epoch, state: dict, schedule: Schedule) -> MetricsLog:
    """Opens the log of the run's metrics at a step."""
    return MetricsLog(
        run,
        step,
        total,
        per_epoch,
        config.train.batch_size,
        config.train.log_every,
        state,
        shown=[f"accuracy/{name}" for name in config.model.main_terms],
        guessing=config.model.guessing_loss,
        epochs=(schedule.since_step, schedule.since_epoch),
    )


def _restore(checkpoints, workers) -> int:
    """Restores the chief's newest undamaged checkpoint on every worker, and returns its step."""
    if workers.chief:
        return workers.agree({}, {"step": checkpoints.restore()})["step"]
    step = workers.agree({})["step"]
    checkpoints.restore_step(step)
    return step


def batch_images(images: ImageSource | Sequence[str], config: Config, step: int, bad: BadImages) -> list[str]:
    """Lists the names of the images in the batch of a step, from 0."""
    source = as_source(images)
    with view_pairs(source, config, step, step + 1, bad) as reader:
        return [source.name(index) for index in next(reader)["index"].tolist()]


def _write_backbone(model: DUPR, run: Path) -> Path:
    """Saves the query backbone in float32. The file gets its final name only once it is complete."""
    path = run / BACKBONE_FILE
    temporary = path.with_name("backbone.tmp.keras")
    with discarded_on_error(temporary):
        in_full_precision(model.backbone).save(temporary)
        temporary.replace(path)
    return path
