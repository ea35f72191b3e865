"""Compares backbones by fine-tuning the same detector from each, on shares of the labels, with several seeds."""
