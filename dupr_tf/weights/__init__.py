"""Reads and writes weights of Keras, SavedModel, ONNX, torchvision, timm, detectron2, KerasHub and KerasCV."""
