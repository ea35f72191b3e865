"""The files of packed shards: TFRecord shards, an index beside each, and the manifest. Imports no TensorFlow.

`SHARDS/` holds `shard-00000.tfrecord`, `shard-00000.index.npy`, …, `shards.json` and `bad_images.tsv`. A record is a
`tf.train.Example` with `image/encoded` and `image/filename`, so every reader of TFRecord can use the shards. The index
is a NumPy array of `ENTRY`, and lets any image be read without what lies before it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from pathlib import Path

import numpy as np

from dupr_tf.remote_path import RemotePath, as_path
from dupr_tf.whole_files import write_whole

MANIFEST = "shards.json"
PROGRESS = "pack.jsonl"  # of a pack that has not ended: its settings, then a line for each finished shard
FORMAT = "dupr_tf shards 1"
FRAME = 12, 4  # bytes a TFRecord has before (length and its checksum) and behind (checksum) its payload

ENTRY = np.dtype(
    [
        ("record", "<u8"),  # where the record begins in its shard
        ("start", "<u4"),  # from there to the encoded image
        ("length", "<u4"),  # of the encoded image
        ("crc32", "<u4"),  # of the encoded image, zlib's
    ]
)


class PackError(RuntimeError):
    """Packing cannot go on (a full disk); what is finished stays, and the same command goes on from there."""


@dataclasses.dataclass(frozen=True)
class Shard:
    """What the manifest says of a shard."""

    number: int
    images: int
    bytes: int
    sha256: str
    index_sha256: str
    bad: tuple[tuple[str, str], ...] = ()  # (name, reason) of the files that were left out; not in the manifest

    @property
    def file(self) -> str:
        return f"shard-{self.number:05d}.tfrecord"

    @property
    def index(self) -> str:
        return f"shard-{self.number:05d}.index.npy"


def is_shards(root: str | Path) -> bool:
    """Whether a folder is what `dupr-tf pack` wrote, or has begun to write."""
    root = as_path(root)
    return root.is_dir() and any((root / name).is_file() for name in (MANIFEST, PROGRESS))


def read_bytes(path: str | Path) -> bytes:
    """A whole file."""
    with open_file(path) as file:
        return file.read()


def open_file(path: str | Path):
    """A file of shards to read from, unbuffered. The one place where such files are opened."""
    path = as_path(path)
    return path.open("rb") if isinstance(path, RemotePath) else open(path, "rb", buffering=0)


def read_manifest(root: str | Path) -> tuple[dict, list[Shard]]:
    """The manifest of packed shards: its facts, and the shards in order.

    Raises:
        ValueError: there is none, packing has not ended, or it is damaged.
    """
    path = as_path(root) / MANIFEST
    if not path.is_file():
        if (as_path(root) / PROGRESS).is_file():
            raise ValueError(
                f"Expected finished shards in {root}, received a pack that has not ended. Fix: run it again"
            )
        raise ValueError(f"Expected {MANIFEST} in {root}, received none. Fix: --data a folder `dupr-tf pack` wrote")
    try:
        facts = json.loads(read_bytes(path))
        shards = [Shard(number, **entry) for number, entry in enumerate(facts["shards"])]
        whole = facts.pop("sha256") == _digest(facts) and facts["format"] == FORMAT
    except (ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise ValueError(f"Expected a manifest as `dupr-tf pack` writes it, received {path}, which is damaged. {_FIX}")
    return facts, shards


def write_manifest(root: Path, header: dict, shards: list[Shard]) -> None:
    """Writes `shards.json`: the header, what the shards hold, and a sha256 of all that."""
    entries = [
        {"images": s.images, "bytes": s.bytes, "sha256": s.sha256, "index_sha256": s.index_sha256} for s in shards
    ]
    facts = {**header, "images": sum(s.images for s in shards), "shards": entries}
    text = json.dumps({**facts, "sha256": _digest(facts)}, indent=1)
    write_whole(root / MANIFEST, text + "\n")


def read_entries(root: str | Path, shards: list[Shard]) -> np.ndarray:
    """(N,) `ENTRY` of every image, shard after shard: 20 bytes each.

    Raises:
        ValueError: an index or a shard is missing, or is not what the manifest says (a shard: of its size).
    """
    for shard in shards:  # before room is made for what a manifest says
        _check_count(as_path(root) / shard.index, shard.images)
    entries, first = np.empty(sum(s.images for s in shards), ENTRY), 0
    for shard in shards:
        entries[first : first + shard.images] = _read_index(as_path(root), shard)
        first += shard.images
    return entries


def _read_index(root: Path, shard: Shard) -> np.ndarray:
    _check_size(root / shard.file, shard.bytes)
    path = root / shard.index
    _check_count(path, shard.images)
    content = read_bytes(path)
    if hashlib.sha256(content).hexdigest() != shard.index_sha256:
        raise ValueError(f"Expected the index that was packed, received {path}, which is damaged. {_FIX}")
    try:
        entries = np.load(io.BytesIO(content), allow_pickle=False)
    except ValueError:
        entries = None
    if entries is None or entries.dtype != ENTRY or entries.shape != (shard.images,):
        raise ValueError(f"Expected an index as `dupr-tf pack` writes it, received {path}, which is none. {_FIX}")
    ends = entries["record"].astype(np.uint64) + entries["start"] + entries["length"]
    if len(ends) and ends.max() > shard.bytes:
        raise ValueError(
            f"Expected images within the {shard.bytes:,} bytes of a shard, received others in {path}. {_FIX}"
        )
    return entries


def _check_count(path: Path, images: int) -> None:
    if not path.is_file():
        raise ValueError(f"Expected {path}, received no such file. {_FIX}")
    size = path.stat().st_size
    if not 0 <= images * ENTRY.itemsize <= size:
        raise ValueError(f"Expected an index of {images:,} images in {path}, received {size:,} bytes. {_FIX}")


def _check_size(path: Path, size: int) -> None:
    received = f"{path.stat().st_size:,}" if path.is_file() else "no such file"
    if received != f"{size:,}":
        raise ValueError(f"Expected {path} to have {size:,} bytes, received {received}. {_FIX}")


def damaged_files(root: str | Path):
    """Compares every shard and index with its sha256; yields (shard number, what is wrong or None)."""
    for shard in read_manifest(root)[1]:
        try:
            _read_index(as_path(root), shard)
            path = as_path(root) / shard.file
            same = sha256_of(path) == shard.sha256
            yield (
                shard.number,
                None if same else f"Expected the shard that was packed, received {path}, damaged. {_FIX}",
            )
        except ValueError as error:
            yield shard.number, str(error)


_FIX = "Fix: copy it again, or remove it and run `dupr-tf pack` again as before: it writes what is missing"


def sha256_of(path: str | Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(facts: dict) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
