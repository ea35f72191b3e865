"""Tests kNN, linear and SVM probes on features whose answer is known."""

import numpy as np
import pytest
from PIL import Image

from dupr_tf.config import DataConfig, LinearConfig, ProbingConfig, parse_config
from dupr_tf.data.labels.annotations import AnnotatedImages
from dupr_tf.data.labels.split import MissingSplit
from dupr_tf.errors import UserError
from dupr_tf.probing.knn import knn, knn_scores, largest, top_accuracies, votes
from dupr_tf.probing.labelled import check_probed, has_class_folders, image_labels, read_both_splits
from dupr_tf.probing.linear import LinearClassifier, learning_rate, standardization, train_cached
from dupr_tf.probing.svm import average_precision_11, best_cost, fewer_columns, fit, svm
from tests import oracles_probing as oracles
from tests.labelled_scenes import pictures, write_coco, write_voc
from tests.refusals import refusal


def clusters(count, classes, dim=12, noise=0.05, seed=0):
    """Returns (count, dim) features, a direction for each class, and labels in turn."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    return np.eye(classes, dim)[labels] + noise * rng.normal(size=(count, dim)), labels


def test_layout_can_be_chosen_if_the_root_has_two(tmp_path):
    root = write_coco(tmp_path / "set", {"train": pictures(3), "val": pictures(2)})
    write_voc(root, {"train": pictures(4), "val": pictures(2)})
    assert refusal(read_both_splits, root, ("train", "val")).field == "data.kind"
    counts = {kind: len(read_both_splits(root, ("train", "val"), DataConfig(kind=kind))[0]) for kind in ("coco", "voc")}
    assert counts == {"coco": 3, "voc": 4}


def test_knn_votes_agree_with_instdis():
    rng = np.random.default_rng(0)
    train, labels, val = rng.normal(size=(30, 5)), rng.integers(0, 4, 30), rng.normal(size=(6, 5))
    scores = knn_scores(train, labels, val, 4, k=7, temperature=0.07)
    for row, query in zip(scores, val, strict=True):
        expected = np.array(oracles.knn_votes(train, labels, query, 4, 7, 0.07))
        np.testing.assert_allclose(row / row.sum(), expected / expected.sum(), rtol=1e-9)


def test_nearest_neighbours_are_found_among_many():
    values = np.random.default_rng(0).normal(size=(3, 500))
    np.testing.assert_array_equal(largest(values, 20), np.argsort(-values, axis=1)[:, :20])
    assert largest(values[:, :4], 4).shape == (3, 4)


def test_one_near_neighbour_outvotes_two_far_ones():
    train = [[1.0, 0.0], [0.0, 1.0], [0.1, 1.0]]
    assert knn_scores(np.array(train), [0, 1, 1], np.array([[1.0, 0.05]]), 2, k=3, temperature=0.07).argmax() == 0
    assert knn_scores(np.array(train), [0, 1, 1], np.array([[1.0, 0.05]]), 2, k=3, temperature=1e3).argmax() == 1


def test_knn_separates_classes_and_guesses_shuffled_labels():
    train, labels = clusters(120, 6)
    val, truth = clusters(600, 6, seed=1)
    perfect = knn(train, labels, val, truth, 6, k=10)
    assert perfect["top1"] == 1.0 and perfect["top5"] == 1.0 and perfect["chance"] == pytest.approx(1 / 6)
    shuffled = knn(train, labels, val, np.random.default_rng(2).permutation(truth), 6, k=10)
    assert shuffled["top1"] == pytest.approx(1 / 6, abs=0.05)


def test_k_is_capped_by_the_number_of_images():
    train, labels = clusters(8, 2)
    found = knn(train, labels, train, labels, 2, k=200)
    assert found["k"] == 8 and found["top5"] is None


def test_the_default_of_k_is_the_mean_number_of_images_of_a_class():
    assert [votes(*counts) for counts in ((110, 10), (3, 10), (1_281_167, 1000), (10**6, 1000, 20))] == [11, 1, 200, 20]
    train, labels = clusters(8, 2)
    assert knn(train, labels, train, labels, 2)["k"] == 4


@pytest.mark.parametrize("k, temperature, field", [(0, 0.07, "k"), (5, 0.0, "temperature")])
def test_knn_refuses_zero_neighbours_and_zero_temperature(k, temperature, field):
    with pytest.raises(UserError) as error:
        knn_scores(np.eye(3), [0, 1, 2], np.eye(3), 3, k, temperature)
    assert error.value.field == field


def test_top5_counts_the_five_highest():
    scores = np.array([[7, 6, 5, 4, 3, 2, 1.0]])
    assert [top_accuracies(scores, [label])["top5"] for label in (0, 4, 5)] == [1.0, 1.0, 0.0]
    assert [top_accuracies(scores, [label])["top1"] for label in (0, 1)] == [1.0, 0.0]


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_is_that_of_voc(seed):
    rng = np.random.default_rng(seed)
    scores, positive = rng.normal(size=40), rng.random(40) < 0.3
    assert average_precision_11(scores, positive) == pytest.approx(oracles.average_precision_11(scores, positive))


def test_average_precision_by_hand():
    assert average_precision_11([3, 2, 1], [True, True, False]) == 1.0
    # Ranks 2 and 4 of four give precision 1/2 up to recall 1/2, and again at 1.
    assert average_precision_11([4, 3, 2, 1], [False, True, False, True]) == pytest.approx(0.5)
    # Ranks 1 and 4 give precision 1 up to recall 1/2 (6 of 11 levels), and 1/2 beyond (5 of 11).
    assert average_precision_11([4, 3, 2, 1], [True, False, False, True]) == pytest.approx((6 + 5 * 0.5) / 11)


def test_svm_separates_classes_and_guesses_shuffled_labels():
    rng = np.random.default_rng(0)
    labels = (rng.random((150, 3)) < 0.4).astype(np.int8)
    rows = np.concatenate([2.0 * labels - 1, 0.1 * rng.normal(size=(150, 5))], 1)
    found = svm(rows[:100], labels[:100], rows[100:], labels[100:], ("a", "b", "c"))
    assert found["mAP"] == pytest.approx(1.0) and set(found["per_class"]) == {"a", "b", "c"}
    noise = svm(rng.normal(size=(100, 8)), labels[:100], rng.normal(size=(50, 8)), labels[100:], ("a", "b", "c"))
    assert noise["mAP"] == pytest.approx(found["chance"], abs=0.15) and noise["mAP"] < 0.65


def test_more_columns_than_rows_change_nothing():
    rng = np.random.default_rng(0)
    rows, val, y = rng.normal(size=(30, 80)), rng.normal(size=(9, 80)), np.arange(30) % 3 == 0
    few, few_val = fewer_columns(rows, val)
    assert few.shape == (30, 30) and few_val.shape == (9, 30)
    whole, less = fit(rows, y, 1.0, 0), fit(few, y, 1.0, 0)
    np.testing.assert_allclose(whole.decision_function(val), less.decision_function(few_val), atol=2e-3)
    assert fewer_columns(rows[:, :20], val[:, :20])[0].shape == (30, 20)


def test_svm_leaves_difficult_images_out():
    """Image 0 of the test set would be the highest wrong answer. Labelled -1, it does not count."""
    labels = np.array([1, 0] * 10, np.int8)[:, None]
    rows = np.concatenate([labels, 1.0 - labels], 1) * 1.0
    val, truth = np.array([[5.0, 0], [1, 0], [0, 1]]), np.array([[0], [1], [0]], np.int8)
    assert svm(rows, labels, val, truth, ("a",))["mAP"] < 1  # scores are equal after scaling, so the first comes first
    truth[0] = -1
    assert svm(rows, labels, val, truth, ("a",))["mAP"] == 1.0


def test_svm_score_of_an_absent_class_is_none():
    labels = np.array([[1, 0], [0, 0]] * 6, np.int8)
    rows = np.array([[1.0, 0], [0, 1]] * 6)
    found = svm(rows, labels, rows, labels, ("a", "b"))
    assert found["per_class"] == {"a": 1.0, "b": None} and found["mAP"] == 1.0
    with pytest.raises(UserError) as error:
        svm(rows, labels * 0, rows, labels, ("a", "b"))
    assert error.value.field == "data"


def test_cost_is_the_best_over_the_folds():
    """The classes overlap, unbalanced. A tiny C ranks by one large noisy feature, a larger C by the small clean one."""
    rng = np.random.default_rng(3)
    y = np.arange(120) % 4 == 0
    rows = np.stack([0.15 * y + 0.02 * rng.normal(size=120), rng.normal(size=120) + 0.4 * y], 1)
    costs = (1e-4, 100.0)
    assert best_cost(rows, y, costs, 3, 0) == 100.0
    assert best_cost(rows[:4], y[:4], costs, 3, 0) == 1.0  # a single example leaves nothing to choose by


def test_image_labels_distinguish_difficult_and_absent():
    boxes = tuple(np.zeros((n, 4), np.float32) for n in (2, 1, 0))
    annotated = AnnotatedImages(
        ("a", "b", "c"), np.ones((3, 2), np.int32), boxes,
        (np.array([0, 1]), np.array([0]), np.array([], int)),
        (np.array([True, False]), np.array([False]), np.array([], bool)),
        tuple(np.zeros(n) for n in (2, 1, 0)), ("cat", "dog", "cow"),
    )  # fmt: skip
    assert image_labels(annotated).tolist() == [[-1, 1, 0], [1, 0, 0], [0, 0, 0]]


def test_linear_classifier_learns_classes_but_not_noise():
    rows, labels = clusters(200, 5, noise=0.2)
    val, truth = clusters(100, 5, noise=0.2, seed=1)
    classifier = train_cached(rows.astype(np.float32), labels, 5, LinearConfig(epochs=20, batch_size=50))
    assert top_accuracies(classifier.scores(val), truth)["top1"] > 0.95
    blind = train_cached(np.zeros((200, 12), np.float32), labels, 5, LinearConfig(epochs=2))
    assert top_accuracies(blind.scores(np.zeros((100, 12))), truth)["top1"] == pytest.approx(0.2)


def test_first_step_is_that_of_sgd_by_hand():
    settings = LinearConfig(epochs=1, batch_size=4, learning_rate=0.5, momentum=0.0, weight_decay=0.1, milestones=(9,))
    rows, labels = clusters(4, 2, dim=3)
    classifier = LinearClassifier(3, 2, settings)
    w = classifier.weights.numpy().astype(np.float64)
    classifier.optimizer.learning_rate = 0.5
    classifier.step(rows.astype(np.float32), labels)
    logits = rows @ w
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    error = (p - np.eye(2)[labels]) / 4
    np.testing.assert_allclose(classifier.weights.numpy(), w - 0.5 * (rows.T @ error + 0.1 * w), atol=1e-6)
    np.testing.assert_allclose(classifier.bias.numpy(), -0.5 * error.sum(0), atol=1e-6)


def test_rates_follow_moco_or_a_cosine():
    moco = LinearConfig(learning_rate=30, milestones=(60, 80), epochs=100)
    assert [learning_rate(moco, epoch) for epoch in (0, 59.9, 60, 80)] == pytest.approx([30, 30, 3, 0.3])
    small = LinearConfig(learning_rate=1.0, epochs=10)
    assert [learning_rate(small, epoch) for epoch in (0, 5, 10)] == pytest.approx([1, 0.5, 0])


def test_constant_feature_is_left_unchanged():
    mean, deviation = standardization(np.array([[1.0, 5.0], [3.0, 5.0]]))
    assert mean.tolist() == [2, 5] and deviation.tolist() == [1, 1]


@pytest.mark.parametrize("section, expected", [
    ({"linear": {"crop_area": [0.9, 0.2]}}, "linear.crop_area: "),
    ({"linear": {"level": "P6"}}, "linear.level: "),
    ({"linear": {"epoch": 3}}, "Did you mean linear.epochs?"),
    ({"probing": {"probes": ["svm"]}}, "probing.probes.0: "),
    ({"probing": {"every": 1}}, "Did you mean probing.every_epochs?"),
])  # fmt: skip
def test_wrong_probing_fields_are_named(section, expected):
    with pytest.raises(UserError) as error:
        parse_config(section)
    assert expected in str(error.value)


def test_cross_field_mistakes_are_reported():
    assert [error.field for error in LinearConfig(augment=True).problems()] == ["linear.standardize"]
    assert LinearConfig(augment=True, standardize=False).problems() == []
    assert [error.field for error in ProbingConfig(every_epochs=1).problems()] == ["probing.data"]


def write_png(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8)).save(path)


def test_folders_of_masks_yolo_and_plain_splits_are_no_classes(tmp_path):
    for split in ("train", "val"):
        for name in ("images", "masks"):
            write_png(tmp_path / "masks" / split / name / "0.png")
        write_png(tmp_path / "plain" / split / "0.png")
        write_png(tmp_path / "yolo" / split / "images" / "0.png")
        (tmp_path / "yolo" / split / "labels").mkdir()
        (tmp_path / "yolo" / split / "labels" / "0.txt").write_text("0 .5 .5 .5 .5\n")
        for name in ("cat", "dog"):
            write_png(tmp_path / "classes" / split / name / "0.png")
    (tmp_path / "yolo" / "data.yaml").write_text("train: train/images\nval: val/images\nnames: [cat]\n")
    found = {path.name: has_class_folders(path) for path in tmp_path.iterdir()}
    assert found == {"masks": False, "plain": False, "yolo": False, "classes": True}
    for name in found:
        check_probed("retrieval", tmp_path / name)
    assert "classes" in refusal(check_probed, "knn", tmp_path / "plain").problem


def test_affinity_in_training_needs_the_split_that_it_reads(tmp_path):
    write_coco(tmp_path / "coco", {"train": pictures(3)})
    with pytest.raises(MissingSplit):
        check_probed("affinity", tmp_path / "coco")
    check_probed("matching", tmp_path / "coco")
