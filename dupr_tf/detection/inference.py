"""Runs a saved detector on photos: arrays, files or PIL images of any size. Boxes are in the photos' pixels."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import numpy as np

from dupr_tf.config import DataConfig
from dupr_tf.data.any_image import all_usable, listed, pixels_of_any
from dupr_tf.data.detection import image_rows
from dupr_tf.data.images.decode import Unusable
from dupr_tf.data.images.source import map_in_order
from dupr_tf.data.placing import letterbox, pad_batch, scaled
from dupr_tf.data.segmentation import segments_to_original
from dupr_tf.detection.finetune import chosen_score, data_section, detector_file
from dupr_tf.detection.prediction import Prediction
from dupr_tf.detection.predictions import EVAL_BATCH, convert_to_originals
from dupr_tf.detection.registry import task_of
from dupr_tf.detection.saving import load_detector
from dupr_tf.errors import UserError


class Detector:
    """Runs a detector on photos. It scales them as the evaluation does, and returns boxes in the photos' pixels.

    Args:
        detector: `detector.keras`, the output folder of `finetune`, or a loaded detector.
        min_score: lower detections are left out; or "suggested", the score with the best F1 on val in the
            `metrics.json` beside the detector. Default: the detector's own `score_threshold`. It and `image_size`
            change a loaded detector that is passed.
        image_size: px; the side of the square, or the short side of images of any size. Default: the detector's own.
        data: settings for reading files. Default: those of the `config.yaml` beside the detector.
        one_class_per_box: leave out detections whose box repeats a better one of another class. Default: an object may
            be detected as several classes, as an evaluation counts it.

    Attributes:
        model: the Keras model.
        class_names: names of its classes.
        task: "boxes", "masks" or "segments".

    Raises:
        UserError: there is no detector, it cannot take this size, or no threshold is suggested for it.
    """

    def __init__(
        self,
        detector: Any,
        min_score: float | Literal["suggested"] | None = None,
        image_size: int | None = None,
        data: DataConfig | None = None,
        one_class_per_box: bool = False,
    ):
        on_disk = isinstance(detector, str | os.PathLike)
        if min_score == "suggested" and not on_disk:
            raise UserError("min_score", "A loaded detector has no suggested threshold.", "Pass a number, or its path.")
        min_score = chosen_score(detector_file(detector), min_score) if on_disk else min_score
        self.model = load_detector(detector) if on_disk else detector
        self.data = data or (data_section(detector_file(detector)) if on_disk else DataConfig())
        self.class_names, self.task = tuple(self.model.class_names), task_of(self.model)
        self.same_object = self.model.nms_iou if one_class_per_box and self.task != "segments" else None  # IoU
        if image_size is not None:
            self.model.resize_input(image_size)
        if min_score is not None and self.task != "segments":
            self.model.score_threshold = float(np.nextafter(np.float32(min_score), np.float32(-1)))  # exclusive
        self.model.predict_function = None  # Keras would keep a function with the former size and threshold
        sides = {"short_side": self.model.test_short_side, "max_long_side": self.model.max_long_side}
        self._place = functools.partial(scaled, **sides)
        if self.model.image_size is not None:
            self._place = functools.partial(letterbox, side=self.model.image_size)

    def predict(self, images, batch_size: int = EVAL_BATCH) -> list[Prediction] | Prediction:
        """Detects objects in images of any size.

        Args:
            images: a list of images, or one. An image is a path, a PIL image (not turned by its EXIF),
                or an array (H, W, 3) or (H, W) uint8. Files are turned upright. An array (B, H, W, 3) is a list.
            batch_size: images that the model takes at a time.

        Returns:
            A `Prediction` for each image, in order; for one image its `Prediction`.

        Raises:
            UserError: an image cannot be used.
        """
        images, single = listed(images)
        predictions = all_usable(images, self.stream(images, batch_size))
        return predictions[0] if single else predictions

    def stream(
        self, images: Iterable, batch_size: int = EVAL_BATCH, threads: int | None = None
    ) -> Iterator[tuple[int, Prediction | Unusable]]:
        """Yields the number of each image and its `Prediction`, or the reason why it cannot be used.

        Memory is bounded, because only a few images are read ahead. If a detector takes images of any size, wide and
        tall images are in different batches, so results may come in another order.

        Args:
            images: as for `predict`, any number of them.
            batch_size: images that the model takes at a time.
            threads: threads that read images. Default: one for each usable CPU.
        """
        waiting: dict[bool, list] = {False: [], True: []}
        for index, loaded in enumerate(map_in_order(self._load, images, threads)):
            if isinstance(loaded, Unusable):
                yield index, loaded
                continue
            size, rows = loaded
            batch = waiting[self.model.image_size is None and size[0] > size[1]]
            batch.append((index, size, rows))
            if len(batch) == batch_size:
                yield from self._run(batch)
                batch.clear()
        for batch in waiting.values():
            if batch:
                yield from self._run(batch)

    def _load(self, image) -> tuple[tuple[int, int], dict] | Unusable:
        """Returns the size of an image, and the rows that `pad_batch` takes; or why it cannot be used."""
        try:
            pixels = pixels_of_any(image, self.data)
        except Unusable as error:
            return error
        place = self._place(pixels.shape[:2])
        facts = {"image_sizes": np.array([place.size], np.float32), "factors": place.factors[None]}
        return pixels.shape[:2], {**image_rows(pixels, place), **facts}

    def _run(self, waiting: list) -> Iterator[tuple[int, Prediction]]:
        """Yields the predictions of a batch of (number, size, rows)."""
        indices, sizes, rows = zip(*waiting, strict=True)
        batch, sizes = pad_batch(list(rows), self.model.image_size), dict(zip(indices, sizes, strict=True))
        inputs = {name: batch[name] for name in ("images", "image_sizes")}
        result = self.model.predict_on_batch(inputs)
        if self.task == "segments":
            empty = np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32), ()
            for index, classes, size in zip(indices, np.asarray(result), batch["image_sizes"], strict=True):
                yield (
                    index,
                    Prediction(sizes[index], *empty, segments=segments_to_original(classes, size, sizes[index])),
                )
            return
        for index, detections in convert_to_originals(result, {**batch, "index": np.array(indices)}, sizes).items():
            names = tuple(self.class_names[k] for k in detections["classes"])
            masks = tuple(detections["masks"]) if "masks" in detections else None
            found = Prediction(
                sizes[index], detections["boxes"], detections["scores"], detections["classes"], names, masks
            )
            yield index, found if self.same_object is None else found.with_one_class_per_box(self.same_object)
