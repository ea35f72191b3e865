"""Tests that archives that declare more than they hold are refused before they use memory. Imports no TensorFlow."""

import io
import os
import resource
import struct
import zipfile

import h5py
import numpy as np
import pytest

from dupr_tf.weights.archives import check_archive
from dupr_tf.weights.paths import weights_file
from dupr_tf.weights.saved_detectors import read_saved
from dupr_tf.weights.torch_io import read_safetensors
from tests.refusals import refusal

GIB = 1 << 30


def write_archive(path, name, content, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr(name, content)
    return path


def header_of(shape, dtype="<f4") -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue()


@pytest.fixture
def little_memory():
    """Allows 1 GiB of address space in addition to what is in use."""
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + GIB, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


def test_zip_bomb_is_refused_without_reading(tmp_path, little_memory):
    path = tmp_path / "bomb.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("config.json", "w") as file:
        for _ in range(1200):
            file.write(bytes(1 << 20))
    assert path.stat().st_size < 2 << 20
    assert "1,258,291,200" in refusal(check_archive, path).problem
    refusal(read_saved, path)


def test_large_description_is_refused(tmp_path):
    content = os.urandom(17 << 20)
    assert "config.json" in refusal(check_archive, write_archive(tmp_path / "a.keras", "config.json", content)).problem


@pytest.mark.parametrize("shape", [(11 * GIB // 4,), (2**62, 4), (2**64 - 100 + 60,), (2**32, 2**32), (1,)])
def test_array_that_declares_more_than_it_holds_is_refused(tmp_path, shape, little_memory):
    path = write_archive(tmp_path / "a.npz", "conv1.weight.npy", header_of(shape) + bytes(2000))
    assert "conv1.weight.npy" in refusal(check_archive, path).problem


def test_weights_without_storage_are_refused(tmp_path):
    file = io.BytesIO()
    with h5py.File(file, "w") as content:
        content.create_dataset("layers/dense/vars/0", (11 * GIB // 4,), "f4", chunks=(1 << 20,))  # no chunk is written
    assert len(file.getvalue()) < 1 << 20
    path = write_archive(tmp_path / "a.keras", "model.weights.h5", file.getvalue())
    assert "declares weights of 11,811,160,064" in refusal(check_archive, path).problem


def test_valid_archives_are_accepted(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros((1000, 1000)), b=np.zeros((), np.float16), c=np.zeros((0, 3)))
    check_archive(tmp_path / "a.npz")
    file = io.BytesIO()
    with h5py.File(file, "w") as content:
        content["a"] = np.zeros((100, 100))
        content["b"] = "text"
    check_archive(write_archive(tmp_path / "a.keras", "model.weights.h5", file.getvalue()))


@pytest.mark.parametrize("content", [b"", b"PK\x05\x06" + bytes(18), b"\x00" * 100, b"PK\x03\x04" + b"\xff" * 60])
def test_odd_archive_gives_one_line_or_is_empty(tmp_path, content):
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    if content.startswith(b"PK\x05\x06"):
        check_archive(path)  # an archive without entries
    else:
        refusal(check_archive, path)


def test_pipes_are_refused_without_waiting(tmp_path):
    for ending in (".keras", ".npz", ".safetensors", ".pth"):
        os.mkfifo(tmp_path / f"a{ending}")
        refusal(weights_file, tmp_path / f"a{ending}")
    refusal(check_archive, tmp_path / "a.npz")


@pytest.mark.parametrize("length", [2**64 - 1, 2**63, 2**64 - 100 + 60, 10**9, 0])
def test_header_length_at_the_edge_is_refused(tmp_path, length):
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", length) + b"{}" + bytes(100))
    refusal(read_safetensors, tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "shape, offsets",
    [
        ("[2, 2]", "[0, 18446744073709551615]"),
        ("[18446744073709551615, 2]", "[0, 16]"),
        ("[4611686018427387904, 4]", "[0, 0]"),
        ("[4]", "[18446744073709551576, 16]"),
        ("[4]", "[16, 0]"),
        ("[-4]", "[0, 16]"),
        ("[1e999]", "[0, 16]"),
    ],
)
def test_safetensors_numbers_at_the_edge_are_refused(tmp_path, shape, offsets, little_memory):
    header = f'{{"conv1.weight":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}'.encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    refusal(read_safetensors, tmp_path / "a.safetensors")
