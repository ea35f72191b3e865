"""Tests the geometry of view pairs in the real pipeline, on images whose pixel colours encode their positions."""

import itertools

import numpy as np
import pytest
from PIL import Image

from dupr_tf.batch import view_pair_signature
from dupr_tf.config import ViewsConfig, parse_config
from dupr_tf.data.images import resize
from dupr_tf.data.images.bad_images import BadImages, check_readable
from dupr_tf.data.images.listing import list_images
from dupr_tf.data.pipeline import block_size, epoch_order, view_pairs
from dupr_tf.data.views import DRAWS, cut_view, draw_crops, draw_pairs, intersect_views, uniform
from dupr_tf.errors import RunFailed
from tests import oracles
from tests.refusals import refusal

SIZE = 96
CONFIG = parse_config({"data": {"image_size": SIZE}, "train": {"batch_size": 16, "micro_batches": 1}})


@pytest.fixture(scope="module")
def ramps(tmp_path_factory):
    """Writes photos whose red is the row and green the column, as shares of the image. Blue identifies the photo."""
    folder = tmp_path_factory.mktemp("ramps")
    for i, (height, width) in enumerate([(200, 300), (300, 200), (240, 240), (150, 350)] * 4):
        rows, columns = np.mgrid[0:height, 0:width]
        image = np.stack([rows * 255 / height, columns * 255 / width, np.full_like(rows, i * 15)], -1)
        Image.fromarray(image.round().astype(np.uint8)).save(folder / f"{i:02d}.png")
    return folder


def _batches(folder, first=0, last=4, config=CONFIG):
    paths = list_images(folder)
    return _read(paths, BadImages(paths, 0.01), first, last, config)


def _read(paths, bad, first, last, config=CONFIG):
    with view_pairs(paths, config, first, last, bad) as reader:
        return list(reader)


