"""Image files: listing, decoding, resizing, and those that cannot be used."""
