"""Packs images into ArrayRecord files with lists of names and a manifest, and reads them."""
