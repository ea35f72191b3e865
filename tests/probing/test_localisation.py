"""Tests of sensitivity, affinity, matching and retrieval on features whose answer is known."""

import numpy as np
import pytest
import tensorflow as tf

from dupr_tf.config import ViewsConfig
from dupr_tf.data.labels.annotations import AnnotatedImages
from dupr_tf.data.views import DRAWS, intersect_views, uniform
from dupr_tf.errors import UserError
from dupr_tf.probing import affinity as affine
from dupr_tf.probing import matching as match
from dupr_tf.probing import retrieval as retrieve
from dupr_tf.probing import sensitivity as sensitive
from dupr_tf.probing.features import pool, unit
from dupr_tf.probing.labelled import pick_objects
from dupr_tf.probing.pairs import crops_holding
from tests import oracles_probing as oracles

SIZE, SIDE = 64, 8
CASES = [  # crop 1, crop 2 (y1 x1 y2 x2 in the image), mirrored
    ((0, 0, 60, 80), (20, 10, 90, 70), False, False),
    ((0, 0, 60, 80), (20, 10, 90, 70), True, False),
    ((5, 30, 70, 90), (0, 0, 50, 60), False, True),
    ((5, 30, 70, 90), (0, 0, 50, 60), True, True),
]


def places_as_features(points, sigma=6.0, seed=0):
    """Returns smooth random features (random Fourier features) of (..., 2) source points: near points are alike."""
    rng = np.random.default_rng(seed)
    phases = points @ rng.normal(0, 1 / sigma, (2, 128)) + rng.uniform(0, 2 * np.pi, 128)
    return np.cos(phases)


def pair_of(case):
    """Returns a ViewPair of one image without pixels."""
    crop_1, crop_2, flipped_1, flipped_2 = case
    flips = {"flipped_1": np.array([flipped_1]), "flipped_2": np.array([flipped_2])}
    boxes_1, boxes_2, valid = intersect_views([crop_1], [crop_2], *flips.values(), SIZE, 8.0)
    return {"boxes_1": boxes_1, "boxes_2": boxes_2, "valid": valid, **flips}


def source_points(crop, flipped, side=SIDE):
    """Returns (side, side, 2): the image points that the cells of a view show."""
    share = (np.arange(side) + 0.5) / side
    y = crop[0] + share * (crop[2] - crop[0])
    x = crop[1] + (1 - share if flipped else share) * (crop[3] - crop[1])
    return np.stack(np.meshgrid(y, x, indexing="ij"), -1)


# ---- matching ----


@pytest.mark.parametrize("case", CASES)
def test_true_places_are_mapped_through_the_image(case):
    places, inside = match.true_places(pair_of(case), SIZE, SIDE)
    for i in range(SIDE):
        for j in range(SIDE):
            expected, within = oracles.place_in_view_2((i, j), SIDE, SIZE, *case)
            assert inside[0, i, j] == within
            if within:
                np.testing.assert_allclose(places[0, i, j], expected, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_place_features_match_and_shuffled_ones_guess(case):
    """Maps have 16 x 16 cells: no other cell is nearer to an image point than the one it falls into."""
    side = 16
    views = [places_as_features(source_points(case[n], case[2 + n], side)) for n in (0, 1)]
    places, inside = match.true_places(pair_of(case), SIZE, side)
    found = match.match_pair(*views, places[0], inside[0])
    assert (found["errors"] <= 1).all() and len(found["errors"]) > 20
    mirrored = match.match_pair(views[0], views[1][:, ::-1], places[0], inside[0])
    assert (mirrored["errors"] <= 1).mean() < 0.3  # an error with mirrored views would show
    rng, errors = np.random.default_rng(0), []
    for _ in range(30):
        shuffled = rng.permutation(views[1].reshape(side * side, -1)).reshape(views[1].shape)
        errors.append(match.match_pair(views[0], shuffled, places[0], inside[0])["errors"])
    guessed = match.chance(found["places"], side, 2)
    assert (np.concatenate(errors) <= 2).mean() == pytest.approx(guessed, rel=0.35)


def test_nearest_cells_agree_with_the_oracle():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(4, 4, 6)), rng.normal(size=(4, 4, 6))
    found = match.nearest_cells(a, b)
    assert all(tuple(found[i, j]) == oracles.nearest_cell(a[i, j], b) for i in range(4) for j in range(4))


