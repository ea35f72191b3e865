r"""Trains and evaluates a config of configs/detectron2/ in detectron2 (0.6), for the paper's transfer rows.

    python scripts/detectron2_train.py --num-gpus 8 --config-file configs/detectron2/voc_faster_rcnn_c4_24k.yaml \
        MODEL.WEIGHTS runs/for_detectron2/backbone.pkl OUTPUT_DIR runs/voc

MODEL.WEIGHTS is the file that `dupr-tf export --to detectron2` wrote, or the word random. Data are in the folder of
$DETECTRON2_DATASETS, as detectron2 expects. The script needs detectron2, but not dupr_tf.
tests/scripts/test_detectron2_interop.py runs it for two iterations on a CPU. With --eval-only --resume it evaluates the
last checkpoint of OUTPUT_DIR.
"""

import functools
import os
import re

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultTrainer, default_argument_parser, default_setup, launch
from detectron2.evaluation import CityscapesInstanceEvaluator, COCOEvaluator, PascalVOCDetectionEvaluator
from detectron2.layers import get_norm
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, Res5ROIHeads
from detectron2.utils import comm
from detectron2_subsets import draw_and_record, parse_subset

# Evaluators by detectron2's type of each data set. Precise BN is a hook of detectron2 (TEST.PRECISE_BN).
EVALUATORS = {
    "coco": lambda name, folder: COCOEvaluator(name, output_dir=folder),
    "pascal_voc": lambda name, folder: PascalVOCDetectionEvaluator(name),
    "cityscapes_instance": lambda name, folder: CityscapesInstanceEvaluator(name),
}


@ROI_HEADS_REGISTRY.register()
class Res5ROIHeadsWithNorm(Res5ROIHeads):
    """Adds a norm after res5 to the C4 heads, because the last addition in res5 is not normalised."""

    @classmethod
    def _build_res5_block(cls, cfg):
        blocks, channels = super()._build_res5_block(cfg)
        # A flat list, so that the blocks keep the names of the weights, res5.0, res5.1, … The norm is res5.3.
        return torch.nn.Sequential(*blocks, get_norm(cfg.MODEL.RESNETS.NORM, channels)), channels


# A norm counts its batches but does not use the count. No export has res5.3, the norm of the class above.
BACKBONE = re.compile(r"(?:^|\.)(?:stem|res(?!5\.3\.)\d)\.(?!.*num_batches_tracked)")


def require_backbone(checkpointer):
    """Makes a checkpointer refuse weights that do not fill the backbone exactly. detectron2 only warns."""
    log_incompatible = checkpointer._log_incompatible_keys

    def refuse(keys):
        groups = {
            "missing": keys.missing_keys,
            "unexpected": keys.unexpected_keys,
            "of another shape": [name for name, *_ in keys.incorrect_shapes],
        }
        groups = {what: [name for name in names if BACKBONE.search(name)] for what, names in groups.items()}
        problems = [f"{len(names)} {what}, such as {names[0]}" for what, names in groups.items() if names]
        if problems:
            raise ValueError(
                f"MODEL.WEIGHTS does not fit the backbone: {'; '.join(problems)}. Set the depth and channels that the "
                "README.md of the export lists. ResNet-18 and ResNet-34 need an FPN model."
            )
        log_incompatible(keys)

    checkpointer._log_incompatible_keys = refuse
    return checkpointer


class Trainer(DefaultTrainer):
    """Extends detectron2's trainer by an evaluator for each kind of data set."""

    @classmethod
    def build_evaluator(cls, cfg, dataset_name, output_folder=None):
        kind = MetadataCatalog.get(dataset_name).evaluator_type
        if kind not in EVALUATORS:
            raise ValueError(f"Expected a data set of {', '.join(EVALUATORS)}, received {dataset_name} ({kind}).")
        return EVALUATORS[kind](dataset_name, output_folder or os.path.join(cfg.OUTPUT_DIR, "inference"))


def configure(arguments):
    """Returns the frozen config of a command line, and registers its subsets."""
    cfg = get_cfg()
    cfg.merge_from_file(arguments.config_file)
    cfg.merge_from_list(arguments.opts)
    if not cfg.MODEL.WEIGHTS:
        raise ValueError("MODEL.WEIGHTS is missing. Add MODEL.WEIGHTS backbone.pkl, or MODEL.WEIGHTS random.")
    if cfg.MODEL.WEIGHTS == "random":
        cfg.MODEL.WEIGHTS = ""
    cfg.freeze()
    for name in cfg.DATASETS.TRAIN:
        register_subset(name, cfg.OUTPUT_DIR)
    return cfg


def register_subset(name, folder):
    """Make a name such as coco_2017_train_1pct_seed0 known to detectron2; leaves other names alone."""
    subset = parse_subset(name)
    if subset is None or name in DatasetCatalog.list():
        return
    DatasetCatalog.register(name, functools.partial(load_subset, subset, folder))
    facts = MetadataCatalog.get(subset.base).as_dict()
    # Leaves out json_file, because it describes the whole data set, and an evaluator would use it for the subset.
    MetadataCatalog.get(name).set(**{key: facts[key] for key in facts if key not in ("name", "json_file")})


def load_subset(subset, folder):
    """Returns the records of a subset. The first process writes the list of its images."""
    return draw_and_record(DatasetCatalog.get(subset.base), subset, folder, write=comm.is_main_process())


def main(arguments):
    """Trains and evaluates, or only evaluates (--eval-only). Runs in each process of `launch`.

    With --resume, it starts from the last checkpoint of OUTPUT_DIR, if one exists, instead of MODEL.WEIGHTS.
    """
    cfg = configure(arguments)
    default_setup(cfg, arguments)
    if arguments.eval_only:
        model = Trainer.build_model(cfg)
        checkpointer = require_backbone(DetectionCheckpointer(model, cfg.OUTPUT_DIR))
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=arguments.resume)
        return Trainer.test(cfg, model)
    trainer = Trainer(cfg)
    require_backbone(trainer.checkpointer)
    trainer.resume_or_load(resume=arguments.resume)
    return trainer.train()


if __name__ == "__main__":
    args = default_argument_parser().parse_args()
    launch(main, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url, args=(args,))
