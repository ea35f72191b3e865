"""Image files: lists them, decodes them, and keeps a list of those that cannot be used. Imports no TensorFlow."""
