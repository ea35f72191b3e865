"""Reading packed shards and reading the files they were packed from: the same images in the same shuffled order.

Files are in the page cache on both sides, which favours files: from a disk, an open shard costs one access an image
and a file several.
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
