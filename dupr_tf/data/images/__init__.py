"""Image files: listing, decoding, and what to do with unusable ones. Nothing imports TensorFlow."""
