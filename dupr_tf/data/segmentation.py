"""Reads batches for semantic segmentation: images and the class of every pixel; 255 means no class.

Sample order and augmentation are functions of the seed and the position in the run.
"""

from __future__ import annotations

import functools

import numpy as np

from dupr_tf.config import Config, DataConfig
from dupr_tf.data.detection import image_rows, open_eval_reader, open_reader, read_image, wide_first
from dupr_tf.data.images.decode import Unusable
from dupr_tf.data.labels.segments import IGNORED, SegmentedImages
from dupr_tf.data.order import Order, shuffled_epoch
from dupr_tf.data.placing import DRAWS, drawn_place, nearest_pixels, pad_batch, scaled, short_side_scale
from dupr_tf.data.reader import Block, Reader
from dupr_tf.data.views import uniform
from dupr_tf.errors import UserError


def segment_train_batches(segmented: SegmentedImages, config: Config, steps: int, start: int = 0) -> Reader:
    """Opens a reader of augmented batches of the steps `start` to `steps`: random scale, crop or padding, and flip.

    Args:
        segmented: the training split.
        config: its `data`, `train.batch_size` B, `train.seed` and `detector.scale_jitter` are used. The jitter is a
            factor on the image's own size, or on the size that `detector.test_short_side` gives.
        steps: number of steps of the whole run.
        start: first step to produce.

    Returns:
        A reader, to be closed by the caller, of `{"images": (B, S, S, 3) float32 in 0–255, "segments": (B, S, S) int32,
        "image_sizes": (B, 2) float32, all S}`, where S is `data.image_size`. Padding has the mean colour and the class
        255. An image or a mask that cannot be read ends the iteration with `RunFailed`.
    """
    side, batch = config.data.image_size, config.train.batch_size
    signature = {
        "images": ((batch, side, side, 3), np.float32),
        "segments": ((batch, side, side), np.int32),
        "image_sizes": ((batch, 2), np.float32),
    }
    examples, merge = _SegmentExamples(segmented, config), functools.partial(pad_batch, side=side)
    return open_reader(examples, start * batch, steps * batch, signature, batch, config.data, segmented, merge)


def segment_eval_batches(
    segmented: SegmentedImages,
    batch_size: int,
    data: DataConfig | None = None,
    short_side: int | None = None,
    max_long_side: int = 1333,
) -> Reader:
    """Opens a reader of whole images, each once, padded below and on the right to multiples of 32 with the mean colour.

    Args:
        segmented: N images. Wide images come before tall ones.
        batch_size: images a batch, at most.
        data: how images are read: `max_pixels`, `threads` and `processes`. None takes the defaults.
        short_side: px to which images are scaled. None keeps their size.
        max_long_side: px, with `short_side`.

    Returns:
        A reader, to be closed by the caller, of `{"images": (b, H, W, 3) float32, "image_sizes": (b, 2) float32 height
        and width without padding, "factors": (b, 2) float32, "index": (b,) int64 position in `segmented`}`.
    """
    place = functools.partial(scaled, short_side=short_side, max_long_side=max_long_side)
    return open_eval_reader(segmented, wide_first(segmented.sizes), place, None, batch_size, data or DataConfig())


def segments_to_original(predicted: np.ndarray, image_size: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Converts classes to an original's pixels. Each takes the class of the predicted pixel under its centre.

    Args:
        predicted: (H, W) of a padded input.
        image_size: (2,) height and width of the input without padding, whole px.
        size: (2,) height and width of the original.

    Returns:
        (height, width), of the dtype of `predicted`.
    """
    rows, columns = (nearest_pixels(int(side), int(part)) for side, part in zip(size, image_size, strict=True))
    return predicted[rows[:, None], columns]


class _SegmentExamples:
    """Makes a block of the image at a position of the run."""

    def __init__(self, segmented: SegmentedImages, config: Config):
        self.segmented, self.detector, self.seed = segmented, config.detector, config.train.seed
        self.side, self.data = config.data.image_size, config.data
        self.order = Order(len(segmented), functools.partial(shuffled_epoch, len(segmented), self.seed))

    def __call__(self, position: int) -> Block:
        index, detector = self.order(position), self.detector
        try:
            image = read_image(self.segmented.paths[index], self.data)
            truth = self.segmented.truth(index)
        except (Unusable, UserError) as error:
            return Block({}, ((index, str(error)),))
        draws = uniform(self.seed, 0, position, (DRAWS,))
        base = short_side_scale(image.shape[:2], detector.test_short_side, detector.max_long_side)
        place = drawn_place(image.shape[:2], draws, self.side, detector.scale_jitter, base)
        return Block(
            {
                **image_rows(image, place),
                "segments": place.put_values(truth, IGNORED)[None].astype(np.int32),
                "image_sizes": np.array([place.frame], np.float32),
            }
        )
