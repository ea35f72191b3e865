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
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dupr_tf.errors import UserError
from dupr_tf.files import sha256_of, write_whole

MANIFEST = "shards.json"
PROGRESS = "pack.jsonl"  # of a pack that has not ended: its settings, then a line for each finished shard
FORMAT = "dupr_tf shards 1"
REPAIR = "Copy it again, or remove it and run the same `dupr-tf pack`, which writes what is missing."
FRAME = 12, 4  # bytes a TFRecord has before (length and its checksum) and behind (checksum) its payload

ENTRY = np.dtype(
    [
        ("record", "<u8"),  # where the record begins in its shard
        ("start", "<u4"),  # from there to the encoded image
        ("length", "<u4"),  # of the encoded image
        ("crc32", "<u4"),  # of the encoded image, zlib's
    ]
)


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
    root = Path(root)
    return root.is_dir() and any((root / name).is_file() for name in (MANIFEST, PROGRESS))


def read_bytes(path: str | Path) -> bytes:
    """A whole file."""
    with open_file(path) as file:
        return file.read()


def open_file(path: str | Path):
    """A file of shards to read from, unbuffered. The one place where such files are opened."""
    return open(path, "rb", buffering=0)


def read_manifest(root: str | Path) -> tuple[dict, list[Shard]]:
    """The manifest of packed shards: its facts, and the shards in order.

    Raises:
        UserError: there is none, packing has not ended, or it is damaged.
    """
    path = Path(root) / MANIFEST
    if not path.is_file():
        if (Path(root) / PROGRESS).is_file():
            raise UserError(None, f"The pack of {root} has not ended.", "Run it again.")
        raise UserError(None, f"{root} has no {MANIFEST}.", "Pass a folder that `dupr-tf pack` wrote.")
    try:
        facts = json.loads(read_bytes(path))
        shards = [Shard(number, **entry) for number, entry in enumerate(facts["shards"])]
        whole = facts.pop("sha256") == _digest(facts) and facts["format"] == FORMAT
    except (ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise UserError(None, f"{path} is damaged.", REPAIR)
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
        UserError: an index or a shard is missing, or is not what the manifest says (a shard: of its size).
    """
    for shard in shards:  # before room is made for what a manifest says
        _check_count(Path(root) / shard.index, shard.images)
    entries, first = np.empty(sum(s.images for s in shards), ENTRY), 0
    for shard in shards:
        entries[first : first + shard.images] = _read_index(Path(root), shard)
        first += shard.images
    return entries


def _read_index(root: Path, shard: Shard) -> np.ndarray:
    _check_size(root / shard.file, shard.bytes)
    path = root / shard.index
    _check_count(path, shard.images)
    content = read_bytes(path)
    if hashlib.sha256(content).hexdigest() != shard.index_sha256:
        raise UserError(None, f"{path} is damaged: its sha256 is another.", REPAIR)
    try:
        entries = np.load(io.BytesIO(content), allow_pickle=False)
    except ValueError:
        entries = None
    if entries is None or entries.dtype != ENTRY or entries.shape != (shard.images,):
        raise UserError(None, f"{path} is no index of {shard.images:,} images.", REPAIR)
    ends = entries["record"].astype(np.uint64) + entries["start"] + entries["length"]
    if len(ends) and ends.max() > shard.bytes:
        raise UserError(None, f"{path} has images beyond the {shard.bytes:,} bytes of its shard.", REPAIR)
    return entries


def _check_count(path: Path, images: int) -> None:
    if not path.is_file():
        raise UserError(None, f"There is no {path}.", REPAIR)
    size = path.stat().st_size
    if not 0 <= images * ENTRY.itemsize <= size:
        raise UserError(None, f"{path} has {size:,} bytes, too few for {images:,} images.", REPAIR)


def _check_size(path: Path, size: int) -> None:
    if not path.is_file():
        raise UserError(None, f"There is no {path}.", REPAIR)
    if path.stat().st_size != size:
        raise UserError(None, f"{path} has {path.stat().st_size:,} bytes, where {size:,} were packed.", REPAIR)


def damaged_files(root: str | Path) -> Iterator[tuple[int, UserError | None]]:
    """Compares every shard and index with its sha256; yields the number of each shard and what is wrong with it."""
    for shard in read_manifest(root)[1]:
        try:
            _read_index(Path(root), shard)
            path = Path(root) / shard.file
            same = sha256_of(path) == shard.sha256
            yield shard.number, None if same else UserError(None, f"{path} is damaged: its sha256 is another.", REPAIR)
        except UserError as error:
            yield shard.number, error


def _digest(facts: dict) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
