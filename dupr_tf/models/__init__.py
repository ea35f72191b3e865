"""Defines the trained parts: backbones, heads, encoders, memory banks and the DUPR model."""

from dupr_tf.environment import set_keras
from dupr_tf.models.dupr import DUPR
from dupr_tf.models.encoder import Encoder
from dupr_tf.models.heads import ProjectionHead
from dupr_tf.models.memory_bank import MemoryBank
from dupr_tf.models.resnet import ResNetBackbone, build_backbone, pyramid

__all__ = ["DUPR", "Encoder", "MemoryBank", "ProjectionHead", "ResNetBackbone", "build_backbone", "pyramid"]

set_keras()  # before any model is built
