"""InfoNCE against a memory bank, forward and backward: streamed in blocks, and with all logits at once."""

from benchmarks.contest import Case, Contestant

QUERIES, DIM = 3136, 128
FEWER = 784  # fewer queries where the bank is sixteen times as large


def cases(_data):
    return [
        Case(
            "loss: 3,136 queries, K 65,536",
            "queries/s",
            (
                _ours(QUERIES, 65536),
                Contestant(
                    "TensorFlow, product and cross entropy", "benchmarks.loss_ours:naive", _size(QUERIES, 65536)
                ),
                Contestant(
                    "PyTorch, product and cross entropy",
                    "benchmarks.loss_torch:build",
                    {**_size(QUERIES, 65536), "logits": "full"},
                    needs=("torch", "torchvision"),
                    heat="torch",
                ),
                Contestant(
                    "PyTorch, the same in chunks of queries",
                    "benchmarks.loss_torch:build",
                    {**_size(QUERIES, 65536), "logits": "chunked"},
                    needs=("torch", "torchvision"),
                    heat="torch",
                ),
            ),
        ),
        *(Case(f"loss: {FEWER} queries, K {keys:,}", "queries/s", (_ours(FEWER, keys),)) for keys in (65536, 1 << 20)),
    ]


def _ours(queries, keys):
    return Contestant("dupr_tf", "benchmarks.loss_ours:build", _size(queries, keys))


def _size(queries, keys):
    return {"queries": queries, "keys": keys, "dim": DIM}
