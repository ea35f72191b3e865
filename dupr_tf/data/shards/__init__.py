"""Packed images: ArrayRecord files, the names beside them, and a manifest."""
