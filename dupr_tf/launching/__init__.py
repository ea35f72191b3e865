"""Telling the workers of a run of each other: TF_CONFIG from what started them. Nothing here imports TensorFlow."""
