"""Checks that inspecting commands, and commands with mistakes, never load TensorFlow, Keras or PyTorch."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dupr_tf.config import dump_config, load_config
from dupr_tf.data.sample import write_sample
from dupr_tf.locks import LOCK_FILE, locked
from dupr_tf.training.run import CONFIG_FILE, FORMAT, FORMAT_FILE
from dupr_tf.training.run_images import IMAGES_FILE
from tests.reporting.run_folders import write_run

ROOT = Path(__file__).resolve().parents[1]
# Runs a JSON list of command lines, one after the other. Prints the exit code of each, or why it has none.
RUNNER = """
import importlib.machinery, json, sys

class Blocked(Exception):
    pass

class Blocker:
    heavy = {"tensorflow", "keras", "keras_cv", "keras_hub", "torch", "matplotlib", "sklearn"}

    def find_spec(self, name, path=None, target=None):  # `importlib.util.find_spec` may still ask for them
        return importlib.machinery.ModuleSpec(name, self) if name.partition(".")[0] in self.heavy else None

    def create_module(self, spec):
        raise Blocked(spec.name)

sys.meta_path.insert(0, Blocker())
from dupr_tf.cli import main

codes = []
for arguments in json.load(sys.stdin):
    try:
        codes.append(main(arguments))
    except SystemExit as end:  # of tyro
        codes.append(end.code)
    except BaseException as error:
        codes.append(f"{type(error).__name__}: {error}")
