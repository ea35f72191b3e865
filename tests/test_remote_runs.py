"""Every command with addresses in place of paths: data, runs, weights, shards and exports on `ram://`.

That file system lives and ends with the process, so commands run in it, by `main`.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import yaml

from dupr_tf.cli import main
from dupr_tf.config import dump_config, parse_config
from dupr_tf.data.annotations import read_annotations
from dupr_tf.data.bad_images import unusable_reason
from dupr_tf.data.image_source import Files
from dupr_tf.data.sample import write_sample
from dupr_tf.data.segments import read_segments
from dupr_tf.data.shards import Shards
from dupr_tf.data.sources import list_images
from dupr_tf.remote_path import as_path
from dupr_tf.training.checkpoints import RunCheckpoints
from dupr_tf.training.pretrain import pretrain
from dupr_tf.weights.loading import load_backbone
from tests.labelled_scenes import pictures, write_coco, write_voc
from tests.masked_scenes import write_cityscapes, write_segments
from tests.refusals import refusal

ROOT = "ram://runs-test"


def tiny():
    """A network of one level's losses, since tracing is what takes the time."""
    return parse_config({
        "data": {"image_size": 32},
        "views": {"min_overlap": 8, "photometric": "none"},
        "model": {"backbone": "resnet18", "width": 0.125, "roi_sizes": [8, 4, 2, 1], "bank_size": 70,
                  "embedding_dim": 16, "image_weights": [0, 0, 0, 1], "patch_weights": [0, 0, 0, 1]},
        "train": {"batch_size": 8, "micro_batches": 2, "epochs": 2, "log_every": 1, "checkpoint_every": 2},
    })  # fmt: skip


def upload(folder: Path, address: str) -> str:
    for file in folder.rglob("*"):
        if file.is_file():
            (as_path(address) / file.relative_to(folder).as_posix()).write_bytes(file.read_bytes())
    return address


@pytest.fixture(scope="module")
def local_photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample")
    write_sample(folder, train=1, val=1, unlabeled=24, seed=3)
    nested = folder / "unlabeled" / "more" / "deep"
    nested.mkdir(parents=True)
    for file in sorted((folder / "unlabeled").glob("*.jpg"))[::3]:
        file.rename(nested / file.name)
    return folder / "unlabeled"


@pytest.fixture(scope="module")
def photos(local_photos):
    upload(local_photos, f"{ROOT}/photos")
    (as_path(ROOT) / "photos/.hidden/a.jpg").write_bytes(b"")
    (as_path(ROOT) / "photos/notes.txt").write_bytes(b"")
    return f"{ROOT}/photos"


@pytest.fixture(scope="module")
def lines_at_saves():
    """{step: lines that metrics.jsonl had when its checkpoint was whole} of `whole_run`."""
    return {}


@pytest.fixture(scope="module")
def whole_run(photos, lines_at_saves):
    run = as_path(f"{ROOT}/whole")
    save = RunCheckpoints.save

    def save_and_count(self):
        path = save(self)
        lines_at_saves.setdefault(int(path.name.removeprefix("ckpt-")), len(lines(run)))
        return path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunCheckpoints, "save", save_and_count)
        pretrain(tiny(), str(run), photos)
    return run


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("config") / "tiny.yaml"
    file.write_text(dump_config(tiny()))
    (as_path(ROOT) / "tiny.yaml").write_bytes(file.read_bytes())
    return f"{ROOT}/tiny.yaml"


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run):
    return [(line["step"], line["loss"].hex()) for line in lines(run)]


def test_images_of_nested_folders_are_those_of_the_local_ones(local_photos, photos):
    remote, local = list_images(photos), list_images(local_photos)
    assert [path.removeprefix(photos) for path in remote] == [path.removeprefix(str(local_photos)) for path in local]
    assert len(remote) == 24 and any("/more/deep/" in path for path in remote)
    assert Files(remote).digest(photos) == Files(local).digest(str(local_photos))
    assert Files(remote).read(tf.constant(5)).numpy() == Path(local[5]).read_bytes()
    assert unusable_reason(remote[0]) == "" and unusable_reason(f"{photos}/none.jpg").startswith("no file")


