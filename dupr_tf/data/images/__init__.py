"""Image files: listing them, decoding them, and what to do with those that cannot be used. Nothing imports TensorFlow."""
