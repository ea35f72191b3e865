"""Reads and writes the text files of packed shards: a manifest, and a sidecar for each shard. Needs no ArrayRecord.

`SHARDS/` holds `shard-00000.array_record`, `shard-00000.jsonl`, …, `shards.json` and `bad_images.tsv`. A record is the
bytes of an image. A sidecar has a line of facts about its shard, then a line `[name, bytes, CRC-32]` for each image.
The first line of manifest and sidecar is sealed: it holds the sha256 of itself and of all lines below it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from dupr_tf.errors import UserError
from dupr_tf.files import open_file, read_bounded, sha256_of
from dupr_tf.records import MISTAKES, digest, mapping, parse_json, whole

MANIFEST = "shards.json"
PROGRESS = "pack.json"  # settings of a pack that has not ended; the lock of the folder
FORMAT = "dupr_tf shards 2"
OLD_FORMAT = b'"dupr_tf shards 1"'  # TFRecord
MAX_TEXT = 1 << 30  # bytes of a manifest or sidecar
MAX_IMAGES = 10**6  # of a shard
MAX_SHARD_BYTES = 1 << 50
REPAIR = "Copy it again, or remove it and run the same `dupr-tf pack`, which writes what is missing."


@dataclasses.dataclass(frozen=True)
class Shard:
    """Holds a shard's entry of the manifest: records, bytes and sha256 of its ArrayRecord file, seal of its sidecar."""

    number: int
    images: int = 0
    bytes: int = 0
    sha256: str = ""
    seal: str = ""

    def __post_init__(self):
        whole(self.images, MAX_IMAGES)
        whole(self.bytes, MAX_SHARD_BYTES)
        if (self.images, self.sha256, self.seal) != (0, "", ""):
            digest(self.sha256), digest(self.seal)

    @property
    def facts(self) -> dict:
        """Returns the shard's entry in the manifest, which numbers shards by their order."""
        return {"images": self.images, "bytes": self.bytes, "sha256": self.sha256, "seal": self.seal}

    @property
    def file(self) -> str:
        return f"shard-{self.number:05d}.array_record"

    @property
    def sidecar(self) -> str:
        return f"shard-{self.number:05d}.jsonl"


def is_shards(root: str | Path) -> bool:
    """Returns whether `dupr-tf pack` wrote this folder, completely or in part."""
    return any((Path(root) / name).is_file() for name in (MANIFEST, PROGRESS))


def seal(facts: dict, lines: bytes = b"") -> tuple[bytes, str]:
    """Returns a sealed text and its seal. The text has the facts with their `seal` on a line, then the lines."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode() + b"\n" + lines).hexdigest()
    return json.dumps({**facts, "seal": digest}).encode() + b"\n" + lines, digest


def read_sealed(path: Path) -> tuple[dict, str, bytes]:
    """Reads (facts, seal, lines) of a sealed text.

    Raises:
        ValueError: the text is damaged.
        OSError: the file cannot be read.
    """
    first, _, lines = read_bounded(path, MAX_TEXT).partition(b"\n")
    try:
        facts = mapping(parse_json(first))
        written = facts.pop("seal")
    except KeyError as error:
        raise ValueError("it has no seal") from error
    if written != seal(facts, lines)[1]:
        raise ValueError("its seal does not match")
    return facts, written, lines


def read_manifest(root: str | Path) -> tuple[dict, list[Shard]]:
    """Reads the manifest of packed shards: its facts, and the shards in order.

    Raises:
        UserError: the manifest is missing, damaged or of an older format, or packing has not ended.
    """
    path = Path(root) / MANIFEST
    if (Path(root) / PROGRESS).is_file() and not path.is_file():
        raise UserError(None, f"The pack of {root} has not ended.", "Run it again.")
    if not path.is_file():
        raise UserError(None, f"{root} has no {MANIFEST}.", "Pass a folder that `dupr-tf pack` wrote.")
    with open_file(path) as file:
        old = OLD_FORMAT in file.read(1000)
    if old:
        problem = f"{root} holds TFRecord shards of an older version."
        raise UserError(None, problem, "Pack the images again, into an empty folder.")
    try:
        facts, _, _ = read_sealed(path)
        if facts["format"] != FORMAT:
            raise ValueError(f"the format is {facts['format']}")
        return facts, [Shard(number, **entry) for number, entry in enumerate(facts["shards"])]
    except MISTAKES:
        raise UserError(None, f"{path} is damaged.", REPAIR) from None


def read_sidecar(root: str | Path, shard: Shard) -> list[bytes]:
    """Returns the lines of a shard's sidecar, one for each image. `name_in` reads a line.

    Raises:
        UserError: the sidecar is missing, damaged or belongs to another shard, or the shard is missing or incomplete.
    """
    path = Path(root) / shard.sidecar
    try:
        _, written, lines = read_sealed(path)
        if written != shard.seal or lines.count(b"\n") != shard.images:
            raise ValueError(f"it does not belong to {MANIFEST}")
        path = Path(root) / shard.file
        if path.stat().st_size != shard.bytes:
            raise ValueError(f"it does not have the {shard.bytes:,} bytes that were packed")
    except FileNotFoundError:
        raise UserError(None, f"There is no {path}.", REPAIR) from None
    except ValueError as error:
        raise UserError(None, f"{path} is damaged: {error}.", REPAIR) from None
    return lines.split(b"\n")[:-1]


def name_in(line: bytes) -> str:
    """Returns the name in a line of a sidecar. It checks the type, because a seal does not protect from forgery."""
    try:
        name = json.loads(line)[0]
    except (ValueError, TypeError, LookupError, RecursionError):
        name = None
    if not isinstance(name, str):
        raise UserError(None, f"{line[:100]!r} in a sidecar names no image.", "Pack the images again.")
    return name


def list_names(root: str | Path) -> Iterator[str]:
    """Yields the name of each packed image, in order. One sidecar at a time is held in memory."""
    for shard in read_manifest(root)[1]:
        yield from map(name_in, read_sidecar(root, shard))


def find_damage(root: str | Path) -> Iterator[UserError | None]:
    """Yields the damage of each shard or its sidecar, or None. Reads every byte."""
    for shard in read_manifest(root)[1]:
        try:
            read_sidecar(root, shard)
            path = Path(root) / shard.file
            same = sha256_of(path) == shard.sha256
            yield None if same else UserError(None, f"{path} is damaged: its sha256 does not match.", REPAIR)
        except UserError as error:
            yield error