print("codes", json.dumps(codes))
"""
PRETRAIN = "pretrain configs/demo.yaml"
FINETUNE = "finetune configs/retinanet_r18_small.yaml"
ODD = "[a]{b,c}*?%d#$HOME'\"é日\n" + "x" * 180
LOOKING = [
    "--help",
    "--version",
    "--verbose list probes",
    "pretrain --help",
    "list",
    "fields",
    "report run --views 0 --output page.html",
    "report trained --views 0 --output curves.html",
    "scan photos",
    "pack photos --output shards",
    "pack shards --verify",
    f"scan {ODD} --output {ODD}.tsv",
    f"pack {ODD} --output {ODD}-shards",
    f"pack {ODD}-shards --verify",
    f"pack {ODD}-shards --list",
    f"sample {ODD}-sample --train 1 --val 1 --unlabeled 1",
    "convert set --output converted --to yolo",
    "views configs/retinanet_r18_small.yaml --data set --output pictures.png",
]
REFUSED = [
    # images
    f"{PRETRAIN} --output new",
    f"{PRETRAIN} --output new --data none",
    f"{PRETRAIN} --output new --data empty",
    f"{PRETRAIN} --output new --data w.npz",
    f"{PRETRAIN} --output new --data photos --data.kind voc",
    f"{PRETRAIN} --output new --data unreadable",
    f"{PRETRAIN} --dry-run --data unreadable",
    "views configs/demo.yaml --data unreadable",
    "probe matching --weights w.npz --data unreadable",
    f"{PRETRAIN} --output new --data gs://bucket/photos",
    f"{PRETRAIN} --output new --data photos --exclude none",
    f"{PRETRAIN} --output new --data photos --exclude set empty",
    f"{PRETRAIN} --output new --data photos --exclude unreadable",
    f"{PRETRAIN} --output new --data photos --exclude photos",
    f"{PRETRAIN} --output new2 --data photos/a --exclude photos/b",
    f"{PRETRAIN} --dry-run --data photos/a --exclude photos/b",
    f"{PRETRAIN} --output run --data photos --exclude set",
    f"{PRETRAIN} --output new --data photos --exclude s3://bucket/val",
    f"{PRETRAIN} --output new --data.root s3://bucket/photos",
    f"{PRETRAIN} --output new --data photos --probing.every_epochs 1 --probing.data empty",
    "scan none",
    "scan empty",
    "scan photos --workers 0",
    "scan photos --max-bad-share 2",
    "pack photos",
    "pack none --output new",
    "pack empty --output new",
    "pack photos --verify",
    "views configs/demo.yaml --data empty",
    "views configs/demo.yaml --data photos --output views.jpg",
    "views configs/demo.yaml --data photos --output new.png --train.epochs 0",
    "doctor none.yaml",
    "doctor --data none",
    "doctor --train.epochs 9",
    "doctor configs/demo.yaml --train.batch_size 9 --data none",
    "doctor configs/demo.yaml --train.epoch 9",
    "doctor configs/demo.yaml --steps",
    "doctor configs/retinanet_r18_small.yaml --data bad_labels",
    "doctor configs/retinanet_r18_small.yaml --data set --steps",
    "doctor configs/retinanet_r18_small.yaml --data photos",
    "views configs/retinanet_r18_small.yaml --data photos",
    "views configs/detection/small_fcn.yaml --data photos",
    "convert photos --output new --to coco",
    "convert set --output set/new --to coco",
    "convert set --output photos --to coco",
    "convert set --output new --to coco --kind masks",
    "convert none --output new --to coco",
    "plan configs/demo.yaml --images many",
    "plan configs/demo.yaml --data none",
    "plan configs/demo.yaml --gpus 0 --images many --assume x --gpu-type tpu9",
    # configs
    "pretrain configs/none.yaml --data photos --output new",
    f"{PRETRAIN} --data photos --output new --train.epoch 3",
    f"{PRETRAIN} --data photos --output new --epochs 3",
    f"{PRETRAIN} --data photos --output new --train.batch_size 63",
    f"{PRETRAIN} --data empty --output new --train.epochs 0 --model.backbone vgg",
    "pretrain bomb.yaml --data photos --output new",
    "finetune configs/demo.yaml --weights random --data set --output new",
    f"{FINETUNE} --weights random --data set --output new --data.share 2",
    f"{FINETUNE} --weights random --data set --output new --detector.kind none",
    f"{FINETUNE} --weights random --data set --output new --data.image_size 100",
    # outputs
    f"{PRETRAIN} --data photos",
    f"{PRETRAIN} --data photos --output w.npz",
    f"{PRETRAIN} --data photos --output run --train.seed 5",
    f"{PRETRAIN} --data photos/a --output run",
    f"{PRETRAIN} --data photos --output older",
    f"{PRETRAIN} --data photos --output damaged",
    f"{FINETUNE} --weights random --data set --output w.npz",
    f"{FINETUNE} --weights random --data set --output run",
    f"{FINETUNE} --weights random --data set --output detector",
    "evaluate detector --data set --output w.npz",
    "export export --to keras --output photos",
    "export export --to keras --output new.keras",
    "import w.npz --output new.pth",
    "import w.npz --output old.keras",
    "probe knn --weights w.npz --data classes --output w.npz",
    "report run --output photos",
    "report none",
    "report photos",
    "report configs",
    "bench --rounds 0",
    f"{PRETRAIN} --data photos --output photos",
    f"{PRETRAIN} --data photos --output link/new",
    f"{FINETUNE} --weights random --data set --output set/new",
    "evaluate detector --data set --output set",
    "pack photos --output photos/a/shards",
    "probe matching --weights w.npz --data photos --output photos/new",
    "probe matching --weights w.npz --data .",
    "views configs/demo.yaml --data photos --output photos/views.png",
    "bench --data photos --output photos/new",
    # labels and splits
    f"{FINETUNE} --weights random --data none --output new",
    f"{FINETUNE} --weights random --data photos --output new",
    f"{FINETUNE} --weights random --data no_val --output new",
    f"{FINETUNE} --weights random --data bad_labels --output new",
    f"{FINETUNE} --weights random --data other_classes --output new",
    f"{FINETUNE} --weights random --data set --output new --detector.kind fcn --data.kind masks",
    f"{FINETUNE} --weights random --data lost_boxes --output new",
    f"{FINETUNE} --weights random --data one_class --output new --detector.kind fcn",
    "evaluate none --data set",
    "evaluate detector --data none",
    "evaluate detector --data set",
    "evaluate detector --data set --split test",
    "evaluate detector --data set --image-size 0",
    "evaluate detector --data other_classes",
    "evaluate backbone.keras --data set",
    "evaluate old.keras --data set",
    "predict none --images photos --output new",
    "predict backbone.keras --images photos --output new",
    "predict old.keras --images photos --output new",
    "predict detector --images none --output new",
    "predict detector --images empty --output new",
    "predict detector --images photos/a none.jpg --output new",
    "predict detector --images photos --output photos/new",
    "predict detector --images photos --output run",
    "predict detector --images photos --output w.npz",
    "predict detector --images photos --output new --to png",
    "predict detector --images photos --output new --min-score 2",
    "predict detector --images photos --output new --image-size 0",
    "predict detector --images photos --output new --batch-size 0",
    "predict detector --images photos --output new --max-bad-share 2",
    "predict detector --images photos --output new --train.seed 1",
    "embed none --images photos --output new.npy",
    "embed detector --images photos --output new.npy",
    "embed w.npz --images none --output new.npy",
    "embed w.npz --images empty --output new.npy",
    "embed w.npz --images photos --output new",
    "embed w.npz --images photos --output new.csv",
    "embed w.npz --images photos --output w.npz",
    "embed w.npz --images photos --output photos/new.npy",
    "embed w.npz --images photos --output new.npy --level P6",
    "embed w.npz --images photos --output new.npy --image-size 8",
    "embed w.npz --images photos --output new.npy --batch-size 0",
    "embed w.npz --images photos --output new.npy --max-bad-share 2",
    "embed w.npz --images photos --output new.npy --data.kind voc",
    "probe knn --weights w.npz --data none",
    "probe knn --weights w.npz --data photos",
    "probe knn --weights w.npz --data odd_classes",
    "probe linear --weights w.npz --data photos",
    "probe linear --weights random --backbone resnet18 --data classes --linear.epochs 0",
    "probe svm --weights w.npz --data no_val",
    "probe sensitivity --weights w.npz --data photos",
    "probe affinity --weights w.npz --data no_val",
    "probe matching --weights w.npz --data empty",
    "probe retrieval --weights w.npz --data odd_classes",
    # weights
    f"{PRETRAIN} --data photos --output new --weights none",
    f"{PRETRAIN} --data photos --output new --weights w.h5",
    f"{PRETRAIN} --data photos --output new --weights photos",
    f"{PRETRAIN} --data photos --output run --weights w.npz",
    f"{FINETUNE} --weights w.h5 --data set --output new",
    f"{FINETUNE} --weights photos --data set --output new",
    f"{PRETRAIN} --data photos --output new --weights moco_v2_80ep",
    f"{PRETRAIN} --data photos --output new --weights moco_v2_800ep",
    f"{PRETRAIN} --data photos --output new --weights hf:someone",
    f"{FINETUNE} --weights imagenet --data set --output new",
    f"{FINETUNE} --weights http://example.org/w.npz --data set --output new",
    "export https://example.org/w.h5 --to keras --output new",
    "probe knn --weights hf:someone/net/w.pkl --data classes",
    "import https://name:secret@example.org/w.npz",
    "import imagenet/resnet20",
    f"{FINETUNE} --weights detector --data set --output new --detector.kind faster_rcnn",
    "export none --to keras --output new",
    "export photos --to keras --output new",
    "export detector --to keras --output new",
    "export detector/detector.keras --to timm --output new",
    "export detector --to litert --output new --image none.jpg",
    "export export --to litert --output new",
    "probe knn --weights detector/detector.keras --data classes",
    "import none.npz --output new.keras",
    "import w.h5 --output new.keras",
    "probe knn --weights none --data classes",
    "probe knn --weights w.npz w.npz --data classes",
    "probe knn --weights random --data classes",
    # an output that another process holds
    f"{PRETRAIN} --data photos --output held",
    f"{FINETUNE} --weights random --data set --output held",
    "probe knn --weights w.npz --data classes --output held",
    "evaluate detector --data set --output held",
    "pack photos --output held",
    "sample held",
    "scan photos --output held.tsv",
    "export w.npz --to keras --output held.export",
    "import w.npz --output held.keras",
]


@pytest.fixture(scope="module")
def codes(tmp_path_factory):
    """Returns {command line: its exit code, or the exception that ended it}."""
    folder = tmp_path_factory.mktemp("light")
    _fill(folder)
    lines = [*LOOKING, *REFUSED]
    with contextlib.ExitStack() as held:
        held.enter_context(locked(folder / "held"))
        for name in ("held.tsv", "held.export", "held.keras"):
            held.enter_context(locked(folder / name, beside=True))
        done = subprocess.run(
            [sys.executable, "-c", RUNNER],
            cwd=folder,
            input=json.dumps([line.split(" ") for line in lines]),
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert [path.name for path in (folder / "held").iterdir()] == [LOCK_FILE]
    assert done.returncode == 0, done.stderr
    return dict(zip(lines, json.loads(done.stdout.rpartition("codes ")[2]), strict=True))


def _fill(folder: Path) -> None:
    """Makes the files that the command lines name, except `none` and `new`."""
    (folder / "configs").symlink_to(ROOT / "configs")
    (folder / "bomb.yaml").write_text("a: &a [x]\nb: [*a, *a]")
    write_run(folder / "trained")
    (folder / "link").symlink_to(folder / "photos")
    write_sample(folder / "set", train=2, val=2, unlabeled=2, seed=0)
    classes = [
        f"{root}/{split}/{kind}" for root in ("classes", "odd_classes") for split in ("train", "val") for kind in "xy"
    ]
    for name in ("photos/a", "photos/b", *classes):
        (folder / name).mkdir(parents=True)
        Image.fromarray(np.full((40, 40, 3), 90, np.uint8)).save(folder / name / "1.jpg")
    shutil.copytree(folder / "photos", folder / ODD)
    (folder / ODD / ODD).mkdir()
    shutil.copy(folder / "photos/a/1.jpg", folder / ODD / ODD / f"{ODD}.jpg")
    (folder / "unreadable").mkdir()
    (folder / "unreadable/1.jpg").write_bytes(b"no image")
    for name in ("empty", "export", "older", "damaged", "run", "detector", "odd_classes/train/z"):
        (folder / name).mkdir()
    train = (folder / "set/annotations/instances_train.json").read_text()
    other = json.loads((folder / "set/annotations/instances_val.json").read_text())
    other["categories"] = [{**one, "name": f"other {one['id']}"} for one in other["categories"]]
    lost = json.loads(train)
    for annotation in lost["annotations"]:
        annotation["bbox"] = [0.1, 0.2, 0.3, 0.4]
    for path in ("train/images/1.png", "train/masks/1.png", "val/images/1.png", "val/masks/1.png"):
        (folder / "one_class" / path).parent.mkdir(parents=True)
        Image.fromarray(np.repeat(np.uint8([[0], [255]]), 40, 1)).save(folder / "one_class" / path)
    for name, val in (
        ("no_val", None),
        ("bad_labels", "{"),
        ("other_classes", json.dumps(other)),
        ("lost_boxes", train),
    ):
        (folder / name / "annotations").mkdir(parents=True)
        (folder / name / "images").symlink_to(folder / "set/images")
        (folder / name / "annotations/instances_train.json").write_text(train)
        if name == "lost_boxes":
            (folder / name / "annotations/instances_train.json").write_text(json.dumps(lost))
        if val is not None:
            (folder / name / "annotations/instances_val.json").write_text(val)
    for name in ("w.npz", "w.h5", "old.keras", "export/backbone.keras"):
        (folder / name).write_bytes(b"")
    config = load_config(ROOT / "configs/demo.yaml", {"data.root": str(folder / "photos")})
    for name, version in (("run", FORMAT), ("older", FORMAT - 1)):
        (folder / name / CONFIG_FILE).write_text(dump_config(config))
        (folder / name / FORMAT_FILE).write_text(json.dumps({"format": version}))
        (folder / name / IMAGES_FILE).write_text(json.dumps({"count": 9, "sha256": "0"}))
    (folder / "damaged" / CONFIG_FILE).write_text("[")
    (folder / "damaged" / FORMAT_FILE).write_text(json.dumps({"format": FORMAT}))
    saved = {"module": "dupr_tf.detection.retinanet", "class_name": "RetinaNet", "config": {"class_names": ["a"]}}
    with zipfile.ZipFile(folder / "detector/detector.keras", "w") as archive:
        archive.writestr("config.json", json.dumps(saved))
    with zipfile.ZipFile(folder / "backbone.keras", "w") as archive:
        other = {"module": "dupr_tf.models.resnet", "class_name": "ResNetBackbone", "config": {}}
        archive.writestr("config.json", json.dumps(other))


@pytest.mark.parametrize("line", LOOKING)
def test_inspecting_commands_load_no_framework(codes, line):
    assert codes[line] == 0


@pytest.mark.parametrize("line", REFUSED)
def test_mistakes_are_refused_before_a_framework_loads(codes, line):
    assert codes[line] == 2
