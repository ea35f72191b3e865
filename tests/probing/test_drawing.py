"""Tests that names of weights, such as those of folders, can be drawn, however odd or long they are."""

import warnings

import numpy as np
import pytest

from dupr_tf.probing.drawing import paper, sensitivity_picture, write
from tests.odd_names import ODD, PARTS

CURVE = {"iou": [0.1, 0.5, 0.9], "mean": [0.1, 0.5, 0.9], "std": [0.1, 0.1, 0.1], "slope": 1.0}


@pytest.mark.parametrize("name", [*PARTS, ODD, "_hidden"], ids=ascii)
def test_odd_label_is_drawn_beside_its_curve(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a layout that has no place for the plot
        warnings.filterwarnings("ignore", message="Glyph")  # the font lacks a character
        picture = np.asarray(sensitivity_picture({name: CURVE, "other": CURVE}))
    plain = np.asarray(sensitivity_picture({"a": CURVE, "other": CURVE}))
    assert picture.shape == plain.shape and (picture != plain).any()


@pytest.mark.parametrize("name", [*PARTS, ODD], ids=ascii)
def test_odd_label_is_written_on_a_sheet(name):
    sheet, draw = paper(400, 60)
    write(draw, (4, 4), name, 14)
    assert (np.asarray(sheet) < 100).any()
