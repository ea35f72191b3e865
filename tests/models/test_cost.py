"""The counted operations against published ones, and against a count by hand."""

import pytest

from dupr_tf.models import DUPR, build_backbone
from dupr_tf.models.cost import step_flops


def model(architecture, **settings):
    return DUPR(build_backbone(architecture), bank_size=512, **settings)


@pytest.mark.parametrize(
    ("architecture", "multiplications"),
    [("resnet18", 1.814e9), pytest.param("resnet50", 4.087e9, marks=pytest.mark.slow)],
)
def test_convolutions_are_the_published_ones(architecture, multiplications):
    """torchvision's table has 1.814 and 4.089 GFLOPS for 224 px, the classifier's 0.0005 and 0.002 among them."""
    counted = step_flops(model(architecture), 224, batch=1)["convolutions"]
    stem = 112 * 112 * 64 * 7 * 7 * 3
    assert counted == pytest.approx(2 * (4 * multiplications - stem), rel=1e-3)


def test_heads_and_losses_by_hand():
    only_p5 = model("resnet18", image_weights=(0, 0, 0, 1), patch_weights=(0, 0, 0, 1), roi_sizes=(8, 4, 2, 3))
    counted = step_flops(only_p5, 96, batch=5)
    head = 2 * (512 * 512 + 512 * 128)
    assert counted["heads"] == 5 * 4 * (1 + 9) * head
    assert counted["losses"] == 5 * 2 * (1 + 9) * 2 * 512 * 128
