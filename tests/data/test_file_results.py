"""Tests of the table of per-file results, which later starts reuse until a file changes."""

import os

from dupr_tf.config import load_config
from dupr_tf.data.file_results import FileResults
from dupr_tf.data.images import bad_images, duplicates
from dupr_tf.detection.task_labels import read_evaluated, read_splits
from tests.labelled_scenes import pictures, write_coco


def test_results_are_reused_until_a_file_changes(tmp_path):
    paths = [str(tmp_path / name) for name in ("a\tb", "c", "missing")]
    for path in paths[:2]:
        with open(path, "w") as file:
            file.write(path)
    computed = []

    def results(what="length"):
        table = FileResults(tmp_path / "table.tsv")
        texts = table.of(what, paths, lambda place: computed.append(place) or str(len(paths[place])), 2)
        table.save()
        return texts, sorted(computed)

    lengths = [str(len(path)) for path in paths]
    assert results() == (lengths, [0, 1, 2])
    computed.clear()
    assert results() == (lengths, [2])  # a missing file may appear later
    os.utime(paths[1], ns=(0, 0))
    computed.clear()
    assert results() == (lengths, [1, 2])
    computed.clear()
    assert results("another kind") == (lengths, [0, 1, 2])
    with open(paths[0], "a") as file:
        file.write("more")
    computed.clear()
    assert results()[1] == [0, 2]


def test_truncated_table_is_read_up_to_the_damage(tmp_path):
    (tmp_path / "c").write_text("c")
    path, paths = tmp_path / "table.tsv", [str(tmp_path / "c")]
    table = FileResults(path)
    table.of("kind", paths, lambda _: "known", 1)
    table.save()
    whole = path.read_bytes()
    for end in range(len(whole) - len("\tknown\n"), -1, -7):
        path.write_bytes(whole[:end] + b"\xff")
        assert FileResults(path).of("kind", paths, lambda _: "computed", 1) == ["computed"]


def test_later_start_decodes_only_images_that_changed(tmp_path, monkeypatch):
    root = write_coco(tmp_path / "set", {"train": pictures(12, size=(160, 160))})
    config = load_config("configs/retinanet_r18_small.yaml", {"data.val_share": "0.25", "data.max_bad_share": "0.2"})
    path, decoded = tmp_path / "table.tsv", []
    check, header = bad_images.decode, duplicates.read_header
    monkeypatch.setattr(bad_images, "decode", lambda *a, **k: decoded.append("check") or check(*a, **k))
    monkeypatch.setattr(duplicates, "read_header", lambda *a: decoded.append("hash") or header(*a))

    def start(read, *arguments):
        decoded.clear()
        table = FileResults(path)
        images = read(*arguments, results=table)
        table.save()
        return images, decoded.count("check"), decoded.count("hash")

    (train, val, _), *counts = start(read_splits, config, root, "boxes")
    assert counts == [12, 12]
    (again, others, _), *counts = start(read_splits, config, root, "boxes")
    assert counts == [0, 0] and (again.paths, others.paths) == (train.paths, val.paths)
    evaluated, *counts = start(read_evaluated, root, "val", config.data, "boxes", train.class_names)
    assert counts == [0, 0] and evaluated.paths == val.paths
    with open(train.paths[0], "r+b") as file:
        file.truncate(60)
    (again, _, _), *counts = start(read_splits, config, root, "boxes")
    assert counts == [1, 1] and train.paths[0] not in again.paths
