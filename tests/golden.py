"""A whole step of DUPR in float64 NumPy with a backward pass by hand: no TensorFlow, no automatic gradient.

It is written from the paper's equations 1–6, MoCo's algorithm and the definitions of convolution, batch norm and
RoIAlign, not from `dupr_tf`. The backbone has five stages (stem, P2..P5), each a 3x3 convolution of stride 2, batch
norm and ReLU.

Weights are a flat dictionary: `P3/kernel`, `P3/gamma`, `P3/beta` for a stage, and `image_P3/kernel_1`, `bias_1`,
`kernel_2`, `bias_2` for a head. Arrays are NHWC. Boxes are `(y1, x1, y2, x2)` in pixels of the view as seen. A
function's second result is the input of its `_backward`. `d_x` is the derivative of the loss with respect to x.
"""

import dataclasses
import math

import numpy as np

STAGES = ("stem", "P2", "P3", "P4", "P5")
STRIDES = {"P2": 4, "P3": 8, "P4": 16, "P5": 32}
EPSILON = 1e-5  # epsilon of batch norm
MOVING_MOMENTUM = 0.9  # momentum of batch norm's moving statistics, in Keras' convention
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


# --- layers ---------------------------------------------------------------------------------------


def conv(x, kernel):
    """Convolves 3x3 at stride 2 with one pixel of zeros around.

    (N, H, W, Cin) becomes (N, H/2, W/2, Cout), for even H and W.
    """
    _, height, width, _ = x.shape
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    taps = {(a, b): padded[:, a : a + height : 2, b : b + width : 2] for a in range(3) for b in range(3)}
    return sum(tap @ kernel[place] for place, tap in taps.items()), taps


def conv_backward(d_out, taps, kernel):
    """Returns d_x, d_kernel."""
    batch, height, width, _ = d_out.shape
    d_kernel = np.zeros_like(kernel)
    d_padded = np.zeros((batch, 2 * height + 2, 2 * width + 2, kernel.shape[2]))
    for (a, b), tap in taps.items():
        d_kernel[a, b] = np.tensordot(tap, d_out, axes=((0, 1, 2), (0, 1, 2)))
        d_padded[:, a : a + 2 * height : 2, b : b + 2 * width : 2] += d_out @ kernel[a, b].T
    return d_padded[:, 1:-1, 1:-1], d_kernel


def batch_norm(x, gamma, beta):
    """Uses batch statistics for each channel: the biased variance normalises, the unbiased one is remembered."""
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    deviation = np.sqrt(variance + EPSILON)
    unit = (x - mean) / deviation
    return gamma * unit + beta, (unit, deviation, mean, x.var((0, 1, 2), ddof=1))


def batch_norm_backward(d_out, saved, gamma):
    """Returns d_x, d_gamma, d_beta. The mean and the deviation depend on x too."""
    unit, deviation, _, _ = saved
    d_unit = d_out * gamma
    along = (d_unit * unit).mean((0, 1, 2))
    d_x = (d_unit - d_unit.mean((0, 1, 2)) - unit * along) / deviation
    return d_x, (d_out * unit).sum((0, 1, 2)), d_out.sum((0, 1, 2))


def backbone(weights, images):
    """Returns {stage: features} for all five stages."""
    features, saved, x = {}, {}, images
    for stage in STAGES:
        mixed, taps = conv(x, weights[f"{stage}/kernel"])
        normed, statistics = batch_norm(mixed, weights[f"{stage}/gamma"], weights[f"{stage}/beta"])
        x = np.where(normed > 0, normed, 0.0)
        features[stage], saved[stage] = x, (taps, statistics, normed)
    return features, saved


def backbone_backward(weights, saved, d_features):
    """Returns gradients by weight name, from `d_features` of the stages that a loss reads."""
    gradients, d_x = {}, 0.0
    for stage in reversed(STAGES):
        taps, statistics, normed = saved[stage]
        d_normed = (d_x + d_features.get(stage, 0.0)) * (normed > 0)
        d_mixed, gradients[f"{stage}/gamma"], gradients[f"{stage}/beta"] = batch_norm_backward(
            d_normed, statistics, weights[f"{stage}/gamma"]
        )
        d_x, gradients[f"{stage}/kernel"] = conv_backward(d_mixed, taps, weights[f"{stage}/kernel"])
    return gradients


# --- heads (eqs. 3, 4, 6) -------------------------------------------------------------------------


def head(weights, name, x):
    """Applies Dense, ReLU, Dense and unit length on the last axis. On cells this equals two 1x1 convolutions."""
    before = x @ weights[f"{name}/kernel_1"] + weights[f"{name}/bias_1"]
    hidden = np.where(before > 0, before, 0.0)
    out = hidden @ weights[f"{name}/kernel_2"] + weights[f"{name}/bias_2"]
    length = np.sqrt((out**2).sum(-1, keepdims=True))
    return out / length, (x, before, hidden, length)


