"""What runs did, on one page (`page`), and what to expect of a machine, a folder and a config (`doctor`).

Reading, charts and the page import no TensorFlow; sample views and predictions do, where they are wanted.
"""
