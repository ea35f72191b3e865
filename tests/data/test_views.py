"""The geometry of view pairs through the real pipeline, on images whose pixels tell where they come from."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from dupr_tf.batch import check_view_pairs
from dupr_tf.config import ViewsConfig, parse_config
from dupr_tf.data.bad_images import BadImages, check_readable
from dupr_tf.data.images.listing import list_images
from dupr_tf.data.pipeline import shuffled_index, view_pairs
from dupr_tf.data.views import crop_and_flip, draw_crops, draw_pair
from dupr_tf.errors import RunFailed
from dupr_tf.ops import roi_align
from dupr_tf.ops.boxes import intersect_views
from tests.refusals import refusal

SIZE = 96
CONFIG = parse_config({"data": {"image_size": SIZE}, "train": {"batch_size": 16, "micro_batches": 1}})


@pytest.fixture(scope="module")
def ramps(tmp_path_factory):
    """Photos whose red is the row and green the column, in shares of the image; blue names the photo."""
    folder = tmp_path_factory.mktemp("ramps")
    for i, (height, width) in enumerate([(200, 300), (300, 200), (240, 240), (150, 350)] * 4):
        rows, columns = np.mgrid[0:height, 0:width]
        image = np.stack([rows * 255 / height, columns * 255 / width, np.full_like(rows, i * 15)], -1)
        Image.fromarray(image.round().astype(np.uint8)).save(folder / f"{i:02d}.png")
    return folder


def _batches(folder, first=0, last=4, config=CONFIG):
    paths = list_images(folder)
    return [
        {k: v.numpy() for k, v in batch.items()}
        for batch in view_pairs(paths, config, first, last, BadImages(paths, 0.01))
    ]


def _patches(batch, view, size):
    images = tf.constant(batch[f"view_{view}"], tf.float32)
    return roi_align(images, batch[f"boxes_{view}"], size, 1.0, 2, batch[f"flipped_{view}"]).numpy()


def test_same_cell_of_both_views_shows_the_same_place(ramps):
    flips = set()
    for batch in _batches(ramps):
        one, two = _patches(batch, 1, 3), _patches(batch, 2, 3)
        valid = batch["valid"]
        assert valid.any()
        flips |= set(zip(batch["flipped_1"][valid].tolist(), batch["flipped_2"][valid].tolist(), strict=True))
        # A cell's mean position agrees to 2 % of the image, where a mismatched cell is at least 6 % away.
        assert np.abs(one - two)[valid, ..., :2].max() < 0.02 * 255
        assert np.abs(one - two)[valid, ..., 2].max() < 1.5
    assert flips == {(a, b) for a in (True, False) for b in (True, False)}


def test_cells_run_top_to_bottom_and_left_to_right_of_the_source(ramps):
    batch = _batches(ramps, 0, 1)[0]
    for view in (1, 2):
        patches = _patches(batch, view, 3)[batch["valid"]]
        assert (np.diff(patches[..., 0], axis=1) > 0).all()
        assert (np.diff(patches[..., 1], axis=2) > 0).all()


def test_without_reading_flipped_grids_backwards_the_cells_disagree(ramps):
    batch = _batches(ramps, 0, 1)[0]
    mixed = batch["valid"] & (batch["flipped_1"] != batch["flipped_2"])
    assert mixed.any()
    grids = [
        roi_align(tf.constant(batch[f"view_{v}"], tf.float32), batch[f"boxes_{v}"], 3).numpy()[mixed] for v in (1, 2)
    ]
    assert np.abs(grids[0] - grids[1])[..., 1].max() > 0.1 * 255


def test_batches_do_not_depend_on_where_the_run_was_resumed(ramps):
    whole, resumed = _batches(ramps, 0, 4), _batches(ramps, 2, 4)
    for a, b in zip(whole[2:], resumed, strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_every_image_comes_once_an_epoch_in_a_new_order_with_new_crops(ramps):
    batches = _batches(ramps, 0, 3)  # 16 images, batch 16: an epoch each
    orders = [batch["index"].tolist() for batch in batches]
    assert all(sorted(order) == list(range(16)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    assert len({int(shuffled_index(i, 16, 1, 0)) for i in range(16)}) == 16
    for name in ("boxes_1", "view_1"):
        first, second = (batch[name][np.argsort(batch["index"])].reshape(16, -1) for batch in batches[:2])
        assert not (first == second).all(1).any()


def test_batches_keep_the_contract_and_others_are_refused(ramps):
    paths = list_images(ramps)
    dataset = view_pairs(paths, CONFIG, 0, 1, BadImages(paths, 0.01))
    assert check_view_pairs(dataset, 16, SIZE) is dataset
    assert view_pairs(paths, CONFIG, 2, 5, BadImages(paths, 0.01)).cardinality() == 3  # Keras shows how far it is
    error = refusal(check_view_pairs, dataset, 16, SIZE + 1)
    assert error.field == "dataset" and "view_1 TensorSpec" in error.problem and "boxes_1" not in error.problem
    changed = dataset.map(lambda b: {"more": b["valid"], **{k: v for k, v in b.items() if k != "flipped_1"}})
    problem = refusal(check_view_pairs, changed, 16, SIZE).problem
    assert "flipped_1 None" in problem and "more (unknown)" in problem


def test_crop_and_resize_is_pillows():
    image = np.random.default_rng(0).integers(0, 255, (120, 170, 3), np.uint8)
    crop = (10, 20, 110, 160)
    ours = crop_and_flip(tf.constant(image), tf.constant(crop), tf.constant(False), 40).numpy()
    pillow = Image.fromarray(image[10:110, 20:160]).resize((40, 40), Image.Resampling.BILINEAR)
    assert np.abs(ours.astype(int) - np.asarray(pillow, int)).max() <= 1
    assert abs((ours.astype(int) - np.asarray(pillow, int)).mean()) < 0.05  # rounded; cut off, it would be 0.5 less
    mirrored = crop_and_flip(tf.constant(image), tf.constant(crop), tf.constant(True), 40).numpy()
    np.testing.assert_array_equal(mirrored, ours[:, ::-1])


def test_crops_have_the_areas_and_aspects_asked_for_and_lie_inside():
    u = tf.random.stateless_uniform([4000, 11, 4], seed=[1, 2])
    crops = draw_crops(u, 300, 300, (0.2, 1.0), (3 / 4, 4 / 3)).numpy()
    height, width = crops[:, 2] - crops[:, 0], crops[:, 3] - crops[:, 1]
    assert crops.min() >= 0 and crops[:, 2:].max() <= 300
    area, aspect = height * width / 300**2, width / height
    assert 0.19 < area.min() < 0.22 and area.max() > 0.9
    assert 0.74 < aspect.min() < 0.77 and 1.3 < aspect.max() < 1.35
    assert abs(np.log(aspect).mean()) < 0.02  # log-uniform


def test_wide_crops_are_as_frequent_as_tall_ones():
    u = tf.random.stateless_uniform([4000, 11, 4], seed=[1, 2])
    crops = draw_crops(u, 300, 300, (0.05, 0.2), (1 / 4, 4)).numpy()
    aspects = np.log((crops[:, 3] - crops[:, 1]) / (crops[:, 2] - crops[:, 0]))
    assert abs(aspects.mean()) < 0.06  # 0.57 if the aspect itself were uniform
    np.testing.assert_allclose(np.quantile(aspects, [0.25, 0.75]), np.log([1 / 2, 2]), atol=0.08)


def test_crops_lie_anywhere_with_independent_rows_and_columns():
    u = tf.random.stateless_uniform([4000, 11, 4], seed=[1, 2])
    crops = draw_crops(u, 300, 200, (0.05, 0.1), (3 / 4, 4 / 3)).numpy()
    assert crops[:, :2].min(0).tolist() == [0, 0] and crops[:, 2:].max(0).tolist() == [300, 200]
    places = crops[:, :2] / ([300, 200] - crops[:, 2:] + crops[:, :2])  # 0 to 1
    np.testing.assert_allclose(places.mean(0), 0.5, atol=0.03)
    assert abs(np.corrcoef(places.T)[0, 1]) < 0.08


def _drawn_pairs(views, count=2000):
    """Crops (count, 2, 4) and flips (count, 2) of pairs drawn from the seeds 0, 1, …, and which of them are valid."""
    seeds = tf.data.Dataset.range(count).map(lambda i: draw_pair(200, 200, tf.stack([i, 7]), SIZE, views))
    crops, flipped = next(iter(seeds.batch(count)))
    arguments = crops[:, 0], crops[:, 1], flipped[:, 0], flipped[:, 1], SIZE, views.min_overlap
    return crops.numpy(), flipped.numpy(), intersect_views(*arguments)[-1].numpy()


def test_flips_are_even_and_independent_of_place():
    crops, flipped, _ = _drawn_pairs(ViewsConfig())
    np.testing.assert_allclose(flipped.mean(0), 0.5, atol=0.05)
    places = crops[:, :, :2].reshape(-1, 4).T  # y and x of both views
    correlations = np.corrcoef(places, flipped.T)[:4, 4:]
    assert np.abs(correlations).max() < 0.1
    assert abs(np.corrcoef(flipped.T)[0, 1]) < 0.1


def test_pairs_are_drawn_again_until_they_overlap():
    small = {"crop_area": (0.05, 0.1), "min_overlap": 24}
    once, four = (_drawn_pairs(ViewsConfig(**small, draws=draws))[2].mean() for draws in (1, 4))
    assert 0.1 < once < 0.6
    assert four == pytest.approx(1 - (1 - once) ** 4, abs=0.06)


def test_a_panorama_falls_back_to_its_central_crop():
    u = tf.random.stateless_uniform([50, 11, 4], seed=[1, 2])
    crops = draw_crops(u, 10, 400, (0.9, 1.0), (3 / 4, 4 / 3)).numpy()
    assert np.unique(crops, axis=0).tolist() == [[0, 193, 10, 206]]  # floor of the middle, 13 wide


def test_unreadable_images_are_named_and_replaced(ramps, tmp_path, caplog):
    for path in ramps.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    broken = tmp_path / "03.png"
    broken.write_bytes(broken.read_bytes()[:500])
    paths = list_images(tmp_path)
    bad = BadImages(paths, 0.5)
    indices = [b["index"].numpy() for b in view_pairs(paths, CONFIG, 0, 2, bad)]
    assert bad.reasons == {str(broken): "cut short: PNG"}
    assert str(broken) in caplog.text
    assert 3 not in np.concatenate(indices)
    again = [b["index"].numpy() for b in view_pairs(paths, CONFIG, 0, 2, BadImages(paths, 0.5))]
    np.testing.assert_array_equal(indices, again)  # the replacement is a function of seed and image
    bad.max_share = 0.01
    error = refusal(bad.check)
    assert error.field == "data.max_bad_share" and all(part in error.problem for part in ("1 of 16", "03.png"))
    with pytest.raises(RunFailed, match=r"03\.png"):
        bad.check(running=True)


@pytest.mark.parametrize("broken", [[0, 7, 8, 14, 15], pytest.param(list(range(12)), marks=pytest.mark.slow)])
def test_any_pattern_of_unreadable_images_leaves_the_others_where_they_were(ramps, tmp_path, broken):
    order = _batches(ramps, 0, 1)[0]["index"]
    for path in sorted(ramps.iterdir()):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    for place in broken:  # of the epoch: first, last, in a row
        (tmp_path / f"{order[place]:02d}.png").write_bytes(b"")
    paths = list_images(tmp_path)
    bad = BadImages(paths, 1.0)
    batches = [{k: v.numpy() for k, v in b.items()} for b in view_pairs(paths, CONFIG, 0, 3, bad)]
    assert len(batches) == 3 and all(len(batch["index"]) == 16 for batch in batches)
    assert set(bad.found) == {order[place] for place in broken}
    whole = _batches(ramps, 0, 3)
    for batch, full in zip(batches, whole, strict=True):
        kept = ~np.isin(full["index"], list(bad.found))
        for name in full:
            np.testing.assert_array_equal(batch[name][kept], full[name][kept], err_msg=name)
        assert not np.isin(batch["index"], list(bad.found)).any()


def test_only_broken_images_are_refused_before_the_run(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_bytes(b"no image")
    paths = list_images(tmp_path)
    assert "0.jpg" in refusal(check_readable, paths, BadImages(paths, 1.0)).problem


@pytest.mark.parametrize("make, problem", [
    (lambda d: d / "nowhere", "nowhere does not exist"),
    (lambda d: d, "no image"),
    (lambda d: (d / "file").write_bytes(b"x") and d / "file", "file is a file"),
])  # fmt: skip
def test_root_without_images_is_refused(tmp_path, make, problem):
    assert problem in refusal(list_images, make(tmp_path)).problem


def test_nested_folders_and_voc_and_coco_roots_are_found(tmp_path):
    for name in ("a/b/1.JPG", "a/2.png", ".hidden/3.jpg", "notes.txt"):
        (tmp_path / "flat" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "flat" / name).write_bytes(b"")
    assert [p.rsplit("/", 1)[1] for p in list_images(tmp_path / "flat")] == ["2.png", "1.JPG"]
    for name in ("voc/JPEGImages/1.jpg", "voc/Annotations/1.xml", "voc/SegmentationClass/1.png",
                 "coco/annotations/x.json", "coco/train2017/1.jpg", "coco/masks/1.png"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [p.rsplit("/", 2)[1] for p in list_images(tmp_path / "voc")] == ["JPEGImages"]
    assert [p.rsplit("/", 2)[1] for p in list_images(tmp_path / "coco")] == ["train2017"]