@pytest.mark.slow
def test_a_run_leaves_there_what_a_local_one_leaves(whole_run, photos):
    assert [path.name for path in whole_run.iterdir()] == [
        "backbone.keras", "checkpoints", "config.yaml", "environment.json", "format.json", "images.json",
        "metrics.jsonl", "tensorboard",
    ]  # fmt: skip
    assert [line["step"] for line in lines(whole_run)] == [1, 2, 3, 4, 5, 6]
    kept = sorted({path.name.partition(".")[0] for path in (whole_run / "checkpoints").iterdir()})
    assert kept == ["ckpt-4", "ckpt-6"] and any((whole_run / "tensorboard").iterdir())
    assert yaml.safe_load((whole_run / "config.yaml").read_text())["data"]["root"] == photos
    assert not Path("ram:").exists()


@pytest.mark.slow
def test_the_lines_of_a_run_are_there_before_its_checkpoint(whole_run, lines_at_saves):
    assert lines_at_saves == {2: 2, 4: 4, 6: 6}


@pytest.mark.slow
def test_a_remote_run_resumes_bit_identically(whole_run, photos):
    """From step 4 of 6: the last checkpoint has a flipped bit; a kill left half a line and half a checkpoint."""
    run = as_path(f"{ROOT}/cut")
    for file in whole_run.rglob("*"):
        if file.is_file():
            (run / file.relative_to(whole_run).as_posix()).write_bytes(file.read_bytes())
    (run / "backbone.keras").unlink()
    (run / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text() + '{"st')
    data = run / "checkpoints/ckpt-6.data-00000-of-00001"
    content = bytearray(data.read_bytes())
    content[1000] ^= 1
    data.write_bytes(bytes(content))
    (run / "checkpoints/ckpt-8.data-00000-of-00001").write_bytes(b"half")
    (run / "checkpoints/ckpt-8_temp/part").write_bytes(b"half")
    pretrain(tiny(), run, photos)
    assert losses(run) == losses(whole_run)
    for a, b in zip(load_backbone(run).get_weights(), load_backbone(whole_run).get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    kept = sorted({path.name.partition(".")[0] for path in (run / "checkpoints").iterdir() if path.is_file()})
    assert kept == ["ckpt-4", "ckpt-6"]


@pytest.mark.slow
def test_a_run_begins_from_remote_weights_and_notes_where_they_are(whole_run, photos, config_file):
    arguments = ["--weights", str(whole_run), "--data", photos, "--output", f"{ROOT}/warm", "--train.max_steps", "1"]
    assert main(["pretrain", config_file, *arguments]) == 0
    assert json.loads((as_path(f"{ROOT}/warm") / "start.json").read_text())["weights"] == str(whole_run)


@pytest.mark.slow
def test_weights_exports_and_reports_of_a_remote_run(whole_run, photos, config_file, capsys):
    assert main(["export", str(whole_run), "--to", "torchvision", "--output", f"{ROOT}/export"]) == 0
    exported = as_path(f"{ROOT}/export")
    assert {"backbone.safetensors", "manifest.json", "model_card.md"} <= {path.name for path in exported.iterdir()}
    assert "resnet18" in (exported / "model_card.md").read_text()
    assert main(["export", str(whole_run), "--to", "torchvision", "--output", f"{ROOT}/export"]) == 2
    assert "exists" in capsys.readouterr().err
    (exported / "stale").write_bytes(b"")
    arguments = ["--output", f"{ROOT}/export", "--overwrite"]
    assert main(["export", str(whole_run), "--to", "saved_model", *arguments]) == 0
    assert tf.saved_model.load(str(exported)) is not None and not (exported / "stale").exists()
    assert main(["import", f"{ROOT}/none.npz", "--output", f"{ROOT}/b.keras"]) == 2

    page = as_path(f"{ROOT}/pages/report.html")
    assert main(["report", str(whole_run), str(exported), "--output", str(page), "--views", "1"]) == 0
    assert "whole" in page.read_text() and "No views" not in page.read_text()
    assert main(["report", f"{ROOT}/nothing", "--output", str(page)]) == 2


@pytest.mark.slow
def test_a_damaged_export_is_named_by_its_address(whole_run, capsys):
    assert main(["export", str(whole_run), "--to", "torchvision", "--output", f"{ROOT}/flipped"]) == 0
    (as_path(f"{ROOT}/flipped") / "backbone.safetensors").write_bytes(b"others")
    assert main(["export", f"{ROOT}/flipped", "--to", "keras", "--output", f"{ROOT}/again"]) == 2
    assert f"{ROOT}/flipped/backbone.safetensors is damaged" in capsys.readouterr().err


@pytest.mark.slow
def test_doctor_reads_there(photos, config_file):
    assert main(["doctor", config_file, "--data", photos]) == 0


def test_views_and_scan_read_there(photos, config_file, capsys):
    assert main(["views", config_file, "--data", photos, "--pairs", "2", "--output", f"{ROOT}/v/views.png"]) == 0
    assert as_path(f"{ROOT}/v/views.png").read_bytes().startswith(b"\x89PNG")
    for _ in range(2):
        assert main(["scan", photos, "--output", f"{ROOT}/v/scan.tsv"]) == 0
        assert len(as_path(f"{ROOT}/v/scan.tsv").read_text().splitlines()) == 26
    capsys.readouterr()
    assert main(["pretrain", config_file, "--data", photos, "--output", f"{ROOT}/nope", "--data.kind", "voc"]) == 2
    assert f"{photos} is no VOC root" in capsys.readouterr().err


def test_shards_are_packed_there_and_read_back(photos, capsys):
    packed = f"{ROOT}/shards"
    arguments = ["pack", photos, "--output", packed, "--images-per-shard", "10", "--workers", "2"]
    assert main(arguments) == 0
    folder = as_path(packed)
    names = [f"shard-0000{i}.{ending}" for i in range(3) for ending in ("index.npy", "tfrecord")]
    assert [path.name for path in folder.iterdir()] == ["bad_images.tsv", *names, "shards.json"]
    before = (folder / "shard-00001.tfrecord").read_bytes()
    shards = Shards(packed)
    wanted = sorted(as_path(path).read_bytes() for path in list_images(photos))
    assert sorted(shards.read_block(np.arange(24)).numpy().tolist()) == wanted
    assert shards.name(0).startswith(
        ("0", "more/deep/")
    ) and f"record 0 of {packed}/shard-00000.tfrecord" in shards.name(0)
    assert main(["pack", packed, "--verify"]) == 0

    (folder / "shard-00001.tfrecord").unlink()
    (folder / "shard-00001.index.npy").unlink()
    capsys.readouterr()
    assert main(arguments) == 0
    assert "(1 written now)" in capsys.readouterr().out
    assert (folder / "shard-00001.tfrecord").read_bytes() == before and not (folder / "pack.jsonl").exists()
    (folder / "shard-00001.tfrecord").write_bytes(before[:-1] + b"x")
    assert main(["pack", packed, "--verify"]) == 2
    assert Shards(packed).digest("") == shards.digest("")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    splits = {"train": pictures(6), "val": pictures(3, seed=1)}
    local = write_coco(tmp_path_factory.mktemp("coco") / "set", splits)
    upload(local, f"{ROOT}/coco")
    return local, f"{ROOT}/coco"


def same_annotations(a, b):
    assert a.class_names == b.class_names and a.ids == b.ids and len(a) > 0
    assert [Path(path).name for path in a.paths] == [Path(path).name for path in b.paths]
    for name in ("boxes", "labels", "areas"):
        for one, other in zip(getattr(a, name), getattr(b, name), strict=True):
            np.testing.assert_array_equal(one, other)


def test_annotations_are_those_of_the_local_files(labelled, tmp_path):
    local, remote = labelled
    same_annotations(read_annotations(remote, "train"), read_annotations(local, "train"))
    voc = write_voc(tmp_path / "voc", {"train": pictures(4), "val": pictures(2, seed=1)})
    upload(voc, f"{ROOT}/voc")
    same_annotations(read_annotations(f"{ROOT}/voc", "train"), read_annotations(voc, "train"))
    as_path(f"{ROOT}/voc/JPEGImages").rmtree()
    problem = refusal(read_annotations, f"{ROOT}/voc", "train").problem
    assert "4 of 4" in problem and f"{ROOT}/voc/JPEGImages/" in problem


def test_maps_of_classes_and_cityscapes_are_those_of_the_local_files(tmp_path):
    splits = {"train": pictures(3), "val": pictures(2, seed=1)}
    segments, city = write_segments(tmp_path / "segments", splits), write_cityscapes(tmp_path / "city", splits)
    for local, kind in ((segments, "masks"), (city, "cityscapes")):
        remote = upload(local, f"{ROOT}/{kind}")
        here, there = read_segments(local, "train"), read_segments(remote, "train")
        assert there.kind == kind and there.class_names == here.class_names and len(there) == 3
        for index in range(3):
            np.testing.assert_array_equal(there.truth(index), here.truth(index))
    same_annotations(read_annotations(f"{ROOT}/cityscapes", "train", masks=True), read_annotations(city, "train"))


def test_a_sample_is_drawn_there_once_and_never_over_other_files(tmp_path):
    counts = {"train": 1, "val": 1, "unlabeled": 2, "seed": 3}
    local, remote = write_sample(tmp_path / "s", **counts), write_sample(f"{ROOT}/s", **counts)
    files = [path.relative_to(local).as_posix() for path in local.rglob("*") if path.is_file()]
    assert len(files) == 7 and all((remote / name).read_bytes() == (local / name).read_bytes() for name in files)
    (remote / "more.txt").write_bytes(b"")
    assert "more.txt" in refusal(write_sample, f"{ROOT}/s", **{**counts, "seed": 4}).problem


@pytest.mark.slow
def test_backbones_are_probed_on_remote_classes(whole_run, local_photos):
    for split in ("train", "val"):
        for number, file in enumerate(sorted(local_photos.rglob("*.jpg"))[:8]):
            (as_path(ROOT) / f"classes/{split}/{'ab'[number % 2]}/{file.name}").write_bytes(file.read_bytes())
    arguments = ["--weights", str(whole_run), "--data", f"{ROOT}/classes", "--output", f"{ROOT}/probed", "--k", "1"]
    assert main(["probe", "knn", *arguments, "--image-size", "32"]) == 0
    found = json.loads((as_path(f"{ROOT}/probed") / "probe.json").read_text())
    assert found["numbers"]["whole"]["top1"] == 1.0  # the same images in both splits


@pytest.mark.slow
def test_a_detector_is_trained_evaluated_and_reported_there(labelled, tmp_path):
    from tests.detection.test_finetune import config

    file = tmp_path / "detector.yaml"
    file.write_text(dump_config(config()))
    _, data = labelled
    output = as_path(f"{ROOT}/detector")
    arguments = ["--weights", "random", "--data", data, "--output", str(output)]
    assert main(["finetune", str(file), *arguments]) == 0
    written = {path.name for path in output.iterdir()}
    assert {
        "config.yaml",
        "metrics.json",
        "metrics.jsonl",
        "detector.keras",
        "saved_model",
        "detections.png",
    } <= written
    assert [line["step"] for line in lines(output)] == [2, 3]
    assert main(["finetune", str(file), *arguments]) == 2
    assert main(["evaluate", str(output), "--data", data, "--output", f"{ROOT}/scores"]) == 0
    scores = json.loads((as_path(f"{ROOT}/scores") / "metrics.json").read_text())
    assert scores["AP"] == json.loads((output / "metrics.json").read_text())["AP"]
    assert tf.saved_model.load(str(output / "saved_model")).class_names().numpy().tolist()
    assert main(["report", str(output), "--output", str(tmp_path / "r.html")]) == 0
