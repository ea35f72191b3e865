"""Weights in and out: torchvision, detectron2, SavedModel, Keras. Importing `names` loads no TensorFlow."""
