"""Exports a detector into a new directory, after comparing its detections with those of the written file."""

from __future__ import annotations

import json

import numpy as np
import tensorflow as tf

from dupr_tf.data.images.decode import read_photo
from dupr_tf.detection.finetune import detector_file, suggested_score
from dupr_tf.detection.formats import DETECTOR_EXPORTS
from dupr_tf.detection.registry import task_of
from dupr_tf.detection.runtimes import DESCRIPTION_FILE, LABELS_FILE
from dupr_tf.detection.saving import load_detector, serve_function
from dupr_tf.errors import RunFailed, UserError
from dupr_tf.text import count_text
from dupr_tf.weights.export import bytes_wanted, check_finite, manifest_facts, write_export
from dupr_tf.weights.model_card import NO_LICENSE, card_text, origin
from dupr_tf.weights.paths import export_output
from dupr_tf.weights.verify import SIZES, TOLERANCE, Check, Written

SETTINGS = ("score_threshold", "nms_iou", "max_detections", "image_size", "test_short_side", "max_long_side")
CELL = 16  # px of a colour in the random images; detectors see objects in patches rather than in noise
READING = {
    "saved_model": 'serve = tf.saved_model.load("<this directory>").serve\ndetections = serve(images)',
    "onnx": """session = onnxruntime.InferenceSession("detector.onnx")
names = [output.name for output in session.get_outputs()]
detections = dict(zip(names, session.run(names, {"images": images})))
labels = json.loads(session.get_modelmeta().custom_metadata_map["class_names"])""",
    "litert": """run = tf.lite.Interpreter("detector.tflite").get_signature_runner()
detections = run(images=images)  # one image""",
}


def export_file(path, to, output, image=None, overwrite=False, license=None):
    """Writes a saved detector for another runtime, with preprocessing and suppression inside.

    Two images go through the detector and through the written file in its runtime, and the detections are compared one
    by one. The directory also gets `labels.txt`, `detector.json` (classes, thresholds, sizes), a model card and a
    manifest.

    Args:
        path: a `detector.keras`, or the folder of `finetune`.
        to: a key of `DETECTOR_EXPORTS`.
        output: the directory to create.
        image: a photo to compare on. Default: two random images, with even and with odd sides.
        overwrite: replace `output` if it is an earlier export.
        license: license of the weights, for the model card.

    Returns:
        The path of the directory.

    Raises:
        UserError: there is no such detector or format, an extra is missing, the detector cannot have this format, or
            the output exists.
        RunFailed: the detections differ, or the disk is full. `output` is then absent, or unchanged if it existed.
    """
    write, output = DETECTOR_EXPORTS.load(to), export_output(output, overwrite)
    images = random_images() if image is None else [read_photo(image)]
    detector = load_detector(path)
    if to in detector.NOT_EXPORTED:
        raise UserError("--to", f"{detector.name} cannot become {to}: {detector.NOT_EXPORTED[to]}.", "Use saved_model.")
    check_finite(detector, can_allow=False)
    description = describe(detector) | {"suggested_threshold": suggested_score(detector_file(path))}

    def fill(directory):
        against, run = write(detector, directory, description)
        (directory / LABELS_FILE).write_text("\n".join(detector.class_names) + "\n", encoding="utf-8")
        (directory / DESCRIPTION_FILE).write_text(json.dumps(description, indent=2, ensure_ascii=False), "utf-8")
        written = compare_runtimes(detector, against, run, images)
        _check(written, to, output)
        (directory / "model_card.md").write_text(_card(detector, to, written, description, license), encoding="utf-8")
        return manifest_facts(to, written)

    return write_export(output, bytes_wanted(detector), fill)


def describe(detector) -> dict:
    """Returns the metadata of an export: name, class names, and those of `SETTINGS` that the detector has."""
    settings = {name: getattr(detector, name) for name in SETTINGS if hasattr(detector, name)}
    return {"name": detector.name, "class_names": list(detector.class_names), **settings}