def head_backward(weights, name, embedding, saved, d_embedding):
    """Returns d_x, and gradients by weight name."""
    x, before, hidden, length = saved
    d_out = (d_embedding - embedding * (embedding * d_embedding).sum(-1, keepdims=True)) / length
    d_hidden = (d_out @ weights[f"{name}/kernel_2"].T) * (before > 0)
    rows = [a.reshape(-1, a.shape[-1]) for a in (x, d_hidden, hidden, d_out)]
    gradients = {
        f"{name}/kernel_1": rows[0].T @ rows[1],
        f"{name}/bias_1": rows[1].sum(0),
        f"{name}/kernel_2": rows[2].T @ rows[3],
        f"{name}/bias_2": rows[3].sum(0),
    }
    return d_hidden @ weights[f"{name}/kernel_1"].T, gradients


def roi_matrix(box, flipped, size, stride, side):
    """Returns (S * S, side * side): the bilinear weight of each pixel of a square map in the centre of each bin.

    Half-pixel convention: pixel k of the map covers k..k + 1 in its own units, and its value sits at k + 0.5. A flipped
    view's grid is read from right to left, so that bin (i, j) shows what it shows in the photo.
    """
    matrix = np.zeros((size, size, side, side))
    y1, x1, y2, x2 = (float(edge) / stride for edge in box)
    for i in range(size):
        for j in range(size):
            across = size - 1 - j if flipped else j
            y = min(max(y1 + (y2 - y1) * (i + 0.5) / size - 0.5, 0.0), side - 1.0)
            x = min(max(x1 + (x2 - x1) * (across + 0.5) / size - 0.5, 0.0), side - 1.0)
            for row, row_weight in neighbours(y, side):
                for column, column_weight in neighbours(x, side):
                    matrix[i, j, row, column] += row_weight * column_weight
    return matrix.reshape(size * size, side * side)


def neighbours(position, side):
    """Returns the two pixels around a position and their weights."""
    low = math.floor(position)
    share = position - low
    return (low, 1.0 - share), (min(low + 1, side - 1), share)


# --- an encoder -----------------------------------------------------------------------------------


def embed(weights, names, sizes, view, boxes, flipped):
    """Returns {loss name: unit embeddings}, (B, C) for images and (B, S, S, C) for patches. `view` is uint8."""
    features, saved = backbone(weights, (np.asarray(view, np.float64) / 255.0 - MEAN) / STD)
    embeddings, heads = {}, {}
    for name in names:
        kind, level = name.split("_")
        maps = features[level]
        batch, side, _, channels = maps.shape
        if kind == "image":  # the average over the map is a grid of one cell with equal weights
            grid, matrices = (), np.full((batch, 1, side * side), 1.0 / side**2)
        else:
            size = sizes[level]
            grid = (size, size)
            matrices = [roi_matrix(b, f, size, STRIDES[level], side) for b, f in zip(boxes, flipped, strict=True)]
        cells = np.matmul(np.stack(matrices), maps.reshape(batch, side * side, channels))
        embeddings[name], inside = head(weights, name, cells.reshape(batch, *grid, channels))
        heads[name] = (np.stack(matrices), inside)
    return embeddings, (features, saved, heads)


def embed_backward(weights, embeddings, tape, d_embeddings):
    """Returns the gradients of every weight by name."""
    features, saved, heads = tape
    gradients, d_features = {}, {}
    for name, (matrices, inside) in heads.items():
        level = name.split("_")[1]
        maps = features[level]
        d_cells, own = head_backward(weights, name, embeddings[name], inside, d_embeddings[name])
        gradients.update(own)
        d_cells = d_cells.reshape(len(maps), -1, maps.shape[-1])
        d_maps = np.matmul(matrices.transpose(0, 2, 1), d_cells).reshape(maps.shape)
        d_features[level] = d_features.get(level, 0.0) + d_maps
    gradients.update(backbone_backward(weights, saved, d_features))
    return gradients


def nearest_kink(tape):
    """Returns the smallest distance of a ReLU input from 0, where rounding can switch the branch and the gradient."""
    _, saved, heads = tape
    inputs = [normed for _, _, normed in saved.values()] + [inside[1] for _, inside in heads.values()]
    return min(np.abs(x).min() for x in inputs)


# --- the loss (eqs. 1, 5, 6) ----------------------------------------------------------------------


def info_nce(queries, positives, bank, temperature):
    """Returns losses (N,), hits (N,) and the derivatives (N, C) of the losses with respect to their queries."""
    similar = np.concatenate([(queries * positives).sum(-1, keepdims=True), queries @ bank.T], axis=-1)
    logits = similar / temperature  # (N, 1 + K), the positive first
    peak = logits.max(-1, keepdims=True)
    total = np.exp(logits - peak).sum(-1, keepdims=True)
    probability = np.exp(logits - peak) / total
    losses = (np.log(total) + peak)[:, 0] - logits[:, 0]
    expected_key = probability[:, :1] * positives + probability[:, 1:] @ bank
    hits = (similar[:, 0] > similar[:, 1:].max(-1)).astype(float)
    return losses, hits, (expected_key - positives) / temperature


