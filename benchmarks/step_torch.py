"""Times the same training step in PyTorch, written the way MoCo's users write it."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.utils.checkpoint import checkpoint

LEVELS, STRIDES = ("P2", "P3", "P4", "P5"), (4, 8, 16, 32)
ALPHA, BETA = {"P2": 0.1, "P3": 0.4, "P4": 0.7, "P5": 1.0}, {"P4": 1.0, "P5": 1.0}
DIM, TEMPERATURE, MOMENTUM, KEYS_PER_IMAGE, CHUNK = 128, 0.2, 0.999, 4, 1024


class Encoder(nn.Module):
    """torchvision's ResNet with an image head and a patch head at each level that has a loss."""

    def __init__(self, architecture, roi_sizes):
        super().__init__()
        net = getattr(torchvision.models, architecture)(weights=None)
        self.stem = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool)
        self.stages = nn.ModuleList([net.layer1, net.layer2, net.layer3, net.layer4])
        widths = [w * (net.fc.in_features // 512) for w in (64, 128, 256, 512)]
        self.roi_sizes = dict(zip(LEVELS, roi_sizes, strict=True))
        self.image_heads = nn.ModuleDict(
            {
                n: nn.Sequential(nn.Linear(w, w), nn.ReLU(), nn.Linear(w, DIM))
                for n, w in zip(LEVELS, widths, strict=True)
            }
        )
        self.patch_heads = nn.ModuleDict(
            {
                n: nn.Sequential(nn.Conv2d(w, w, 1), nn.ReLU(), nn.Conv2d(w, DIM, 1))
                for n, w in zip(LEVELS, widths, strict=True)
                if n in BETA
            }
        )

    def forward(self, images, boxes, flipped):
        x, out = self.stem(images), {}
        for level, stride, stage in zip(LEVELS, STRIDES, self.stages, strict=True):
            x = stage(x)
            out["image", level] = F.normalize(self.image_heads[level](x.mean((2, 3))), dim=1)
            if level in BETA:
                patches = torchvision.ops.roi_align(
                    x, list(boxes[:, None]), self.roi_sizes[level], 1 / stride, sampling_ratio=1, aligned=True
                )
                patches = torch.where(flipped[:, None, None, None], patches.flip(3), patches)
                patches = F.normalize(self.patch_heads[level](patches), dim=1)
                out["patch", level] = patches.permute(0, 2, 3, 1).reshape(len(images), -1, DIM)  # (b, S * S, C)
        return out


def info_nce(queries, positives, queue):
    """Returns the mean cross entropy of the positive against the whole queue."""
    positive = (queries * positives).sum(1, keepdim=True)
    logits = torch.cat([positive, queries @ queue], 1) / TEMPERATURE
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long))


def chunked_info_nce(queries, positives, queue):
    """Returns the same loss from a chunk of queries at a time; the gradient computes the logits again."""
    total = 0.0
    for q, p in zip(queries.split(CHUNK), positives.split(CHUNK), strict=True):
        total = total + checkpoint(info_nce, q, p, queue, use_reentrant=False) * len(q)
    return total / len(queries)


LOSSES = {"full": info_nce, "chunked": chunked_info_nce}


class Step:
    """Holds both encoders, the six queues and SGD of a training step."""

    def __init__(self, architecture, groups, bank, roi_sizes, channels_last, logits):
        torch.manual_seed(0)
        self.query, self.key = Encoder(architecture, roi_sizes), Encoder(architecture, roi_sizes)
        if channels_last:
            self.query, self.key = (e.to(memory_format=torch.channels_last) for e in (self.query, self.key))
        self.key.load_state_dict(self.query.state_dict())
        self.key.requires_grad_(False)
        self.weights = {("image", n): w for n, w in ALPHA.items()} | {("patch", n): w for n, w in BETA.items()}
        self.queues = {name: F.normalize(torch.randn(DIM, bank), dim=0) for name in self.weights}
        self.rows = dict.fromkeys(self.weights, 0)
        self.optimizer = torch.optim.SGD(self.query.parameters(), 0.03, momentum=0.9, weight_decay=1e-4)
        self.groups, self.loss = groups, LOSSES[logits]

    def __call__(self, view_1, view_2, boxes_1, boxes_2, flipped_1, flipped_2):
        count = len(view_1)
        with torch.no_grad():
            for q, k in zip(self.query.parameters(), self.key.parameters(), strict=True):
                k.mul_(MOMENTUM).add_(q, alpha=1 - MOMENTUM)
            order = torch.randperm(count)
            undo = order.argsort()
            shuffled = zip(*(x[order].chunk(self.groups) for x in (view_2, boxes_2, flipped_2)), strict=True)
            parts = [self.key(*group) for group in shuffled]
            keys = {name: torch.cat([p[name] for p in parts])[undo] for name in self.weights}
        self.optimizer.zero_grad()
        value = 0.0
        for rows in torch.arange(count).chunk(self.groups):
            queries = self.query(view_1[rows], boxes_1[rows], flipped_1[rows])
            loss = 0.0
            for name, weight in self.weights.items():
                q, k = queries[name].reshape(-1, DIM), keys[name][rows].reshape(-1, DIM)
                loss = loss + weight * self.loss(q, k, self.queues[name]) / self.groups
            loss.backward()
            value += loss.item()
        self.optimizer.step()
        self.enqueue(keys)
        return value

    @torch.no_grad()
    def enqueue(self, keys):
        for (kind, level), key in keys.items():
            if kind == "patch":
                cells = torch.randint(key.shape[1], (len(key), KEYS_PER_IMAGE))
                key = key.gather(1, cells[..., None].expand(-1, -1, DIM)).reshape(-1, DIM)
            queue, row = self.queues[kind, level], self.rows[kind, level]
            queue[:, row : row + len(key)] = key.T
            self.rows[kind, level] = (row + len(key)) % queue.shape[1]


def build(architecture, size, batch, groups, bank, roi_sizes, channels_last, logits):
    """Returns work: a step on a batch in memory."""
    step = Step(architecture, groups, bank, roi_sizes, channels_last, logits)
    random = np.random.default_rng(0)
    views = torch.from_numpy(random.standard_normal((2, batch, 3, size, size), dtype=np.float32))
    if channels_last:
        views = [v.contiguous(memory_format=torch.channels_last) for v in views]
    low, high = random.uniform(0, size / 3, (2, batch, 2)), random.uniform(size / 2, size, (2, batch, 2))
    boxes = torch.from_numpy(np.concatenate([low, high], -1).astype(np.float32))
    flipped = torch.from_numpy(random.random((2, batch)) < 0.5)

    def work():
        assert np.isfinite(step(*views, *boxes, *flipped))
        return batch

    work.facts = {"version": torch.__version__, "threads": torch.get_num_threads()}
    return work
