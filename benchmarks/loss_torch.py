"""Times the usual InfoNCE in PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from benchmarks.step_torch import LOSSES


def build(queries, keys, dim, logits):
    """Returns work: forward and backward of the loss that `step_torch` uses."""
    torch.manual_seed(0)
    q, p = (F.normalize(torch.randn(queries, dim), dim=1).requires_grad_() for _ in range(2))
    bank = F.normalize(torch.randn(dim, keys), dim=0)

    def work():
        q.grad = p.grad = None
        LOSSES[logits](q, p, bank).backward()
        return queries

    work.facts = {"version": torch.__version__}
    return work
