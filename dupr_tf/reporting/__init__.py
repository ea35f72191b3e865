"""Reports runs on one HTML page (`page`).

Reading, charts and the page import no TensorFlow. Sample views and predictions do, when they are requested.
"""