def test_chance_agrees_with_a_count_by_hand():
    assert match.chance(np.array([[4.0, 4.0]]), 9, 1) == pytest.approx(5 / 81)  # the cell and its four neighbours
    assert match.chance(np.array([[0.0, 0.0]]), 9, 1) == pytest.approx(3 / 81)
    assert match.chance(np.array([[4.0, 4.0]]), 9, 2) == pytest.approx(13 / 81)


def fake_maps(views):
    """Returns a `feature_maps` that takes the features for the picture."""
    return lambda images: {level: tf.constant(np.asarray(images), tf.float32) for level in ("P4", "P5")}


def test_matching_from_views_to_scores():
    pairs, side = [], 16
    for case in CASES:
        views = [places_as_features(source_points(case[n], case[2 + n], side))[None] for n in (0, 1)]
        pairs.append({**pair_of(case), "view_1": views[0], "view_2": views[1]})
    numbers, drawn = match.matching(fake_maps(None), pairs, SIZE, "P4", drawn=2)
    assert numbers["pck_1"] == numbers["pck_2"] == 1.0 and numbers["pairs"] == 4 and len(drawn) == 2
    assert 0 < numbers["chance_1"] < numbers["chance_2"] < 0.06 and numbers["median_error"] < 0.71
    pairs[0]["valid"] = np.array([False])
    assert match.matching(fake_maps(None), pairs, SIZE)[0]["pairs"] == 3
    for measure in (match.matching, affine.affinities):
        with pytest.raises(UserError) as error:
            measure(fake_maps(None), pairs[:1], SIZE)
        assert error.value.field == "data"


# ---- affinity ----


def test_affinity_is_eq_9():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(3, 3, 5)), rng.normal(size=(3, 3, 5))
    expected = oracles.affinity(a.reshape(9, 5).T, b.reshape(9, 5).T, 0.1)
    found = affine.affinity(a, b, 0.1)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    np.testing.assert_allclose(found.sum(0), 1)
    assert not np.allclose(found.sum(1), 1)  # a softmax over the places of view 1, not of view 2


def test_perfect_features_have_a_diagonal_affinity():
    rng = np.random.default_rng(0)
    region = rng.normal(size=(6, 6, 64))
    assert affine.diagonal_mass(affine.affinity(region, region)) == pytest.approx(1.0)
    assert affine.diagonal_mass(affine.affinity(region, np.ones_like(region) * region[:1, :1])) == pytest.approx(1 / 36)
    same = np.ones((6, 6, 4))
    assert affine.diagonal_mass(affine.affinity(same, same)) == pytest.approx(1 / 36)
    shuffled = [rng.permutation(region.reshape(36, -1)).reshape(region.shape) for _ in range(200)]
    mass = np.mean([affine.diagonal_mass(affine.affinity(region, other)) for other in shuffled])
    assert mass == pytest.approx(1 / 36, rel=0.4)


def test_mass_near_the_diagonal_respects_rows_and_columns():
    matrix = np.zeros((9, 9))
    matrix[[1, 5, 0], [0, 4, 8]] = 1  # the neighbour to the right, the one after it, and the opposite corner
    assert affine.diagonal_mass(matrix) == 0
    assert affine.diagonal_mass(matrix, 1) == pytest.approx(2 / 9)
    matrix[:] = 0
    matrix[3, 2] = 1  # consecutive numbers, but at the end of one row and the start of the next
    assert affine.diagonal_mass(matrix, 1) == 0


def test_affinities_read_mirrored_views_right_to_left():
    pairs = []
    for case in CASES:
        views = [places_as_features(source_points(case[n], case[2 + n], 32), 20.0)[None] for n in (0, 1)]
        pairs.append({**pair_of(case), "view_1": views[0], "view_2": views[1]})
    numbers, _ = affine.affinities(fake_maps(None), pairs, SIZE, "P5", cells=5)
    assert numbers["diagonal"] > 0.99 and numbers["pairs"] == 4
    assert numbers["chance"] == pytest.approx(1 / 25) and numbers["chance_within_1"] == pytest.approx(
        (13 / 5) ** 2 / 25
    )
    pairs[1]["flipped_1"] = ~pairs[1]["flipped_1"]
    assert affine.affinities(fake_maps(None), pairs[1:2], SIZE, "P5", cells=5)[0]["diagonal"] < 0.5


