"""Probes frozen backbones: classification, and measures of how well features distinguish places.

A probe takes features or a backbone and returns plain dicts of numbers, ready for JSON. Drawing is separate.
"""
