"""Sets TF_CONFIG for the workers of a run from the launcher's variables. Nothing here imports TensorFlow."""
