"""Tests of duplicates: equal bytes, near hashes, two sets, large buckets, the command and folders of frames."""

import io

import numpy as np
import pytest
from PIL import Image

from dupr_tf.cli import main
from dupr_tf.data.images import duplicates
from dupr_tf.data.images.duplicates import (
    collect_hashes,
    find_duplicates,
    hash_images,
    match_hashes,
    near_identical_folders,
    phash,
)
from dupr_tf.data.images.listing import list_images
from dupr_tf.data.images.source import Files

SIZE = (320, 240)


def photo(seed, size=SIZE, shift=0):
    """Returns a picture with structure at several scales, moved to the left by `shift` px."""
    rng = np.random.default_rng(seed)
    layers = [rng.integers(0, 256, (n, n + 2, 3), np.uint8) for n in (4, 9)]
    big = [np.asarray(Image.fromarray(a).resize((400, 240), Image.Resampling.BICUBIC)) for a in layers]
    mixed = np.mean(big, 0).astype(np.uint8)[:, shift : shift + 320]
    return Image.fromarray(mixed).resize(size)


def save(image, path, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def random_hashes(count, seed=0):
    return np.random.default_rng(seed).integers(0, 1 << 64, count, dtype=np.uint64)


def flipped(value, *bits):
    for bit in bits:
        value = value ^ np.uint64(1 << bit)
    return value


def brute_force(pool, against, distance):
    """Returns each hash's least distance to the other set, or to earlier hashes of its set; 255 above the threshold."""
    least = []
    for i, one in enumerate(pool):
        others = pool[:i] if against is None else against
        bits = np.bitwise_count(others ^ one)
        least.append(int(bits.min()) if len(bits) and bits.min() <= distance else 255)
    return least


@pytest.mark.parametrize("distance", [0, 2, 3])
@pytest.mark.parametrize("two_sets", [False, True])
def test_every_pair_within_the_threshold_is_listed(distance, two_sets):
    rng, pool, other = np.random.default_rng(1), random_hashes(400), random_hashes(300, 1)
    for i in range(0, 300, 3):
        source = other[i] if two_sets else pool[i + 100]
        pool[i] = flipped(source, *rng.choice(64, int(rng.integers(6)), replace=False).tolist())
    against = other if two_sets else None
    matches = match_hashes(pool, against, distance)
    assert matches.distance.tolist() == brute_force(pool, against, distance)
    rows = np.flatnonzero(matches.of >= 0)
    found = (other if two_sets else pool)[matches.of[rows]]
    np.testing.assert_array_equal(np.bitwise_count(pool[rows] ^ found), matches.distance[rows])
    assert matches.capped == 0 and (two_sets or (matches.of[rows] < rows).all())


def test_examples_show_pairs_above_the_threshold():
    pool = random_hashes(50)
    pool[7] = flipped(pool[30], 1, 2, 3, 4, 5)  # three bands stay equal
    matches = match_hashes(pool)
    assert matches.examples == {5: (30, 7)} and (matches.of == -1).all()


def test_equal_hashes_need_no_pairs():
    pool = np.full(100_000, 12345, np.uint64)
    matches = match_hashes(pool)
    assert (matches.of[1:] == 0).all() and matches.of[0] == -1 and matches.capped == 0


def test_large_bucket_is_capped_and_counted(monkeypatch):
    monkeypatch.setattr(duplicates, "MAX_BUCKET", 10)
    pool = (random_hashes(200) & ~np.uint64(0xFFFF)) | np.uint64(9)
    matches = match_hashes(pool)
    assert matches.capped == 189
    pool[3] = pool[3] & ~np.uint64(0xFFFF)
    assert match_hashes(pool[:12]).capped == 0


def test_results_do_not_depend_on_the_chunks(monkeypatch):
    pool = random_hashes(3000) & np.uint64(0xFF0FFF0FFF0FFF0F)
    pool[::5] = pool[1::5] ^ np.uint64(1)
    whole = match_hashes(pool)
    monkeypatch.setattr(duplicates, "CHUNK", 7)
    parts = match_hashes(pool)
    np.testing.assert_array_equal(parts.distance, whole.distance)
    assert (whole.of >= 0).sum() >= 600


def test_near_copies_differ_in_few_bits_and_others_in_many():
    hashes = [phash(np.asarray(photo(seed))) for seed in range(8)]
    assert min((a ^ b).bit_count() for i, a in enumerate(hashes) for b in hashes[:i]) >= 10
    for seed in range(8):
        file = io.BytesIO()
        photo(seed, (160, 120)).save(file, "JPEG", quality=50)
        assert (hashes[seed] ^ phash(np.asarray(Image.open(file)))).bit_count() <= 3


@pytest.fixture
def folder(tmp_path):
    """Makes six photos, a copy of the first, a smaller JPEG of the second, and a file that is no photo."""
    for seed in range(6):
        save(photo(seed), tmp_path / "pool" / f"{seed}.png")
    save(photo(0), tmp_path / "pool" / "copy.png")
    save(photo(1, (200, 150)), tmp_path / "pool" / "small.jpg", quality=60)
    (tmp_path / "pool" / "text.jpg").write_text("text")
    return tmp_path / "pool"


def hashes_of(folder):
    return collect_hashes(hash_images(Files(list_images(folder)), 2))


def test_equal_files_and_near_copies_are_listed_separately(folder):
    hashes = hashes_of(folder)
    matches = find_duplicates(hashes)
    assert [number for number, _ in hashes.unreadable] == [8] and hashes.index.tolist() == list(range(8))
    assert matches.of.tolist() == [-1] * 6 + [0, 1]
    assert matches.exact.tolist() == [False] * 6 + [True, False]


def test_equal_bytes_take_precedence_over_an_equal_hash(tmp_path):
    save(photo(0), tmp_path / "pool" / "0.png")
    save(photo(0), tmp_path / "test" / "0.png", compress_level=1)
    save(photo(0), tmp_path / "test" / "1.png")
    matches = find_duplicates(hashes_of(tmp_path / "pool"), hashes_of(tmp_path / "test"))
    assert matches.of.tolist() == [1] and matches.exact.tolist() == [True]


def test_command_lists_duplicates(folder, tmp_path, capsys):
    assert main(["duplicates", str(folder), "--output", str(tmp_path / "out.tsv")]) == 0
    lines = [line.split("\t") for line in (tmp_path / "out.tsv").read_text().splitlines()[1:]]
    assert [line[0] for line in lines] == [str(folder / "copy.png"), str(folder / "small.jpg")]
    assert [line[2] for line in lines] == [str(folder / "0.png"), str(folder / "1.png")]
    printed = capsys.readouterr().out
    assert str(folder / "copy.png") in printed and str(folder / "text.jpg") in printed and "2 of 8" in printed


def test_command_compares_two_folders(folder, tmp_path, capsys):
    save(photo(3, (240, 180)), tmp_path / "test" / "x.png")
    assert main(["duplicates", str(folder), str(tmp_path / "test")]) == 0
    assert "1 of 8" in capsys.readouterr().out
    assert main(["duplicates", str(folder), "--distance", "4"]) == 2


def test_folder_of_video_frames_gives_a_warning(tmp_path, capsys):
    for i in range(12):
        save(photo(0, shift=i), tmp_path / "video" / f"{i:02}.jpg", quality=90)
        save(photo(i), tmp_path / "photos" / f"{i:02}.jpg", quality=90)
    ((found, share),) = near_identical_folders(list_images(tmp_path))
    assert found == str(tmp_path / "video") and share > 0.8
    assert main(["scan", str(tmp_path)]) == 0
    assert found in capsys.readouterr().err
    assert near_identical_folders(list_images(tmp_path / "video")[:9]) == []


def test_command_replaces_no_other_file(folder, tmp_path, capsys):
    pixels = (folder / "0.png").read_bytes()
    for output in (folder / "0.png", folder):
        assert main(["duplicates", str(folder), "--output", str(output)]) == 2
        printed = capsys.readouterr()
        assert "--output" in printed.err and not printed.out  # before any image is hashed
    assert (folder / "0.png").read_bytes() == pixels
    for _ in range(2):  # a list may be replaced
        assert main(["duplicates", str(folder), "--output", str(tmp_path / "out.tsv")]) == 0
