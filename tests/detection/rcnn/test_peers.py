"""Compares Faster and Mask R-CNN with torchvision's (pyramid) and detectron2's (res4), where these are installed.

Both libraries have the same weights (those of the backbone by `export`), batch and samples. Losses, gradients,
proposals and detections must be equal. docs/fidelity.md lists the intended differences. `torchvision_process.py` and
`detectron2_process.py` remove them from the other library. tests/scripts/test_detectron2_interop.py says how to install
detectron2; its compiled part is not needed here.

In float32 a unit whose input is zero up to rounding passes its gradient in one library only, which changes gradients of
earlier layers by some percent. Gradients are therefore compared in float64.
"""

from __future__ import annotations

import functools

import pytest

from dupr_tf.weights.formats import installed
from tests.detection.rcnn import peer_detectors, peers
from tests.detection.test_overfit import VOC

pytestmark = pytest.mark.slow
LIBRARIES = {"torchvision": ("fpn", peers.Torchvision), "detectron2": ("c4", peers.Detectron2)}
CASES = (
    ("torchvision", "mask", "noise", "float64"),
    ("torchvision", "mask", "trained", "float32"),
    ("torchvision", "mask", "trained", "float64"),
    ("torchvision", "faster", "trained", "float64"),
    ("detectron2", "mask", "noise", "float64"),
    ("detectron2", "mask", "trained", "float32"),
    ("detectron2", "faster", "noise", "float64"),
)


def case(library, kind, name, dtype):
    missing = [module for module in ("torch", "torchvision", library) if not installed(module)]
    marks = [pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed")]
    if name == "trained":
        marks += [pytest.mark.data, pytest.mark.skipif(not VOC.is_dir(), reason="DUPR_DATA holds no voc07")]
    return pytest.param((library, kind, name, dtype), marks=marks, id=f"{library}-{kind}-{name}-{dtype}")


LOSS = GRADIENT = STATISTICS = SCORE = 1e-4
POOLED = 1e-4
MASK = 1e-3  # of a probability
PIXELS = 1e-2


@functools.cache
def made(kind, neck, name):
    detector, *data = getattr(peer_detectors, name)(kind, neck)
    weights = detector.get_weights()  # a step changes the statistics of norms
    return detector, weights, peer_detectors.as_batch(*data)


@pytest.fixture(scope="module", params=[case(*one) for one in CASES])
def both(request, tmp_path_factory):
    library, kind, name, dtype = request.param
    neck, comparison = LIBRARIES[library]
    detector, weights, batch = made(kind, neck, name)
    detector.set_weights(weights)
    detector = peer_detectors.in_float64(detector) if dtype == "float64" else detector
    return comparison(detector, batch, tmp_path_factory.mktemp(library), dtype)


def test_losses_are_equal(both):
    differences = both.losses(both.theirs)
    assert len(differences) == len(both.detector.loss_names) and max(differences.values()) < LOSS, differences


def test_gradients_are_equal(both):
    if both.dtype == "float32":
        pytest.skip("rounding decides which units close to 0 pass their gradient")
    differences = both.gradients(both.theirs)
    assert max(differences.values()) < GRADIENT, sorted((value, name) for name, value in differences.items())[-9:]


def test_pooled_features_are_equal(both):
    # They are also inputs of the other library, so that rounding does not decide which units pass their gradient.
    assert both.pooled(both.theirs) < POOLED


def test_statistics_of_norms_are_equal(both):
    if both.dtype == "float64":
        pytest.skip("Keras' own norms, which float64 needs, record the biased variance")
    assert max(both.statistics(both.theirs).values()) < STATISTICS


def test_anchors_and_regions_have_equal_labels(both):
    assert both.anchors(both.theirs) < 1e-4
    # torchvision then computes overlaps in float64, where ties of float32 are decided.
    assert both.anchor_labels(both.theirs) <= {"float32": 0, "float64": 5}[both.dtype]
    different, objects = both.region_labels(both.theirs)
    assert different == 0 < objects


def test_proposals_are_equal(both):
    assert both.proposals(both.theirs, training=True) < PIXELS
    assert both.proposals(both.theirs, training=False) < PIXELS


def test_detections_are_equal(both):
    differences, number = both.detections(both.theirs)
    assert number > 20
    assert differences["boxes"] < PIXELS
    assert differences["scores"] < SCORE and differences["masks"] < MASK


INTENDED = {
    "torchvision": ("anchors", "strides", "l1", "half_pixels", "masks"),
    "detectron2": ("samples", "masks"),
}


@pytest.mark.parametrize(
    "both",
    [case("torchvision", "mask", "noise", "float64"), case("detectron2", "mask", "noise", "float64")],
    indirect=True,
)
def test_intended_differences_show_where_they_stay(both):
    for difference in INTENDED[both.library]:
        theirs = both.run(leave=[difference])
        pixels = [
            both.anchors(theirs),
            both.detections(theirs)[0]["boxes"],
            *(both.proposals(theirs, training) for training in (True, False)),
        ]
        assert max(both.losses(theirs).values()) > LOSS or max(pixels) > PIXELS, difference