def test_affinity_refuses_a_temperature_of_0():
    with pytest.raises(UserError) as error:
        affine.affinity(np.ones((2, 2, 3)), np.ones((2, 2, 3)), 0)
    assert error.value.field == "temperature"


# ---- sensitivity ----


def test_similarity_is_eq_8():
    rng = np.random.default_rng(0)
    q, others = rng.normal(size=(3, 3, 5)), rng.normal(size=(4, 3, 3, 5))
    np.testing.assert_allclose(sensitive.similarity(q, others), [oracles.similarity(q, k) for k in others])
    assert sensitive.similarity(q, q[None])[0] == pytest.approx(1.0)


def test_iou_agrees_with_the_oracle():
    rng = np.random.default_rng(0)
    boxes = np.sort(rng.uniform(0, 50, (30, 2, 2)), 1).reshape(-1, 4)
    np.testing.assert_allclose(sensitive.iou(boxes[0], boxes), [oracles.iou(boxes[0], b) for b in boxes])


@pytest.mark.parametrize("box", [(20, 30, 80, 90), (0, 0, 60, 60), (40, 50, 62, 80)])
def test_rois_cover_all_ious_inside_the_image(box):
    rois, ious = sensitive.sample_rois(np.array(box), 100, np.random.default_rng(0))
    assert len(rois) == 20 and sorted((ious * 20).astype(int)) == list(range(20))
    np.testing.assert_allclose(ious, [oracles.iou(box, roi) for roi in rois], atol=1e-5)
    assert rois.min() >= 0 and rois.max() <= 100 and (rois[:, 2:] - rois[:, :2]).min() >= 8


def test_curves_of_a_line_and_of_a_constant():
    ious = np.linspace(0, 1, 201)
    found = sensitive.curve(ious, 0.2 + 0.5 * ious)
    assert found["slope"] == pytest.approx(0.5) and found["intercept"] == pytest.approx(0.2)
    assert found["correlation"] == pytest.approx(1) and sum(found["count"]) == 201
    np.testing.assert_allclose(found["mean"], 0.2 + 0.5 * np.array(found["iou"]), atol=0.02)
    flat = sensitive.curve(ious, np.ones(201))
    assert flat["slope"] == pytest.approx(0, abs=1e-9) and flat["correlation"] == 0 and max(flat["std"]) == 0
    assert sensitive.curve(np.array([0.05, 0.95]), np.array([0.0, 1.0]))["mean"][1:-1] == [None] * 8


def annotated(paths, boxes, sizes, ignored=None):
    ignored = ignored or [np.zeros(len(b), bool) for b in boxes]
    return AnnotatedImages(
        tuple(paths), np.array(sizes, np.int32), tuple(np.array(b, np.float32).reshape(-1, 4) for b in boxes),
        tuple(np.zeros(len(b), np.int32) for b in boxes), tuple(ignored), tuple(np.zeros(len(b)) for b in boxes),
        ("a",),
    )  # fmt: skip


def test_sensitivity_of_place_and_constant_features(tmp_path):
    from PIL import Image

    Image.new("RGB", (120, 80)).save(tmp_path / "a.png")
    images = annotated([str(tmp_path / "a.png")] * 3, [[(30, 20, 80, 60)]] * 3, [(80, 120)] * 3)
    grid = np.stack(np.meshgrid(np.arange(16), np.arange(16), indexing="ij"), -1).astype(float)
    knows = np.repeat(places_as_features(grid, 3.0)[None], 3, 0)
    rows = [(0, 0), (1, 0), (2, 0)]
    for features, low, high in ((knows, 0.5, 2.0), (np.ones_like(knows), -1e-6, 1e-6)):
        maps = lambda images, f=features: {"P4": tf.constant(f[: images.shape[0]], tf.float32)}  # noqa: E731
        found = sensitive.sensitivity(maps, images, rows, 128, "P4", 5)
        assert low <= found["slope"] <= high and found["images"] == 3
        assert found["mean"][-1] > 0.9  # nearly the same box, nearly the same features


def test_tiny_huge_and_difficult_objects_are_left_out():
    boxes = [[(0, 0, 5, 5), (10, 10, 60, 60)], [(0, 0, 99, 99)], [(10, 10, 60, 60)], []]
    ignored = [np.array([False, False]), np.array([False]), np.array([True]), np.array([], bool)]
    images = annotated("abcd", boxes, [(100, 100)] * 4, ignored)
    assert pick_objects(images, 10) == [(0, 1)]
    with pytest.raises(UserError) as error:
        pick_objects(annotated("a", boxes[1:2], [(100, 100)]), 10)
    assert error.value.field == "data"