def random_images() -> list:
    """Returns images of an even and of an odd size, (H, W, 3) uint8, of noisy patches of random colours."""
    rng, images = np.random.default_rng(0), []
    for height, width in SIZES:
        height, width = 2 * height - height % 2, 2 * width - width % 2
        colours = rng.integers(20, 236, (-(-height // CELL), -(-width // CELL), 3))
        plain = colours.repeat(CELL, 0).repeat(CELL, 1)[:height, :width]
        # Without noise, equal patches would have equal scores, whose order differs between runtimes.
        images.append((plain + rng.integers(-20, 20, plain.shape)).astype(np.uint8))
    return images


def compare_runtimes(detector, against, run, images) -> Written:
    """Compares a detector in TensorFlow with a written file.

    Args:
        detector: the detector in memory.
        against: name and version of the runtime.
        run: function from images (1, H, W, 3) uint8 to {output: array}.
        images: (H, W, 3) uint8 each.

    Returns:
        A `Written`; its checks have the outputs as levels.
    """
    serve, checks, total = serve_function(detector), [], 0
    for image in images:
        expected = {name: value.numpy() for name, value in serve(tf.constant(image[None])).items()}
        received, size = run(image[None]), "×".join(map(str, image.shape[1::-1]))
        if task_of(detector) == "segments":
            share = float(np.mean(expected["segments"] != received["segments"]))
            checks.append(Check(against, size, "segments", share, 1.0, True))
            continue
        count = int(expected["num_detections"][0])
        total += count
        scales = {"boxes": float(max(image.shape[:2])), "scores": 1.0, "masks": 1.0}
        differences = compare_detections(expected, received, detector.score_threshold, detector.max_detections)
        checks += [
            Check(against, f"{size}, {count} detections", name, value, scales[name], True)
            for name, value in differences.items()
        ]
    empty = task_of(detector) != "segments" and total == 0
    photo = "Pass --image PHOTO with objects" if len(images) > 1 else "Pass another --image"
    missing = f"detections, since the detector finds none in {count_text(len(images), 'image')}. {photo}"
    return Written(checks, [missing] if empty else [])


def compare_detections(expected, received, score_threshold, max_detections) -> dict[str, float]:
    """Compares two sets of detections of an image one by one.

    A detection is compared with the nearest box of its class on the other side, in both directions. It may be missing
    there if its score lies at the threshold, or at the limit on their number, within the tolerance.

    Args:
        expected, received: {"boxes": (1, K, 4), "classes", "scores": (1, K), "num_detections": (1,)}, and masks.
        score_threshold, max_detections: the detector's.

    Returns:
        {output: largest absolute difference} of boxes, px, scores and masks; infinite if a detection is missing.
    """
    one, other = (
        {name: value[0][: int(side["num_detections"][0])] for name, value in side.items() if name != "num_detections"}
        for side in (expected, received)
    )
    worst = dict.fromkeys(("boxes", "scores", *(["masks"] if "masks" in one else [])), 0.0)
    for ours, theirs in ((one, other), (other, one)):
        floor = ours["scores"].min() if len(ours["scores"]) == max_detections else score_threshold
        rows = np.flatnonzero(ours["scores"] > floor + TOLERANCE)
        if not len(rows):
            continue
        if not len(theirs["scores"]):
            return dict.fromkeys(worst, float("inf"))
        apart = np.abs(ours["boxes"][rows, None] - theirs["boxes"][None]).max(-1)  # (rows, K)
        apart[ours["classes"][rows, None] != theirs["classes"][None]] = np.inf
        # Equal boxes of a class do not survive suppression; scores tell those apart that are nearly equal.
        nearest = (apart + np.abs(ours["scores"][rows, None] - theirs["scores"][None])).argmin(1)
        worst["boxes"] = max(worst["boxes"], float(apart[np.arange(len(rows)), nearest].max()))
        for name in set(worst) - {"boxes"}:
            worst[name] = max(worst[name], float(np.abs(ours[name][rows] - theirs[name][nearest]).max()))
    return worst


def _check(written, to, output):
    worst = written.worst()
    if not worst.relative <= TOLERANCE:
        raise RunFailed(
            f"The {worst.level} of the {to} export differ from the detector's by {worst.difference:.2e} on an image of "
            f"{worst.image} in {worst.against}; at most {TOLERANCE * worst.scale:.2e} is allowed. This is a defect, "
            f"please report it; {output} was not written."
        )


def _card(detector, to, written, description, license):
    worst, against = written.worst(), written.checks[0].against
    result = f"largest difference {worst.difference:.1e} of {worst.level} ({worst.image})"
    if written.not_compared:
        result = "it runs, but no detection was compared, since the detector found none"
    rows = {
        "licence of the weights": license or NO_LICENSE,
        "detector": f"{type(detector).__name__} `{detector.name}`, {len(detector.class_names)} classes",
        "parameters": f"{sum(int(np.prod(variable.shape)) for variable in detector.weights):,}",
        "input": f"`images`, uint8 RGB ({'1' if to == 'litert' else 'B'}, H, W, 3), any size; scaled inside",
        "output": ", ".join(dict.fromkeys(check.level for check in written.checks)) + ", in pixels of the input",
        **{name: value for name, value in description.items() if name in SETTINGS},
        "verified": f"in {against}; {result}",
        **origin({}),
    }
    return card_text(f"{detector.name} ({to})", "A detector written by `dupr_tf`.", rows, READING[to])
