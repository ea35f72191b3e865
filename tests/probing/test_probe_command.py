"""Tests of `dupr-tf probe` and `views` from the command line: what they write, and every kind of wrong input."""

import dataclasses
import inspect
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dupr_tf.cli import main
from dupr_tf.commands.probe import FLAGS, Weights, free_folder
from dupr_tf.config import ProbingConfig
from dupr_tf.config.probes import PROBES
from dupr_tf.data.detection import read_image
from dupr_tf.data.sample import write_sample
from dupr_tf.models import build_backbone
from dupr_tf.probing.features import extract_paths, feature_maps
from dupr_tf.probing.image_views import centre_view
from dupr_tf.probing.in_training import build_probe
from dupr_tf.probing.load import labels_of, load_backbones
from tests.labelled_scenes import pictures, write_coco
from tests.odd_names import ODD, odd_name

SMALL = ("--image-size", "64")
RANDOM = ("--weights", "random", "--backbone", "resnet18")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / ODD / "tiny.keras"
    path.parent.mkdir()
    build_backbone("resnet18", width=0.125).save(path)
    return path


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """Writes red and blue pictures, and an unreadable one."""
    root, rng = tmp_path_factory.mktemp("classes") / ODD, np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 4)):
        for name, colour in (("blue", (20, 30, 200)), ("red", (200, 30, 20))):
            (root / split / name).mkdir(parents=True)
            for n in range(count):
                pixels = np.clip(rng.integers(-20, 20, (48, 64, 3)) + colour, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{odd_name(n)}.png")
    (root / "val" / "red" / "broken.jpg").write_bytes(b"text")
    return root


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    made = {"train": pictures(8, 0, (64, 90)), "val": pictures(6, 1, (64, 90))}
    return write_coco(tmp_path_factory.mktemp("coco") / ODD, made, odd_name)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample")
    write_sample(folder, train=1, val=1, unlabeled=6, seed=3)
    for number, path in enumerate(sorted((folder / "unlabeled").iterdir())):
        path.rename(path.with_name(odd_name(number) + path.suffix))
    return folder / "unlabeled"


def run(capsys, *arguments):
    """Returns (exit code, lines on standard output, lines on standard error)."""
    code = main([str(argument) for argument in arguments])
    told = capsys.readouterr()
    return code, told.out.splitlines(), told.err.splitlines()


def result_in(folder, picture=None):
    written = json.loads((folder / "probe.json").read_text())
    if picture:
        with Image.open(folder / picture) as image:
            image.load()
            assert min(image.size) > 100
    return written


def test_knn_separates_red_from_blue(capsys, tmp_path, weights, classes, caplog):
    words = ("--weights", weights, "random", "--data", classes, "--output", tmp_path)
    code, out, _ = run(capsys, "probe", "knn", *words, *SMALL)
    assert code == 0 and "top1" in out[0] and [line.split()[0] for line in out[1:3]] == ["tiny.keras", "random"]
    found = result_in(tmp_path)
    assert found["numbers"]["random"]["top1"] == 1.0 and found["numbers"]["random"]["k"] == 6
    assert found["numbers"]["random"]["val_images"] == 8 and "1 of 9 images cannot be read" in caplog.text
    assert found["settings"]["level"] == "P5" and found["seconds"]["random"] > 0
    assert found["settings"]["k"] is None and found["settings"]["temperature"] == 0.07


@pytest.mark.slow
def test_linear_separates_red_from_blue_at_any_level(capsys, tmp_path, weights, classes):
    words = ("--weights", weights, "--data", classes, "--output", tmp_path)
    fields = ("--linear.image_size", "64", "--linear.epochs", "20", "--linear.level", "conv1")
    code, _, _ = run(capsys, "probe", "linear", *words, *fields)
    assert code == 0 and result_in(tmp_path)["numbers"]["tiny.keras"]["top1"] == 1.0
    assert result_in(tmp_path)["settings"]["level"] == "conv1"


@pytest.mark.slow
def test_linear_trains_on_crops_too(capsys, tmp_path, weights, classes):
    fields = ("--linear.image_size", "32", "--linear.epochs", "3", "--linear.batch_size", "8")
    config = ("--config", "configs/probes/linear_imagenet.yaml", "--linear.learning_rate", "1")
    code, _, _ = run(
        capsys, "probe", "linear", "--weights", weights, "--data", classes, "--output", tmp_path, *config, *fields
    )
    found = result_in(tmp_path)
    assert code == 0 and found["settings"]["augment"] and found["settings"]["milestones"] == [60, 80]
    assert found["numbers"]["tiny.keras"]["top1"] >= 0.5


@pytest.mark.slow
def test_svm_probes_every_level(capsys, tmp_path, weights, scenes):
    code, out, _ = run(capsys, "probe", "svm", "--weights", weights, "--data", scenes, "--output", tmp_path, *SMALL)
    assert code == 0 and out[0].split() == ["mAP", "conv1", "P2", "P3", "P4", "P5"]
    numbers = result_in(tmp_path)["numbers"]["tiny.keras"]
    assert all(0 <= numbers[level]["mAP"] <= 1 for level in ("conv1", "P5")) and "bus" in numbers["P2"]["per_class"]


@pytest.mark.parametrize("probe", ["sensitivity", pytest.param("affinity", marks=pytest.mark.slow)])
def test_probes_with_boxes_write_their_scores(capsys, tmp_path, weights, scenes, probe):
    code, _, _ = run(
        capsys, "probe", probe, "--weights", weights, "--data", scenes, "--output", tmp_path, "--image-size", "96"
    )
    found = result_in(tmp_path, f"{probe}.png")
    assert code == 0 and found["probe"] == probe
    assert found["settings"].get("region", "object") == "object"


@pytest.mark.parametrize(
    "probe", ["matching", *(pytest.param(name, marks=pytest.mark.slow) for name in ("affinity", "retrieval"))]
)
def test_probes_without_labels_run_on_any_folder(capsys, tmp_path, weights, photos, probe):
    code, _, _ = run(
        capsys, "probe", probe, "--weights", weights, "--data", photos, "--output", tmp_path, "--image-size", "96"
    )
    found = result_in(tmp_path, f"{probe}.png")
    assert code == 0 and found["settings"].get("region", "overlap") == "overlap"
    assert found["numbers"]["tiny.keras"].get("same_class") is None


@pytest.mark.slow
def test_same_seed_gives_the_same_numbers(capsys, tmp_path, weights, photos):
    numbers = []
    for n, seed in enumerate((0, 0, 1)):
        words = ("--data", photos, "--output", tmp_path / str(n), "--image-size", "64", "--seed", seed)
        assert run(capsys, "probe", "matching", "--weights", weights, *words)[0] == 0
        numbers.append(result_in(tmp_path / str(n))["numbers"]["tiny.keras"])
    assert numbers[0] == numbers[1] != numbers[2]


def test_retrieval_in_class_folders_counts_classes(capsys, tmp_path, weights, classes):
    words = ("--weights", weights, "--data", classes, "--output", tmp_path, *SMALL)
    assert run(capsys, "probe", "retrieval", *words)[0] == 0
    numbers = result_in(tmp_path)["numbers"]["tiny.keras"]
    assert numbers["same_class"] > 0.7 and numbers["same_class_chance"] == pytest.approx(3 / 7)


def remove(root, *names):
    for name in names:
        shutil.rmtree(root / name)


@pytest.mark.parametrize("probe, change, expected", [
    ("knn", lambda root: remove(root, "val"), "data/val"),
    ("knn", lambda root: remove(root, "train/red", "val/red"), "data/train, received 1"),
    ("knn", lambda root: remove(root, "val/red"), "class red"),
    ("linear", lambda root: remove(root, "train"), "data/train"),
    ("knn", lambda root: [p.write_bytes(b"x") for p in root.glob("train/*/*")], "12 images"),
    ("matching", lambda root: [p.unlink() for p in root.rglob("*.*")], "/data"),
    ("retrieval", lambda root: [p.unlink() for p in root.rglob("val/*/[1-9]*")] + [remove(root, "train")], ""),
    ("svm", lambda root: None, "no labels of a split train"),
    ("sensitivity", lambda root: None, "no labels of a split val"),
])  # fmt: skip
def test_probe_of_wrong_data_gives_one_line_and_exit_2(capsys, tmp_path, weights, classes, probe, change, expected):
    root = tmp_path / "data"
    shutil.copytree(classes, root)
    (root / "val" / "red" / "broken.jpg").unlink()
    change(root)
    code, _, lines = run(capsys, "probe", probe, "--weights", weights, "--data", root, "--output", tmp_path / "o")
    if probe == "retrieval":
        assert code == 0  # two images remain: each finds the other
        return
    assert code == 2 and len(lines) == 1 and expected in lines[0]
    assert not (tmp_path / "o").exists()


def test_retrieval_from_one_image_is_refused(capsys, tmp_path, weights):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    code, _, lines = run(capsys, "probe", "retrieval", "--weights", weights, "--data", tmp_path, *SMALL)
    assert code == 2 and len(lines) == 1 and "received 1" in lines[0]


@pytest.mark.parametrize("words, expected", [
    (("knn", "--weights", "nowhere", "--data", "configs"), "--weights: "),
    (("knn", "--weights", "README.md", "--data", "configs"), "README.md"),
    (("knn", "--weights", "random", "--data", "configs"), "backbone: "),
    (("knn", *RANDOM[:2], *RANDOM[1:], "--data", "configs"), "weights: "),
    (("knn", *RANDOM, "--data", "nowhere"), "--data: "),
    (("knn", *RANDOM, "--data", "README.md"), "--data: "),
    (("knn", *RANDOM, "--data", "configs", "--k", "0"), "--k: "),
    (("knn", *RANDOM, "--data", "configs", "--temperature", "0"), "--temperature: "),
    (("matching", *RANDOM, "--data", "configs", "--image-size", "8"), "--image-size: "),
    (("matching", *RANDOM, "--data", "configs", "--seed", str(2**31)), "--seed: "),
    (("svm", *RANDOM, "--data", "configs", "--costs", "-1"), "--costs: "),
    (("linear", *RANDOM, "--data", "configs", "--linear.epochs", "0"), "linear.epochs: "),
    (("linear", *RANDOM, "--data", "configs", "--linear.epoch", "1"), "Did you mean linear.epochs?"),
    (("linear", *RANDOM, "--data", "configs", "--config", "no.yaml"), "no.yaml"),
    (("linear", *RANDOM, "--data", "configs", "--config", "configs/demo.yaml"), "has no section linear"),
    (("linear", *RANDOM, "--data", "configs", "--linear.augment", "true"), "linear.standardize: "),
    (("knn", *RANDOM, "--data", "configs", "--linear.epochs", "1"), "--linear.epochs: "),
    (("knn", *RANDOM, "--data", "configs", "--data.image_size", "64"), "--data.image_size: "),
    (("matching", *RANDOM, "--data", "configs", "--data.depth", "deep"), "data.depth: "),
])  # fmt: skip
def test_wrong_probe_flags_give_one_line_and_exit_2(capsys, words, expected):
    code, _, lines = run(capsys, "probe", *words)
    assert code == 2 and len(lines) == 1 and expected in lines[0]


def test_views_draws_a_sheet(capsys, tmp_path, photos):
    sheet = tmp_path / "sheet.png"
    code, out, _ = run(
        capsys, "views", "configs/dupr_r18_small.yaml", "--data", photos, "--output", sheet, "--pairs", "4"
    )
    assert code == 0 and out[0].startswith("4 pairs, ")
    with Image.open(sheet) as image:
        assert image.width > 900 and image.height > 400


def test_views_replaces_its_own_sheet_and_no_other_picture(capsys, tmp_path, photos):
    sheet, words = tmp_path / "sheet.png", ("configs/dupr_r18_small.yaml", "--data", photos, "--pairs", "2")
    Image.new("RGB", (8, 8)).save(sheet)
    code, _, lines = run(capsys, "views", *words, "--output", sheet)
    assert code == 2 and len(lines) == 1 and "has not drawn it" in lines[0] and Image.open(sheet).size == (8, 8)
    sheet.unlink()
    assert [run(capsys, "views", *words, "--output", sheet)[0] for _ in range(2)] == [0, 0]


def test_result_of_other_weights_or_settings_is_kept(tmp_path):
    folder, first = tmp_path / "knn", {"probe": "knn", "weights": {"a": "/a"}, "settings": {"sizes": (64,)}}
    other = {**first, "settings": {"sizes": (96,)}}
    for content, expected in ((first, folder), (other, tmp_path / "knn-2"), (other, tmp_path / "knn-2")):
        place = free_folder(folder, content)
        assert place == expected
        place.mkdir(exist_ok=True)
        (place / "probe.json").write_text(json.dumps({**content, "numbers": {}}))
    (folder / "probe.json").write_text("[")
    assert free_folder(folder, first) == tmp_path / "knn-3"


@pytest.mark.parametrize("words, expected", [
    (("--output", "a.jpg"), "--output: "),
    (("--output", "configs"), "--output: "),
    (("--pairs", "0"), "--pairs: "),
    (("--data", "nowhere"), "nowhere"),
    (("--data", "configs"), "configs"),
    (("--train.epoch", "1"), "Did you mean train.epochs?"),
])  # fmt: skip
def test_wrong_views_flags_give_one_line_and_exit_2(capsys, photos, words, expected):
    data = () if "--data" in words else ("--data", photos)
    code, _, lines = run(capsys, "views", "configs/dupr_r18_small.yaml", *data, *words)
    assert code == 2 and len(lines) == 1 and expected in lines[0]


def test_views_without_data_is_refused(capsys):
    code, _, lines = run(capsys, "views", "configs/dupr_r18_small.yaml")
    assert code == 2 and len(lines) == 1 and "--data" in lines[0]


# ---- the parts underneath ----


@pytest.mark.parametrize("name", PROBES)
def test_flags_of_a_probe_reach_its_function(name):
    flags, parameters = FLAGS[name](("random",), Path("photos")), inspect.signature(PROBES.load(name)).parameters
    passed = flags.arguments({}, parameters)
    own = {field.name for field in dataclasses.fields(flags)} - {field.name for field in dataclasses.fields(Weights)}
    assert own - {"config", "train_split", "test_split"} <= set(passed) <= set(parameters)
    assert all(value == getattr(flags, key) for key, value in passed.items() if key not in ("settings", "splits"))
    assert ("seed" in parameters) == ("seed" in passed)
    if name == "svm":
        assert passed["splits"] == ("train", "val")


@pytest.mark.parametrize("name", [name for name, entry in PROBES.items() if entry.facts])
def test_facts_of_a_probe_name_its_training_parameters(name):
    taken = PROBES[name].facts["takes"]
    assert set(taken) <= set(inspect.signature(PROBES.load(name)).parameters)
    assert set(taken) <= {"images", "queries", "image_size", "seed"}


def test_every_probe_has_flags():
    assert list(FLAGS) == list(PROBES)


def test_random_backbone_has_the_given_shape_and_seed(weights):
    first, second = (load_backbones([str(weights), "random"], seed=7)["random"] for _ in range(2))
    assert (first.architecture, first.width) == ("resnet18", 0.125)
    assert all(np.array_equal(a, b) for a, b in zip(first.get_weights(), second.get_weights(), strict=True))
    other = load_backbones(["random"], "resnet18", 0.25)["random"]
    assert other.width == 0.25


def test_labels_are_as_short_as_possible():
    assert labels_of(["runs/a", "runs/b", "random"]) == ["a", "b", "random"]
    assert labels_of(["x/run", "y/run"]) == ["x/run", "y/run"]


def test_features_equal_those_of_the_backbone(classes):
    backbone = build_backbone("resnet18", width=0.125)
    paths = sorted(str(path) for path in (classes / "train").rglob("*.png"))[:3]
    maps = feature_maps(backbone, ("conv1", "P5"))
    kept, found = extract_paths(maps, paths, lambda c: centre_view(c, 64), {"conv1": 2, "P5": 1}, batch_size=2)
    assert kept.tolist() == [0, 1, 2]
    pixels = np.stack([centre_view(read_image(path), 64) for path in paths]) / 255.0
    images = (pixels - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    np.testing.assert_allclose(found["P5"], np.mean(backbone(images, training=False), (1, 2)), rtol=1e-3, atol=1e-4)
    stem = found["conv1"].reshape(3, 2, 2, -1)
    assert stem.shape[-1] == 8 and (stem >= 0).all()


@pytest.mark.slow
def test_training_probe_leaves_the_backbone_unchanged(classes):
    backbone = build_backbone("resnet18", width=0.125)
    before = backbone.get_weights()
    settings = ProbingConfig(
        every_epochs=1, data=str(classes), probes=("knn", "matching", "affinity", "retrieval"), images=4, image_size=64
    )
    numbers, drawn = build_probe(settings)(backbone)
    assert set(numbers) == {
        "knn/top1", "matching/pck_1", "matching/pck_2", "affinity/diagonal", "affinity/within_1",
        "retrieval/alignment", "retrieval/same_class",
    }  # fmt: skip
    assert {name: picture.dtype for name, picture in drawn.items()} == dict.fromkeys(
        ("matching", "affinity", "retrieval"), np.uint8
    )
    assert all(np.array_equal(a, b) for a, b in zip(before, backbone.get_weights(), strict=True))