def test_crops_contain_the_object():
    def crops_of(box, number, **views):
        return crops_holding(np.array(box), 100, 120, uniform(0, 0, number, (64, 2, *DRAWS)), ViewsConfig(**views))

    for number in range(8):
        crops = crops_of([30.0, 40.0, 60.0, 80.0], number)
        assert (crops[:, :2] <= [30, 40]).all() and (crops[:, 2:] >= [60, 80]).all()
        assert (crops[:, :2] >= 0).all() and (crops[:, 2:] <= [100, 120]).all()
    whole = crops_of([0.0, 0.0, 100.0, 120.0], 0, crop_area=(0.2, 0.5))
    assert whole.tolist() == [[0, 0, 100, 120]] * 2
    # No crop of at most a fifth of the area contains it.
    crops = crops_of([20.0, 20.0, 90.0, 110.0], 1, crop_area=(0.1, 0.2))
    assert (crops[:, :2] <= [20, 20]).all() and (crops[:, 2:] >= [90, 110]).all() and (crops[0] != crops[1]).any()


# ---- retrieval ----


def test_neighbours_are_sorted_and_never_the_query():
    maps = np.array([np.broadcast_to(v, (2, 2, 3)) for v in ((1, 0, 0), (0.9, 0.1, 0), (0, 1, 0), (0.1, 1, 0))], float)
    found, similarity = retrieve.neighbours(maps, np.array([0, 2]), 2)
    assert found.tolist() == [[1, 3], [3, 1]] and (np.diff(similarity) < 0).all()
    assert retrieve.neighbours(maps, np.array([0]), 9)[0].shape == (1, 3)
    with pytest.raises(UserError) as error:
        retrieve.neighbours(maps[:1], np.array([0]))
    assert error.value.field == "data"


def test_alignment_of_equal_shifted_and_random_maps():
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(7, 7, 32))
    assert retrieve.alignment(maps, maps) == 1.0
    assert retrieve.alignment(maps, np.roll(maps, 3, 1)) == 0.0
    guessed = [retrieve.alignment(maps, rng.normal(size=maps.shape)) for _ in range(100)]
    assert np.mean(guessed) == pytest.approx(retrieve.alignment_chance(7, 7), rel=0.1)
    assert retrieve.alignment_chance(3, 3) == pytest.approx((4 * 4 + 4 * 6 + 9) / 81)


def test_retrieval_counts_classes():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(2, 3, 3, 16))
    maps = centres[np.arange(12) % 2] + 0.01 * rng.normal(size=(12, 3, 3, 16))
    numbers, _, aligned = retrieve.retrieval(maps, np.arange(12), np.arange(12) % 2)
    assert numbers["same_class"] == 1.0 and numbers["alignment"] == 1.0 and aligned.shape == (12, 4)
    assert numbers["same_class_chance"] == pytest.approx(5 / 11)
    assert retrieve.retrieval(maps, [0])[0]["same_class"] is None


def test_features_that_encode_only_position_do_not_align():
    """The features are like a random network's near the border: the same in every image, apart from noise."""
    rng = np.random.default_rng(0)
    maps = 10 * rng.normal(size=(1, 4, 4, 32)) + rng.normal(size=(40, 4, 4, 32))
    assert retrieve.alignment(maps[0], maps[1]) == 1.0
    numbers, *_ = retrieve.retrieval(maps, np.arange(40))
    assert numbers["alignment"] == pytest.approx(numbers["chance"], rel=0.15)


# ---- features ----


@pytest.mark.parametrize("cells", [1, 2, 3, 7])
def test_pooling_is_adaptive(cells):
    maps = np.random.default_rng(0).normal(size=(2, 7, 7, 4))
    found = pool(tf.constant(maps, tf.float32), cells).numpy()
    for n in range(2):
        np.testing.assert_allclose(found[n], oracles.adaptive_average(maps[n], cells), atol=1e-6)
    assert pool(tf.zeros([1, 2, 2, 3]), 6).shape == (1, 2, 2, 3)  # a map with fewer cells is kept


def test_rows_of_zeros_stay_zero():
    assert unit(np.array([[0.0, 0.0], [3.0, 4.0]])).tolist() == [[0, 0], [0.6, 0.8]]