# --- the step -------------------------------------------------------------------------------------


@dataclasses.dataclass
class GoldenDUPR:
    """State of a run, and the step that updates it. Every array is float64."""

    losses: dict  # {loss name: alpha or beta}
    sizes: dict  # {level: S}
    weights: dict  # query weights by name
    key_weights: dict
    banks: dict  # {loss name: (K, C)}
    next_rows: dict  # {loss name: the row for the next key}
    temperature: float
    momentum: float  # momentum of the keys' average
    learning_rate: float
    sgd_momentum: float
    decay: float
    moving: dict  # {stage: (mean, variance)} of the query backbone

    def __post_init__(self):
        self.velocities = {name: np.zeros_like(weight) for name, weight in self.weights.items()}

    def step(self, batch, drawn):
        """Takes one step.

        `drawn` {patch loss: cells of the (B * S * S) keys that go to its bank} is random in a real run.

        Returns:
            {"loss"}, then "loss/NAME", "accuracy/…", "positive/…", "negative/…" and "std/…" of each loss. Patch losses
                also have "match/…". The second result holds gradients by weight name.
        """
        for name, query in self.weights.items():  # the queries as the last step left them
            self.key_weights[name] = self.momentum * self.key_weights[name] + (1.0 - self.momentum) * query
        second = (batch["view_2"], batch["boxes_2"], batch["flipped_2"])
        keys, _ = embed(self.key_weights, self.losses, self.sizes, *second)
        logs, gradients, statistics = self.loss_and_gradients(batch, keys)
        for stage, batch_statistics in statistics.items():
            self.moving[stage] = [
                MOVING_MOMENTUM * old + (1.0 - MOVING_MOMENTUM) * new
                for old, new in zip(self.moving[stage], batch_statistics, strict=True)
            ]
        for name, weight in self.weights.items():  # torch's SGD: decay joins the gradient, then momentum
            gradient = gradients[name] + self.decay * weight
            self.velocities[name] = self.sgd_momentum * self.velocities[name] + gradient
            self.weights[name] = weight - self.learning_rate * self.velocities[name]
        self.enqueue(batch, keys, drawn)
        return logs, gradients

    def loss_and_gradients(self, batch, keys):
        """Returns eq. 2 with its terms, gradients by weight name, and batch statistics {stage: (mean, variance)}."""
        first = (batch["view_1"], batch["boxes_1"], batch["flipped_1"])
        queries, tape = embed(self.weights, self.losses, self.sizes, *first)
        logs, d_queries = {"loss": 0.0}, {}
        for name, weight in self.losses.items():
            query, key = queries[name].reshape(-1, self.dim), keys[name].reshape(-1, self.dim)
            losses, hits, d_query = info_nce(query, key, self.banks[name], self.temperature)
            share = self.shares(name, batch["valid"], len(losses))
            logs[f"loss/{name}"], logs[f"accuracy/{name}"] = (share * losses).sum(), (share * hits).sum()
            logs[f"positive/{name}"] = (share * [q @ k for q, k in zip(query, key, strict=True)]).sum()
            logs[f"negative/{name}"] = (share * [np.mean([q @ k for k in self.banks[name]]) for q in query]).sum()
            if name.startswith("patch"):
                logs[f"match/{name}"] = (share * own_cell_nearest(query, key, len(batch["valid"]))).sum()
            logs[f"std/{name}"] = np.sqrt(key.var(axis=0).sum())
            logs["loss"] += weight * logs[f"loss/{name}"]
            d_queries[name] = (weight * share[:, None] * d_query).reshape(queries[name].shape)
        gradients = embed_backward(self.weights, queries, tape, d_queries)
        return logs, gradients, {stage: kept[1][2:] for stage, kept in tape[1].items()}

    def shares(self, name, valid, count):
        """Returns each loss's weight in the mean over `count` images, or over the cells of the valid pairs."""
        if name.startswith("image"):
            return np.full(count, 1.0 / count)
        counted = np.repeat(np.asarray(valid, float), count // len(valid))
        return counted / max(counted.sum(), 1.0)

    def enqueue(self, batch, keys, drawn):
        """Overwrites the oldest rows, one by one. Without a valid pair the patch banks stay unchanged."""
        for name, bank in self.banks.items():
            if name.startswith("image"):
                new = keys[name]
            else:
                new = keys[name].reshape(-1, self.dim)[drawn[name]] if np.any(batch["valid"]) else []
            for key in new:
                bank[self.next_rows[name]] = key
                self.next_rows[name] = (self.next_rows[name] + 1) % len(bank)

    @property
    def dim(self):
        return next(iter(self.banks.values())).shape[-1]


def own_cell_nearest(query, key, images):
    """Marks queries whose nearest key, among the keys of the same pair, is their own. Rows go image by image."""
    cells, hits = len(query) // images, []
    for row, q in enumerate(query):
        first = row // cells * cells
        hits.append(max(range(first, first + cells), key=lambda k: q @ key[k]) == row)
    return np.array(hits, float)