def _assert_equal(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def _patches(batch, view, size, flips_followed=True):
    flips = batch[f"flipped_{view}"] if flips_followed else None
    return oracles.roi_align(batch[f"view_{view}"], batch[f"boxes_{view}"], size, 1.0, 2, flips)


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


def test_unflipped_grids_of_flipped_views_disagree(ramps):
    batch = _batches(ramps, 0, 1)[0]
    mixed = batch["valid"] & (batch["flipped_1"] != batch["flipped_2"])
    assert mixed.any()
    one, two = (_patches(batch, view, 3, flips_followed=False) for view in (1, 2))
    assert np.abs(one - two)[mixed, ..., 1].max() > 0.1 * 255


def test_batches_do_not_depend_on_the_resume_step(ramps):
    whole, resumed = _batches(ramps, 0, 4), _batches(ramps, 2, 4)
    for a, b in zip(whole[2:], resumed, strict=True):
        _assert_equal(a, b)


def test_each_epoch_has_all_images_in_new_order_and_crops(ramps):
    batches = _batches(ramps, 0, 3)  # 16 images, batch 16: one batch is an epoch
    orders = [batch["index"].tolist() for batch in batches]
    assert all(sorted(order) == list(range(16)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    for name in ("boxes_1", "view_1"):
        first, second = (batch[name][np.argsort(batch["index"])].reshape(16, -1) for batch in batches[:2])
        assert not (first == second).all(1).any()


def test_small_set_fills_batches_by_repeating_images(ramps):
    config = parse_config({"data": {"image_size": 32}, "train": {"batch_size": 40, "micro_batches": 1}})
    (batch,) = _batches(ramps, 0, 1, config)
    assert sorted(np.bincount(batch["index"], minlength=16).tolist()) == [2] * 8 + [3] * 8


def test_remainder_of_an_epoch_is_dropped(ramps):
    config = parse_config({"data": {"image_size": 32}, "train": {"batch_size": 6, "micro_batches": 1}})
    batches = [batch["index"] for batch in _batches(ramps, 0, 4, config)]
    for epoch in (batches[:2], batches[2:]):
        assert len(np.unique(epoch)) == 12
    assert set(np.concatenate(batches[:2])) != set(np.concatenate(batches[2:]))


def test_order_is_a_permutation_of_seed_and_epoch():
    orders = [[epoch_order(101, seed, epoch)[i] for i in range(101)] for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert all(sorted(order) == list(range(101)) for order in orders)
    assert all(a != b for a, b in itertools.combinations(orders, 2))


def test_blocks_are_small_and_divide_a_batch():
    assert [block_size(rows) for rows in (256, 48, 37, 6, 1)] == [32, 24, 1, 6, 1]


def test_batches_match_their_signature(ramps):
    paths = list_images(ramps)
    with view_pairs(paths, CONFIG, 2, 5, BadImages(paths, 0.01)) as reader:
        assert len(reader) == 3
        batch = next(reader)
        assert len(reader) == 2
    assert {name: (value.shape, value.dtype) for name, value in batch.items()} == view_pair_signature(16, SIZE)


@pytest.mark.parametrize(("threads", "processes"), [(1, 0), (3, 0), (1, 2)])
def test_threads_and_processes_change_no_bit(ramps, threads, processes):
    config = parse_config(
        {
            "data": {"image_size": SIZE, "threads": threads, "processes": processes},
            "train": {"batch_size": 16, "micro_batches": 1},
        }
    )
    for a, b in zip(_batches(ramps, 1, 4, config), _batches(ramps, 1, 4), strict=True):
        _assert_equal(a, b)


@pytest.mark.parametrize("weights", [(0, 0, 1, 1), (0, 0, 0, 0)])
def test_pairs_are_redrawn_for_patch_terms_only(ramps, weights):
    views = {"crop_area": [0.05, 0.1], "min_overlap": 40, "draws": 16}
    config = parse_config(
        {
            "data": {"image_size": SIZE}, "views": views, "model": {"patch_weights": weights},
            "train": {"batch_size": 16, "micro_batches": 1},
        }
    )  # fmt: skip
    shares = [batch["valid"].mean() for batch in _batches(ramps, 0, 4, config)]
    assert (np.mean(shares) > 0.5) == any(weights)


def test_views_of_shrunk_large_jpeg_hardly_change(tmp_path):
    photo = Image.effect_noise((40, 30), 90).resize((1600, 1200), Image.Resampling.BICUBIC)
    photo.convert("RGB").save(tmp_path / "0.jpg", quality=95)
    photo = Image.open(tmp_path / "0.jpg").convert("RGB")
    photo.save(tmp_path / "0.png")
    config = parse_config({"data": {"image_size": 64}, "train": {"batch_size": 2, "micro_batches": 1}})
    jpeg, png = (_read([str(tmp_path / name)], BadImages(["x"], 1), 0, 4, config) for name in ("0.jpg", "0.png"))
    for a, b in zip(jpeg, png, strict=True):
        assert np.abs(a["boxes_1"] - b["boxes_1"]).max() < 1  # crops lie on whole pixels of the decoded image
        assert np.abs(a["view_1"].astype(int) - b["view_1"]).mean() < 2
    assert any((a["view_1"] != b["view_1"]).any() for a, b in zip(jpeg, png, strict=True))  # computed in another way


def test_view_equals_crop_and_resize_of_pillow():
    image = np.random.default_rng(0).integers(0, 255, (120, 170, 3), np.uint8)
    ours = cut_view(image, (10, 20, 110, 160), False, 40)
    pillow = np.asarray(Image.fromarray(image[10:110, 20:160]).resize((40, 40), Image.Resampling.BILINEAR), int)
    assert np.abs(ours - pillow).max() <= 1
    assert abs((ours - pillow).mean()) < 0.05  # rounded; truncation would give 0.5 less
    np.testing.assert_array_equal(cut_view(image, (10, 20, 110, 160), True, 40), ours[:, ::-1])


def test_pillow_replaces_a_missing_resizer(monkeypatch):
    image = np.random.default_rng(0).integers(0, 255, (120, 170, 3), np.uint8)
    ours = resize.resize(image, 50, 200)
    monkeypatch.setattr(resize, "RESIZER", "pillow")
    theirs = resize.resize(image, 50, 200)
    assert theirs.shape == ours.shape == (50, 200, 3) and np.abs(ours.astype(int) - theirs).max() <= 1


def test_uniform_numbers_depend_on_every_argument():
    draws = [uniform(*key, (1000,)) for key in ((1, 2, 3), (2, 2, 3), (1, 3, 3), (1, 2, 4))]
    assert all(not np.isin(a, b).any() for a, b in itertools.combinations(draws, 2))
    assert abs(np.mean(draws) - 0.5) < 0.02 and np.min(draws) >= 0 and np.max(draws) < 1
    np.testing.assert_array_equal(uniform(1, 2, 3, (10,)), draws[0][:10])


def test_crops_have_configured_areas_and_aspects():
    u = uniform(1, 2, 0, (4000, *DRAWS))
    crops = draw_crops(u, 300, 300, (0.2, 1.0), (3 / 4, 4 / 3))
    height, width = crops[:, 2] - crops[:, 0], crops[:, 3] - crops[:, 1]
    assert crops.min() >= 0 and crops[:, 2:].max() <= 300
    area, aspect = height * width / 300**2, width / height
    assert 0.19 < area.min() < 0.22 and area.max() > 0.9
    assert 0.74 < aspect.min() < 0.77 and 1.3 < aspect.max() < 1.35
    assert abs(np.log(aspect).mean()) < 0.02  # log-uniform


def test_wide_crops_are_as_frequent_as_tall_ones():
    u = uniform(1, 2, 0, (4000, *DRAWS))
    crops = draw_crops(u, 300, 300, (0.05, 0.2), (1 / 4, 4))
    aspects = np.log((crops[:, 3] - crops[:, 1]) / (crops[:, 2] - crops[:, 0]))
    assert abs(aspects.mean()) < 0.06  # 0.57 if the aspect itself were uniform
    np.testing.assert_allclose(np.quantile(aspects, [0.25, 0.75]), np.log([1 / 2, 2]), atol=0.08)


def test_crop_rows_and_columns_are_uniform_and_independent():
    u = uniform(1, 2, 0, (4000, *DRAWS))
    crops = draw_crops(u, 300, 200, (0.05, 0.1), (3 / 4, 4 / 3))
    assert crops[:, :2].min(0).tolist() == [0, 0] and crops[:, 2:].max(0).tolist() == [300, 200]
    places = crops[:, :2] / ([300, 200] - crops[:, 2:] + crops[:, :2])  # position as a share from 0 to 1
    np.testing.assert_allclose(places.mean(0), 0.5, atol=0.03)
    assert abs(np.corrcoef(places.T)[0, 1]) < 0.08


def _drawn_pairs(views, count=2000):
    """Returns crops (count, 2, 4) and flips (count, 2) of drawn pairs, and which of them are valid."""
    u = np.stack([uniform(7, 0, number, (views.draws, 2, *DRAWS)) for number in range(count)])
    crops, flipped = draw_pairs(u, [(200, 200)] * count, SIZE, views)
    return crops, flipped, intersect_views(*crops.swapaxes(0, 1), *flipped.T, SIZE, views.min_overlap)[-1]


def test_flips_are_even_and_independent_of_place():
    crops, flipped, _ = _drawn_pairs(ViewsConfig())
    np.testing.assert_allclose(flipped.mean(0), 0.5, atol=0.05)
    places = crops[:, :, :2].reshape(-1, 4).T  # y and x of both views
    correlations = np.corrcoef(places, flipped.T)[:4, 4:]
    assert np.abs(correlations).max() < 0.1
    assert abs(np.corrcoef(flipped.T)[0, 1]) < 0.1


def test_pairs_are_redrawn_until_they_overlap():
    small = {"crop_area": (0.05, 0.1), "min_overlap": 24}
    once, four = (_drawn_pairs(ViewsConfig(**small, draws=draws))[2].mean() for draws in (1, 4))
    assert 0.1 < once < 0.6
    assert four == pytest.approx(1 - (1 - once) ** 4, abs=0.06)


def test_panorama_falls_back_to_its_central_crop():
    u = uniform(1, 2, 0, (50, *DRAWS))
    crops = draw_crops(u, 10, 400, (0.9, 1.0), (3 / 4, 4 / 3))
    assert np.unique(crops, axis=0).tolist() == [[0, 193, 10, 206]]  # floor of the middle, 13 px wide


def test_unreadable_images_are_named_and_replaced(ramps, tmp_path, caplog):
    for path in ramps.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    broken = tmp_path / "03.png"
    broken.write_bytes(broken.read_bytes()[:500])
    paths = list_images(tmp_path)
    bad = BadImages(paths, 0.5)
    indices = [b["index"] for b in _read(paths, bad, 0, 2)]
    assert bad.reasons == {str(broken): "cut short: PNG"}
    assert str(broken) in caplog.text
    assert 3 not in np.concatenate(indices)
    again = [b["index"] for b in _read(paths, BadImages(paths, 0.5), 0, 2)]
    np.testing.assert_array_equal(indices, again)  # the replacement is a function of seed and image
    bad.max_share = 0.01
    error = refusal(bad.check)
    assert error.field == "data.max_bad_share" and all(part in error.problem for part in ("1 of 16", "03.png"))
    with pytest.raises(RunFailed, match=r"03\.png"):
        bad.check(running=True)


@pytest.mark.parametrize("broken", [[0, 7, 8, 14, 15], pytest.param(list(range(12)), marks=pytest.mark.slow)])
def test_unreadable_images_do_not_move_the_others(ramps, tmp_path, broken):
    order = _batches(ramps, 0, 1)[0]["index"]
    for path in sorted(ramps.iterdir()):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    for place in broken:  # in the epoch: first, last, in a row
        (tmp_path / f"{order[place]:02d}.png").write_bytes(b"")
    paths = list_images(tmp_path)
    bad = BadImages(paths, 1.0)
    batches = _read(paths, bad, 0, 3)
    assert len(batches) == 3 and all(len(batch["index"]) == 16 for batch in batches)
    assert set(bad.reason_of) == {order[place] for place in broken}
    whole = _batches(ramps, 0, 3)
    for batch, full in zip(batches, whole, strict=True):
        kept = ~np.isin(full["index"], list(bad.reason_of))
        for name in full:
            np.testing.assert_array_equal(batch[name][kept], full[name][kept], err_msg=name)
        assert not np.isin(batch["index"], list(bad.reason_of)).any()


def test_run_ends_with_the_reason_if_all_images_vanish(tmp_path):
    paths = [str(tmp_path / f"{i}\n.png") for i in range(20)]
    with pytest.raises(RunFailed, match=r"no file") as error:
        _read(paths, BadImages(paths, 1.0), 0, 1)
    assert "\n" not in str(error.value)


def test_folder_of_broken_images_is_refused_before_the_run(tmp_path):
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
