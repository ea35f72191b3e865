"""Tests of scripts/detectron2_*.py: real subsets, and the training script with stand-ins for detectron2."""

import importlib.util
import py_compile
import subprocess
import sys
import types
from pathlib import Path

import pytest

SCRIPTS = Path("scripts").absolute()


def load(name, path=None):
    spec = importlib.util.spec_from_file_location(name, path or SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


subsets = load("detectron2_subsets")
ONE = subsets.Subset("coco_2017_train_1pct_seed0", "coco_2017_train", 1.0, 0)


@pytest.mark.parametrize("name, expected", [
    ("coco_2017_train_1pct_seed0", ("coco_2017_train", 1.0, 0)),
    ("coco_2017_train_10pct_seed7", ("coco_2017_train", 10.0, 7)),
    ("coco_2017_train_0.5pct_seed12", ("coco_2017_train", 0.5, 12)),
    ("coco_2017_train", None), ("voc_2007_trainval", None), ("coco_2017_train_1pct", None), ("1pct_seed0", None),
])  # fmt: skip
def test_name_gives_base_percentage_and_seed(name, expected):
    subset = subsets.parse_subset(name)
    assert (subset and subset[1:]) == expected and (subset is None or subset.name == name)


@pytest.mark.parametrize("name", ["coco_0pct_seed0", "coco_101pct_seed0"])
def test_impossible_percentage_is_refused(name):
    with pytest.raises(ValueError, match=name):
        subsets.parse_subset(name)


@pytest.mark.parametrize("percent, count", [(1, 1183), (10, 11829), (100, 118287), (0.0001, 1)])
def test_counts_are_exact(percent, count):
    drawn = subsets.draw_images(range(118_287), percent, 0)  # the number of images in COCO train2017
    assert len(drawn) == len(set(drawn)) == count and drawn == sorted(drawn)


def test_draws_depend_only_on_the_seed_and_are_nested():
    ids = list(range(1, 20_001))
    one, ten = subsets.draw_images(ids, 1, 0), subsets.draw_images(ids, 10, 0)
    assert subsets.draw_images(reversed(ids), 1, 0) == subsets.draw_images([*ids, *ids], 1, 0) == one
    assert set(one) < set(ten)
    other = subsets.draw_images(ids, 10, 1)
    assert 120 < len(set(other) & set(ten)) < 280  # two independent draws share 200 on average, standard deviation 13
    assert 880 < sum(i <= 10_000 for i in ten) < 1120  # expected 1000, standard deviation 21
    assert one[:5] == [46, 87, 282, 306, 366]  # this draw is the same on every machine and version


def test_empty_set_of_images_is_refused():
    with pytest.raises(ValueError, match="no images"):
        subsets.draw_images([], 1, 0)


def test_list_file_is_read_back_and_has_a_header(tmp_path):
    path = subsets.list_file(tmp_path / "run", ONE)
    subsets.write_list(path, ONE, [3, 5, 8])
    assert subsets.read_list(path) == [3, 5, 8]
    assert path.name == "coco_2017_train_1pct_seed0.txt"
    assert path.read_text().splitlines()[0] == "# 3 images: 1 % of coco_2017_train, seed 0"
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_picked_records_are_listed_once_and_checked_later(tmp_path):
    records = [{"image_id": i, "annotations": [i]} for i in range(500)]
    path = subsets.list_file(tmp_path, ONE)
    assert len(subsets.draw_and_record(records, ONE, tmp_path, write=False)) == 5 and not path.exists()
    first = subsets.draw_and_record(records, ONE, tmp_path)
    assert [r["image_id"] for r in first] == subsets.read_list(path) and all(r["annotations"] for r in first)
    before = path.stat().st_mtime_ns
    assert subsets.draw_and_record(records, ONE, tmp_path) == first and path.stat().st_mtime_ns == before
    with pytest.raises(ValueError, match=r"OUTPUT_DIR"):
        subsets.draw_and_record(records[:100], ONE, tmp_path)


def test_subsets_import_no_framework_and_scripts_compile(tmp_path):
    code = "import sys, detectron2_subsets; sys.exit(bool({'numpy', 'torch', 'detectron2'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=SCRIPTS, check=False).returncode == 0
    for name in ("detectron2_subsets", "detectron2_train"):
        assert py_compile.compile(str(SCRIPTS / f"{name}.py"), str(tmp_path / f"{name}.pyc"), doraise=True)


# ---- the training script: how it calls detectron2, with stand-ins for detectron2's interfaces ----


class Registry(dict):
    def register(self, name=None, function=None):
        if name is None:  # used as a decorator for classes
            return lambda cls: self.setdefault(cls.__name__, cls)
        self[name] = function

    def list(self):
        return list(self)


class Data(Registry):
    def get(self, name):
        return self[name]()


class Facts(dict):
    def __init__(self, **values):
        super().__init__(values)
        self.__dict__ = self

    def as_dict(self):
        return dict(self)

    def set(self, **values):
        self.update(values)


class Metadata(dict):
    def get(self, name):
        return self.setdefault(name, Facts(name=name))


class Res5ROIHeads:
    @classmethod
    def _build_res5_block(cls, cfg):
        return ["block 0", "block 1", "block 2"], 2048


class Config(types.SimpleNamespace):
    frozen = False

    def merge_from_file(self, path):
        self.file = path

    def merge_from_list(self, words):
        for key, value in zip(words[::2], words[1::2], strict=True):
            target = self
            *sections, last = key.split(".")
            for section in sections:
                target = getattr(target, section)
            setattr(target, last, value)

    def freeze(self):
        self.frozen = True


class Checkpointer:
    """A checkpointer whose model is a list of the calls made on it."""

    def __init__(self, model, folder):
        self.model, self.folder = model, folder

    def _log_incompatible_keys(self, keys):
        self.model.append(("logged", keys))

    def resume_or_load(self, path, resume):
        self.model.append((self.folder, path, resume))
        self._log_incompatible_keys(incompatible())


class Engine:
    def __init__(self, cfg):
        self.model = []
        self.checkpointer = Checkpointer(self.model, cfg.OUTPUT_DIR)

    @staticmethod
    def build_model(cfg):
        return []

    @staticmethod
    def test(cfg, model):
        return model

    def resume_or_load(self, resume):
        self.checkpointer.resume_or_load("as in the config", resume)

    def train(self):
        return self.model


def incompatible(missing=(), unexpected=(), shapes=()):
    return types.SimpleNamespace(missing_keys=missing, unexpected_keys=unexpected, incorrect_shapes=shapes)


def new_config():
    return Config(
        MODEL=types.SimpleNamespace(WEIGHTS="", RESNETS=types.SimpleNamespace(NORM="SyncBN")),
        DATASETS=types.SimpleNamespace(TRAIN=["coco_2017_train_10pct_seed0", "coco_2017_train"]),
        OUTPUT_DIR="./output",
    )


@pytest.fixture
def train(monkeypatch):
    """Returns scripts/detectron2_train.py, imported with the stand-ins."""
    data, metadata = Data(), Metadata()
    data.register("coco_2017_train", lambda: [{"image_id": i} for i in range(100)])
    metadata["coco_2017_train"] = Facts(
        name="coco_2017_train", json_file="all.json", evaluator_type="coco", thing_classes=["a"]
    )
    metadata["voc_2007_test"] = Facts(evaluator_type="pascal_voc")
    metadata["cityscapes_fine_instance_seg_val"] = Facts(evaluator_type="cityscapes_instance")
    metadata["lvis"] = Facts(evaluator_type="lvis")
    nothing = dict.fromkeys(("default_argument_parser", "default_setup", "launch"), lambda *arguments: None)
    modules = {
        "torch": {"nn": types.SimpleNamespace(Sequential=lambda *blocks: list(blocks))},
        "detectron2": {},
        "detectron2.checkpoint": {"DetectionCheckpointer": Checkpointer},
        "detectron2.config": {"get_cfg": new_config},
        "detectron2.data": {"DatasetCatalog": data, "MetadataCatalog": metadata},
        "detectron2.engine": {"DefaultTrainer": Engine, **nothing},
        "detectron2.evaluation": {
            "COCOEvaluator": lambda name, output_dir: ("coco", name, output_dir),
            "PascalVOCDetectionEvaluator": lambda name: ("voc", name),
            "CityscapesInstanceEvaluator": lambda name: ("cityscapes", name),
        },
        "detectron2.layers": {"get_norm": lambda norm, channels: f"{norm} of {channels}"},
        "detectron2.modeling": {},
        "detectron2.modeling.roi_heads": {"ROI_HEADS_REGISTRY": Registry(), "Res5ROIHeads": Res5ROIHeads},
        "detectron2.utils": {"comm": types.SimpleNamespace(is_main_process=lambda: True)},
        "detectron2_subsets": vars(subsets),
    }
    for name, content in modules.items():
        module = types.ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    return load("detectron2_train")


def test_c4_heads_end_in_a_norm_and_keep_block_names(train):
    heads = train.ROI_HEADS_REGISTRY["Res5ROIHeadsWithNorm"]
    assert heads._build_res5_block(new_config()) == (["block 0", "block 1", "block 2", "SyncBN of 2048"], 2048)


def test_each_data_set_gets_its_evaluator(train):
    cfg, build = new_config(), train.Trainer.build_evaluator
    assert build(cfg, "coco_2017_train") == ("coco", "coco_2017_train", "./output/inference")
    assert build(cfg, "voc_2007_test", "there") == ("voc", "voc_2007_test")
    assert build(cfg, "cityscapes_fine_instance_seg_val") == ("cityscapes", "cityscapes_fine_instance_seg_val")
    with pytest.raises(ValueError, match="lvis"):
        build(cfg, "lvis")


def test_configuring_registers_only_the_subsets(train, tmp_path):
    options = ["MODEL.WEIGHTS", "b.pkl", "OUTPUT_DIR", str(tmp_path)]
    cfg = train.configure(types.SimpleNamespace(config_file="a.yaml", opts=options))
    assert cfg.frozen and cfg.file == "a.yaml" and cfg.MODEL.WEIGHTS == "b.pkl"
    name = "coco_2017_train_10pct_seed0"
    assert train.DatasetCatalog.list() == ["coco_2017_train", name]
    assert [p.name for p in tmp_path.iterdir()] == []  # the list is written when the data are first read
    assert len(train.DatasetCatalog.get(name)) == len(subsets.read_list(tmp_path / f"{name}.txt")) == 10
    facts = train.MetadataCatalog.get(name)
    assert facts == {"name": name, "evaluator_type": "coco", "thing_classes": ["a"]}
    train.register_subset(name, tmp_path)  # a second call does nothing


def test_missing_weights_are_refused_and_random_is_accepted(train, tmp_path):
    with pytest.raises(ValueError, match=r"MODEL\.WEIGHTS is missing"):
        train.configure(types.SimpleNamespace(config_file="a.yaml", opts=[]))
    options = ["MODEL.WEIGHTS", "random", "OUTPUT_DIR", str(tmp_path)]
    assert train.configure(types.SimpleNamespace(config_file="a.yaml", opts=options)).MODEL.WEIGHTS == ""


@pytest.mark.parametrize("eval_only, resume", [(True, True), (True, False), (False, True)])
def test_resume_flag_reaches_the_checkpointer(train, tmp_path, eval_only, resume):
    options = ["MODEL.WEIGHTS", "b.pkl", "OUTPUT_DIR", str(tmp_path)]
    arguments = types.SimpleNamespace(config_file="a.yaml", opts=options, eval_only=eval_only, resume=resume)
    (loaded, (logged, _)) = train.main(arguments)
    assert loaded == (str(tmp_path), "b.pkl" if eval_only else "as in the config", resume) and logged == "logged"


@pytest.mark.parametrize("keys", [
    {"missing": ["roi_heads.box_predictor.cls_score.weight", "roi_heads.res5.0.conv3.weight"]},
    {"missing": ["backbone.bottom_up.stem.conv1.norm.running_var"]},
    {"unexpected": ["res4.6.conv1.weight"]},
    {"shapes": [("backbone.res2.0.conv1.weight", (64, 64, 3, 3), (64, 64, 1, 1))]},
])  # fmt: skip
def test_weights_that_leave_gaps_in_the_backbone_are_refused(train, keys):
    checkpointer = train.require_backbone(Checkpointer([], ""))
    with pytest.raises(ValueError, match=r"res|stem"):
        checkpointer._log_incompatible_keys(incompatible(**keys))
    assert checkpointer.model == []


def test_missing_heads_and_added_norm_are_accepted(train):
    names = ["roi_heads.res5.3.weight", "backbone.fpn_lateral2.weight", "proposal_generator.rpn_head.conv.weight",
             "backbone.bottom_up.res2.0.conv1.norm.num_batches_tracked"]  # fmt: skip
    checkpointer = train.require_backbone(Checkpointer([], ""))
    checkpointer._log_incompatible_keys(incompatible(missing=names, unexpected=["fc.weight"]))
    assert len(checkpointer.model) == 1
