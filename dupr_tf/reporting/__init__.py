"""The report of runs on one page (`page`), and the checks before a run (`doctor`).

Reading, charts and the page import no TensorFlow. Sample views and predictions do, when they are requested.
"""
