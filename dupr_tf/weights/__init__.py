"""Weights in and out: torchvision, detectron2, SavedModel, Keras. `names` needs no TensorFlow, nor does this."""
