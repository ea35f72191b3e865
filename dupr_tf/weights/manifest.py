"""Reads and writes `manifest.json`, the sha256 of every file of a directory.

It is needed because neither safetensors nor HDF5 notices a flipped bit.
"""

import json
import os
import re
from pathlib import Path

from dupr_tf.errors import UserError
from dupr_tf.files import sha256_of
from dupr_tf.records import mapping, read_record, text

MANIFEST_FILE = "manifest.json"


def write_manifest(directory, facts=None):
    """Write `manifest.json`: `facts`, then `files: {relative path: sha256}` of every file in the directory."""
    directory = Path(directory)
    paths = sorted(path for path in directory.rglob("*") if path.is_file() and path.name != MANIFEST_FILE)
    files = {path.relative_to(directory).as_posix(): sha256_of(path) for path in paths}
    text = json.dumps({**(facts or {}), "files": files}, indent=2, ensure_ascii=False)
    (directory / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")


def read_manifest(directory):
    """Return the manifest of a directory, or None if it has none.

    Raises:
        UserError: if it exists but cannot be read.
    """
    path = Path(directory) / MANIFEST_FILE
    if not os.path.lexists(path):
        return None

    def schema(manifest):
        for digest in mapping(mapping(manifest).get("files", {})).values():
            text(digest)
        return manifest

    return read_record(path, schema, "Copy it again.")


def unlisted(directory):
    """Return the sorted names of the files in a directory that no export of this package wrote."""
    names = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if not path.is_dir()}
    try:
        manifest = read_manifest(directory) or {}
    except UserError:
        manifest = {}
    own = {MANIFEST_FILE, *manifest.get("files", {})} if manifest.get("written_by") == "dupr_tf" else set()
    return sorted(names - own)


def check_file(path):
    """Compare a file with the manifest in its directory, if there is one that lists it.

    A `manifest.json` that another program wrote is ignored.

    Raises:
        UserError: if the file differs from the manifest.
    """
    path = Path(path)
    manifest = path.parent / MANIFEST_FILE
    files = read_record(manifest, _own_files, "Copy it again.") if os.path.lexists(manifest) else {}
    expected = files.get(path.name)
    if expected is not None and sha256_of(path) != expected:
        raise UserError(
            None,
            f"{path} is damaged or was changed: its sha256 is not the one in {MANIFEST_FILE}.",
            f"Copy it again, or remove {MANIFEST_FILE} if you changed the file yourself.",
        )


def _own_files(manifest):
    """Return the files of a manifest, or {} if it is not one of `write_manifest`."""
    files = manifest.get("files") if isinstance(manifest, dict) else None
    digests = files.values() if isinstance(files, dict) else ()
    own = any(isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest) for digest in digests)
    return files if own else {}


def check_directory(directory):
    """Compare every file a directory's manifest lists.

    Raises:
        UserError: names the first file that is missing or different; also if there is no manifest.
    """
    manifest = read_manifest(directory)
    if manifest is None:
        raise UserError(None, f"{directory} has no {MANIFEST_FILE}.", "Export it again.")
    for name in manifest.get("files", {}):
        path = Path(directory) / name
        if not path.is_file() or sha256_of(path) != manifest["files"][name]:
            raise UserError(None, f"{path} is missing, damaged or changed.", "Copy the directory again.")
