"""Turns images into ViewPair batches. A batch is a function of (seed, step), so a resumed run has the same batches."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import numpy as np

from dupr_tf.batch import view_pair_signature
from dupr_tf.config import Config
from dupr_tf.data.images.bad_images import BadImages
from dupr_tf.data.images.decode import FACTORS, Header, Unusable, decode, read_header
from dupr_tf.data.images.source import ImageSource, as_source
from dupr_tf.data.reader import Block, Reader
from dupr_tf.data.views import DRAWS, cut_view, draw_pairs, intersect_views, uniform
from dupr_tf.errors import RunFailed, UserError
from dupr_tf.text import escape

BLOCK = 32  # images that a thread reads in one call, at most
SUBSTITUTES = 32  # images tried in place of an unusable one before the run fails
SURPLUS = 1.5  # pixels that must remain for each pixel of a view, so that the antialiased resize still decides
SUBSTITUTE_STREAM = 1 << 31  # added to the epoch for draws other than those of geometry


def view_pairs(
    images: ImageSource | Sequence[str],
    config: Config,
    first_step: int,
    last_step: int,
    bad: BadImages,
    worker: tuple[int, int] = (0, 1),
) -> Reader:
    """Opens a reader of the batches of steps `first_step` .. `last_step` - 1.

    Every image is used at most once an epoch, in an order drawn from (seed, epoch). An incomplete last batch is
    dropped. If there are fewer images than a batch needs, they repeat.

    Args:
        images: a source, or image files in the order of `list_images`.
        config: config of the run. Its `data`, `views`, `model`, `train.batch_size` and `train.seed` are used.
        first_step, last_step: optimiser steps.
        bad: receives the unusable images.
        worker: (w, n): only the w-th of n equal parts of every batch is read and returned.

    Returns:
        A reader of `ViewPair` dicts, to be closed by the caller.
    """
    rows = WorkerRows(config.train.batch_size, *worker)
    size = block_size(rows.share)
    blocks = rows.share // size
    return Reader(
        PairBlocks(as_source(images), config, rows, size),
        first_step * blocks,
        last_step * blocks,
        view_pair_signature(rows.share, config.data.image_size),
        blocks,
        config.data.threads,
        config.data.processes,
        bad.add,
    )


def block_size(rows: int) -> int:
    """Returns the number of images of a block: the largest divisor of a batch's rows up to `BLOCK`."""
    return next(size for size in range(min(BLOCK, rows), 0, -1) if rows % size == 0)


class WorkerRows:
    """Holds the samples that one of several workers reads: rows w · share .. (w + 1) · share - 1 of every batch.

    Args:
        batch: images a step, over all workers.
        worker, workers: number of this worker, from 0, and of all workers.
    """

    def __init__(self, batch: int, worker: int = 0, workers: int = 1):
        if not 0 <= worker < workers or batch % workers:
            raise UserError(
                "train.batch_size",
                f"Expected a multiple of the {workers} workers, and a worker among them, received {batch} and worker "
                f"{worker}.",
                f"Use {max(1, batch // workers) * workers}.",
            )
        self.batch, self.share, self.first_row = batch, batch // workers, worker * (batch // workers)

    def global_number(self, number):
        """Returns the number, in the whole run, of this worker's number-th sample."""
        return number // self.share * self.batch + self.first_row + number % self.share


