"""The terms of the loss, one class each. `dupr_tf.config.terms.TERMS` lists them."""

from dupr_tf.models.terms.base import Cost, Term, build_terms
from dupr_tf.models.terms.contrast import ImageContrast, PatchContrast

__all__ = ["Cost", "ImageContrast", "PatchContrast", "Term", "build_terms"]
