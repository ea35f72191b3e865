"""Reads packed shards, and the files they were packed from: the same images in the same shuffled order.

On both sides the files are in the page cache, which favours single files. From a disk, an open shard costs one access
an image, and a file costs several.
"""

from benchmarks.contest import Case, Contestant

FILES = 2000


def cases(data):
    options = {"data": data, "files": FILES}
    return [
        Case(
            "pack: 2,000 JPEGs of 500 px, bytes read in shuffled order",
            "images/s",
            (
                Contestant("shards", "benchmarks.pack_ours:shards", options),
                Contestant("files", "benchmarks.pack_ours:files", options),
            ),
            cores=1,
        )
    ]
