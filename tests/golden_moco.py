"""MoCo v2 in float64 NumPy, written line by line from its authors' public code (`moco/builder.py`, `main_moco.py`).

Its order is:

- q = f_q(x_q), EMA of f_k, k = f_k(x_k)
- logits [q·k, q·queue] / T with label 0
- enqueue k, then cross entropy
- SGD with momentum and coupled decay, and the cosine once an epoch

Only convolution and batch norm come from `golden`.
"""

import math

import numpy as np

from tests.golden import STAGES, batch_norm, batch_norm_backward, conv, conv_backward

FC = ("fc.0/weight", "fc.0/bias", "fc.2/weight", "fc.2/bias")  # Linear, ReLU, Linear; kernels are (in, out)


class MoCoV2:
    """MoCo v2 on one device, where shuffling the keys over devices has no effect.

    Args:
        params_q: {name: array}, with the names "P3/kernel", "P3/gamma", "P3/beta", …, and FC.
        params_k: the same names. MoCo starts it as a copy; any start is allowed here.
        queue: (dim, K), K a multiple of the batch.
        T, m, lr, epochs, momentum, weight_decay: as the authors' flags.
    """

    def __init__(self, params_q, params_k, queue, T, m, lr, epochs, momentum=0.9, weight_decay=1e-4):
        self.params_q, self.params_k = dict(params_q), dict(params_k)
        self.queue, self.queue_ptr = np.array(queue, np.float64), 0
        self.T, self.m, self.base_lr, self.epochs = T, m, lr, epochs
        self.momentum, self.weight_decay = momentum, weight_decay
        self.buffers = {}  # torch's momentum buffers: none before the first step

    def train(self, im_q, im_k, epoch):
        """Takes one iteration on normalised images; returns the loss before the update."""
        lr = self.base_lr * 0.5 * (1.0 + math.cos(math.pi * epoch / self.epochs))
        q, tape = self.encoder(self.params_q, im_q)
        for name, param_q in self.params_q.items():
            self.params_k[name] = self.params_k[name] * self.m + param_q * (1.0 - self.m)
        k, _ = self.encoder(self.params_k, im_k)
        queue = self.queue.copy()
        l_pos = np.einsum("nc,nc->n", q, k)[:, None]
        logits = np.concatenate([l_pos, np.einsum("nc,ck->nk", q, queue)], axis=1) / self.T
        self.dequeue_and_enqueue(k)
        loss, d_logits = cross_entropy(logits, np.zeros(len(q), int))
        d_q = (d_logits[:, :1] * k + d_logits[:, 1:] @ queue.T) / self.T
        self.sgd(self.encoder_backward(tape, d_q), lr)
        return loss

    def nearest_kink(self, im_q):
        """Returns the smallest distance of a ReLU input from 0 on normalised images."""
        _, tape = self.encoder(self.params_q, im_q)
        return min(np.abs(x).min() for x in (tape[3], *(stage[3] for stage in tape[0])))

    def encoder(self, params, images):
        """Applies convolutions, average pool, fc and `F.normalize`."""
        x, stages = images, []
        for stage in STAGES:
            y, taps = conv(x, params[f"{stage}/kernel"])
            y, saved = batch_norm(y, params[f"{stage}/gamma"], params[f"{stage}/beta"])
            x = np.maximum(y, 0.0)
            stages.append((stage, taps, saved, y))
        pooled = x.mean((1, 2))
        first, first_bias, second, second_bias = (params[name] for name in FC)
        before = pooled @ first + first_bias
        hidden = np.maximum(before, 0.0)
        z = hidden @ second + second_bias
        q = z / np.linalg.norm(z, axis=1, keepdims=True)
        return q, (stages, x.shape, pooled, before, hidden, z)

    def encoder_backward(self, tape, d_q):
        """Returns {name: gradient} of the query parameters."""
        stages, shape, pooled, before, hidden, z = tape
        first, _, second, _ = (self.params_q[name] for name in FC)
        d_z = np.zeros_like(z)
        for n, row in enumerate(z):  # the Jacobian of z / |z|
            length = np.linalg.norm(row)
            d_z[n] = (np.eye(len(row)) / length - np.outer(row, row) / length**3) @ d_q[n]
        d_before = (d_z @ second.T) * (before > 0)
        grads = dict(zip(FC, (pooled.T @ d_before, d_before.sum(0), hidden.T @ d_z, d_z.sum(0)), strict=True))
        d_x = np.broadcast_to((d_before @ first.T)[:, None, None] / (shape[1] * shape[2]), shape)
        for stage, taps, saved, y in reversed(stages):
            d_y, grads[f"{stage}/gamma"], grads[f"{stage}/beta"] = batch_norm_backward(
                d_x * (y > 0), saved, self.params_q[f"{stage}/gamma"]
            )
            d_x, grads[f"{stage}/kernel"] = conv_backward(d_y, taps, self.params_q[f"{stage}/kernel"])
        return grads

    def dequeue_and_enqueue(self, keys):
        batch_size, size = len(keys), self.queue.shape[1]
        assert size % batch_size == 0  # as in the authors' code
        self.queue[:, self.queue_ptr : self.queue_ptr + batch_size] = keys.T
        self.queue_ptr = (self.queue_ptr + batch_size) % size

    def sgd(self, grads, lr):
        """Updates as `torch.optim.SGD` without dampening or Nesterov."""
        for name, param in self.params_q.items():
            d_p = grads[name] + self.weight_decay * param
            if name in self.buffers:
                self.buffers[name] = self.momentum * self.buffers[name] + d_p
            else:
                self.buffers[name] = d_p
            self.params_q[name] = param - lr * self.buffers[name]


def cross_entropy(logits, labels):
    """Computes `nn.CrossEntropyLoss`: returns the mean over rows, and its derivative."""
    shifted = logits - logits.max(1, keepdims=True)
    probabilities = np.exp(shifted) / np.exp(shifted).sum(1, keepdims=True)
    rows = np.arange(len(labels))
    d_logits = probabilities.copy()
    d_logits[rows, labels] -= 1.0
    return -np.log(probabilities[rows, labels]).mean(), d_logits / len(labels)
