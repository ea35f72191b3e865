"""What a backbone knows: classification on frozen features, and probes of how well it tells places apart.

A probe takes features or a backbone and returns plain dicts of numbers (JSON as they are); drawing is apart from that.
"""
