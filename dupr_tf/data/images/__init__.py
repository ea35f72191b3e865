"""Lists, decodes and resizes image files, and records those that cannot be used."""
