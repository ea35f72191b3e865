"""Trains models: the pre-training run, its optimiser, checkpoints and callbacks."""
