"""`dupr-tf scan`: its summary, its exit code, and the file it resumes from."""

import numpy as np
import pytest
from PIL import Image

from dupr_tf.cli import main
from dupr_tf.data.images import scan as scan_module
from dupr_tf.data.images.listing import list_images
from dupr_tf.data.images.scan import scan_images
from dupr_tf.text import escape
from tests.data.bad_images import encoded, picture, png_bomb, write_bad_images


def test_scan_gives_the_outcome_of_each_file(tmp_path):
    expected = write_bad_images(tmp_path)
    looks = list(scan_images(list_images(tmp_path), 10**8, workers=2))
    assert {look.name: look.group for look in looks} == {escape(path): group for path, group in expected.items()}
    assert [look.name for look in looks] == [escape(path) for path in list_images(tmp_path)]


def test_each_file_is_read_and_decoded_once(folder, monkeypatch):
    calls = []
    for name in ("read_file", "decode"):
        original = getattr(scan_module, name)
        monkeypatch.setattr(
            scan_module, name, lambda *a, n=name, original=original, **k: calls.append(n) or original(*a, **k)
        )
    assert len(list(scan_images(list_images(folder), 10**8, workers=2))) == 6
    assert sorted(calls) == ["decode"] * 6 + ["read_file"] * 6


def scanned(capsys, *arguments):
    code = main(["scan", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out.splitlines(), captured.err.splitlines()


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(6):
        (folder / f"{i}.jpg").write_bytes(encoded(picture(seed=i)))
    return folder


def test_scan_summary_and_exit_code_are_those_of_pretrain(folder, capsys):
    code, lines, _ = scanned(capsys, folder)
    assert code == 0 and lines[-1] == "0 of 6 images would be skipped (0.00%)"
    (folder / "2.jpg").write_bytes(b"")
    code, lines, _ = scanned(capsys, folder)
    assert code == 1 and lines[-1] == "1 of 6 images would be skipped (16.67%)"
    assert [line.split()[:3] for line in lines[1:-1]] == [["used", "JPEG", "5"], ["skipped", "empty", "1"]]
    assert scanned(capsys, folder, "--max-bad-share", "0.2")[0] == 0
    assert scanned(capsys, folder, "--max-pixels", "100")[1][-1] == "6 of 6 images would be skipped (100.00%)"


def test_scan_resumes_and_reads_changed_files_again(folder, tmp_path, capsys, monkeypatch):
    looked = []
    original = scan_module.read_file
    monkeypatch.setattr(scan_module, "read_file", lambda path: looked.append(path[-5]) or original(path))
    output = tmp_path / "out" / "scan.tsv"
    assert scanned(capsys, folder, "--output", output)[0] == 0
    whole = output.read_text()
    assert sorted(looked) == list("012345")
    output.write_text(whole[: whole.rindex("\t")])  # killed while writing the last line
    last = whole.splitlines()[-1].split("\t")[0][-5]
    looked.clear()
    scanned(capsys, folder, "--output", output)
    assert looked == [last] and sorted(output.read_text().splitlines()) == sorted(whole.splitlines())
    (folder / "3.jpg").write_bytes(b"changed")
    (folder / "4.jpg").unlink()
    looked.clear()
    code, lines, _ = scanned(capsys, folder, "--output", output)
    assert looked == ["3"] and code == 1 and lines[-1] == "1 of 5 images would be skipped (20.00%)"
    assert output.read_text().startswith(whole)  # the file is only appended to


@pytest.mark.parametrize("content", ["my notes\n", "# dupr-tf scan, max_pixels 5\n"])
def test_scan_never_overwrites_a_foreign_file(folder, tmp_path, capsys, content):
    (tmp_path / "notes.txt").write_text(content)
    code, _, errors = scanned(capsys, folder, "--output", tmp_path / "notes.txt")
    assert code == 2 and len(errors) == 1 and "--output" in errors[0]
    assert (tmp_path / "notes.txt").read_text() == content


@pytest.mark.parametrize("arguments", [["nowhere"], [".", "--workers", "0"], [".", "--max-pixels", "0"]])
def test_wrong_scan_arguments_give_one_line(tmp_path, capsys, arguments):
    code, _, errors = scanned(capsys, tmp_path / arguments[0], *arguments[1:])
    assert code == 2 and len(errors) == 1


def test_scan_prints_full_paths_and_omitted_files(tmp_path, capsys, caplog):
    folder = tmp_path / ("long name " * 12) / "photos"
    folder.mkdir(parents=True)
    (folder / "1.jpg").write_bytes(encoded(picture()))
    (folder / "2.jpg").write_bytes(png_bomb(14_000))
    (folder / "notes.docx").write_bytes(b"x")
    with caplog.at_level("INFO"):
        code, lines, errors = scanned(capsys, folder)
    assert code == 1 and any(str(folder / "1.jpg") in line for line in lines)
    assert any("--max-pixels to 196000000" in line for line in errors)
    assert any(str(folder / "notes.docx") in message for message in caplog.messages)


def test_scan_names_deep_images_that_depth_auto_improves(tmp_path, capsys):
    dark = np.linspace(100, 5000, 48 * 36).reshape(36, 48).astype(np.uint16)
    Image.fromarray(dark).save(tmp_path / "dark.png")
    Image.fromarray(dark * 12).save(tmp_path / "wide.png")
    _, lines, _ = scanned(capsys, tmp_path, "--output", tmp_path / "scan.tsv")
    gain = [line for line in lines if "data.depth auto" in line]
    assert len(gain) == 1 and str(tmp_path / "dark.png") in gain[0]
    assert scanned(capsys, tmp_path, "--output", tmp_path / "scan.tsv", "--depth", "auto")[0] == 2
    assert not any("data.depth auto" in line for line in scanned(capsys, tmp_path, "--depth", "auto")[1])


def test_scan_reads_the_files_of_damaged_lines_again(folder, tmp_path, capsys):
    output = tmp_path / "scan.tsv"
    scanned(capsys, folder, "--output", output)
    head, columns, *lines = output.read_text().splitlines()
    output.write_text("\n".join([head, columns, lines[0] + "\tmore", "text", *lines[2:]]) + "\n")
    _, printed, errors = scanned(capsys, folder, "--output", output)
    assert not errors and "of 6 images" in printed[-1]
    assert sorted(set(output.read_text().splitlines()) & set(lines)) == sorted(lines)
