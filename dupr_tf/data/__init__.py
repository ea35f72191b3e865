"""Files in, batches out. Knows nothing of models."""
