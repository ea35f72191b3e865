"""Defines the predictions of one image, and their form in JSON. Imports no TensorFlow."""

from __future__ import annotations

import dataclasses

import numpy as np

from dupr_tf.data.boxes import apart
from dupr_tf.data.labels.run_lengths import mask_from_pixels, pixels_of


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Holds the predictions of one image, the best detection first.

    Attributes:
        size: height and width of the image, px.
        boxes: (k, 4) float32, x1 y1 x2 y2 in pixels of the image.
        scores: (k,) float32 in [0, 1].
        classes: (k,) int32, positions in the detector's `class_names`.
        names: k names of classes.
        run_lengths: k masks as run lengths (`data.labels.run_lengths`); None without masks.
        segments: (H, W) int32 class of every pixel. None unless the detector predicts segments.
    """

    size: tuple[int, int]
    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    names: tuple[str, ...]
    run_lengths: tuple[bytes, ...] | None = None
    segments: np.ndarray | None = None

    @property
    def masks(self) -> np.ndarray | None:
        """Returns the pixels of each object, (k, H, W) bool. None without masks."""
        if self.run_lengths is None:
            return None
        masks = [pixels_of(mask, self.size) for mask in self.run_lengths]
        return np.array(masks, bool).reshape(-1, *self.size)

    def with_one_class_per_box(self, iou: float) -> Prediction:
        """Returns the detections without those whose box repeats that of a better one, of any class.

        Args:
            iou: from this IoU on, two boxes are of one object.
        """
        kept = apart(self.boxes, iou)
        lists = {"names": self.names, "run_lengths": self.run_lengths}
        lists = {name: value and tuple(value[k] for k in kept) for name, value in lists.items()}
        arrays = {name: getattr(self, name)[kept] for name in ("boxes", "scores", "classes")}
        return dataclasses.replace(self, **arrays, **lists)


def record_of(name: str, prediction: Prediction) -> dict:
    """Returns a prediction as JSON has it; `outputs` describes the keys."""
    record = {"name": name, "size": list(map(int, prediction.size))}
    record["boxes"] = [[round(float(value), 3) for value in box] for box in prediction.boxes]
    record["classes"] = prediction.classes.tolist()
    record["scores"] = [round(float(score), 5) for score in prediction.scores]
    if prediction.run_lengths is not None:
        record["masks"] = [mask.decode() for mask in prediction.run_lengths]
    if prediction.segments is not None:
        labels, segments = np.unique(prediction.segments).tolist(), prediction.segments
        record["segments"] = {str(label): mask_from_pixels(segments == label).decode() for label in labels}
    return record


def segments_of(image: dict) -> np.ndarray:
    """Returns (H, W) uint8: the classes of an image of a detector of segments, whose record has masks by class."""
    values = np.zeros(image["size"], np.uint8)
    for label, mask in image["segments"].items():
        values[pixels_of(mask.encode(), image["size"]) > 0] = int(label)
    return values
