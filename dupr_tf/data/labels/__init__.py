"""Reads labels of images: boxes, masks of objects, classes of pixels. Each layout has its own file."""
