"""Lists the probes: the function that runs each, and the numbers that a pre-training run logs.

A new probe is one new file below `probing/`, a line here and its flags in `commands/probe.py`. Its function takes the
backbones, the data and keyword arguments, and returns `Findings`. A line has these facts if the probe can run in
training, and none otherwise:

    takes: fields of the section `probing`, or "seed", that the function takes by the same name; queries are images.
    logs: numbers of its findings that are logged.
"""

from __future__ import annotations

from dupr_tf.registry import Entry, Registry

PROBE_METRICS = {"knn": "top1", "svm": "mAP"}  # probes that `compare` takes, and their scores

PROBES = Registry(
    "probe",
    "probing.probes",
    {
        "knn": Entry(
            "dupr_tf.probing.protocols:probe_knn",
            "classes by the nearest training images",
            facts={"takes": ("image_size",), "logs": ("top1",)},
        ),
        "linear": Entry("dupr_tf.probing.protocols:probe_linear", "classes by a linear classifier"),
        "svm": Entry("dupr_tf.probing.protocols:probe_svm", "classes of objects by a linear SVM for each"),
        "sensitivity": Entry(
            "dupr_tf.probing.protocols:probe_sensitivity", "similarity of boxes to an object by their IoU (eq. 8)"
        ),
        "matching": Entry(
            "dupr_tf.probing.protocols:probe_matching",
            "cells of two views matched by their features",
            facts={"takes": ("images", "image_size", "seed"), "logs": ("pck_1", "pck_2")},
        ),
        "affinity": Entry(
            "dupr_tf.probing.protocols:probe_affinity",
            "affinity of the places of an object in two views (eq. 9)",
            facts={"takes": ("images", "image_size", "seed"), "logs": ("diagonal", "within_1")},
        ),
        "retrieval": Entry(
            "dupr_tf.probing.protocols:probe_retrieval",
            "nearest images, and whether they show objects in the same place",
            facts={"takes": ("images", "queries", "image_size"), "logs": ("alignment", "same_class")},
        ),
    },
)