class PairBlocks:
    """Makes blocks of view pairs. It has no state, so threads can share it and processes can have copies.

    Args:
        source: source of the images.
        config: config of the run.
        rows: the samples that this worker reads.
        size: samples in a block.
    """

    def __init__(self, source: ImageSource, config: Config, rows: WorkerRows, size: int):
        self.source, self.rows, self.size = source, rows, size
        self.view, self.views = config.data.image_size, config.views
        self.max_pixels, self.depth = config.data.max_pixels, config.data.depth
        self.seed = config.train.seed
        self.per_epoch = config.steps_per_epoch(len(source)) * config.train.batch_size
        self.redraw = bool(config.model.patch_sizes)  # image terms need no overlap

    def __call__(self, number: int) -> Block:
        """Returns the block of a number, from 0 at the start of the run."""
        bad: list[tuple[int, str]] = []
        places = self.rows.global_number(np.arange(number * self.size, (number + 1) * self.size))
        samples = [self._sample(*divmod(int(place), self.per_epoch)) for place in places]
        readable = [self._readable(epoch, image, bad) for epoch, image, _ in samples]
        opened = [next(images) for images in readable]
        u = [self._uniform(epoch, number) for epoch, _, number in samples]
        crops, flipped = self._draw(u, opened)
        views = np.empty((2, self.size, self.view, self.view, 3), np.uint8)
        index = np.empty(self.size, np.int64)
        for row, images in enumerate(readable):
            shown, content, header = opened[row]
            while True:
                try:
                    image, crops[row] = self._decode(content, header, crops[row])
                    break
                except Unusable as error:
                    bad.append((shown, str(error)))
                    shown, content, header = opened[row] = next(images)
                    crops[row : row + 1], flipped[row : row + 1] = self._draw(u[row : row + 1], opened[row : row + 1])
            for view in range(2):
                views[view, row] = cut_view(image, crops[row, view], flipped[row, view], self.view)
            index[row] = shown
        boxes_1, boxes_2, valid = intersect_views(
            crops[:, 0], crops[:, 1], flipped[:, 0], flipped[:, 1], self.view, self.views.min_overlap
        )
        rows = {
            "view_1": views[0],
            "view_2": views[1],
            "boxes_1": boxes_1,
            "boxes_2": boxes_2,
            "flipped_1": flipped[:, 0],
            "flipped_2": flipped[:, 1],
            "valid": valid,
            "index": index,
        }
        return Block(rows, tuple(bad))

    def _sample(self, epoch: int, place: int) -> tuple[int, int, int]:
        """Returns (epoch, image, number of its draw) at a place of an epoch.

        The number is that of the image. An image that repeats within an epoch, because a batch has more rows than
        there are images, has another number each time, and so other views.
        """
        repeat, place = divmod(place, len(self.source))
        image = int(epoch_order(len(self.source), self.seed, epoch)[place])
        return epoch, image, image + repeat * len(self.source)

    def _uniform(self, epoch: int, number: int) -> np.ndarray:
        return uniform(self.seed, epoch, number, (self.views.draws, 2, *DRAWS))

    def _draw(self, u, opened):
        sides = [(header.height, header.width) for _, _, header in opened]
        return draw_pairs(np.stack(u), sides, self.view, self.views, self.redraw)

    def _readable(self, epoch: int, image: int, bad: list) -> Iterator[tuple[int, bytes, Header]]:
        """Yields (number, content, header) of an image, then of its substitutes. Skips images without a header."""
        for shown in self._candidates(epoch, image):
            try:
                content = self.source.read(shown)
                yield shown, content, read_header(content, self.max_pixels)
            except Unusable as error:
                bad.append((shown, str(error)))
        shown, reason = bad[-1]
        raise RunFailed(
            f"None of {SUBSTITUTES} images drawn in place of {escape(self.source.name(image))} can be used, "
            f"the last is {escape(self.source.name(shown))} ({reason}). Run `dupr-tf scan` on the images."
        )

    def _candidates(self, epoch: int, image: int) -> Iterator[int]:
        """Yields an image, then those that are tried in its place."""
        yield image
        others = uniform(self.seed, epoch + SUBSTITUTE_STREAM, image, (SUBSTITUTES,))
        yield from (others * len(self.source)).astype(int).tolist()

    def _decode(self, content: bytes, header: Header, crops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the pixels of an image and its crops (2, 4) in whole pixels, so that the boxes stay exact."""
        side = (crops[:, 2:] - crops[:, :2]).min()
        factor = next((factor for factor in FACTORS if side >= SURPLUS * self.view * factor), 1)
        image = decode(content, self.max_pixels, header, factor, self.depth)
        return image, np.minimum(np.rint(crops / factor).astype(np.int64), image.shape[:2] * 2)


@functools.lru_cache(maxsize=4)
def epoch_order(count: int, seed: int, epoch: int):
    """Returns the images of an epoch in their order, as a sequence that takes no memory for any number of images.

    Args:
        count: number of images.
        seed: seed of the run.
        epoch: number from 0.
    """
    import grain

    order_seed = int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
    return grain.MapDataset.range(count).shuffle(seed=order_seed)
