"""Faster R-CNN and Mask R-CNN, with a feature pyramid or on res4."""
