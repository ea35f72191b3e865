"""Defines the schema of an experiment: sections, fields, ranges, cross-field rules, derived values.

Nothing here imports TensorFlow: a config is checked, and every mistake reported, before the slow imports start.
Defaults are the paper's (docs/method.md, Overview).
"""

from dupr_tf.config.backbones import BACKBONES
from dupr_tf.config.detector import DetectorConfig
from dupr_tf.config.experiment import Config
from dupr_tf.config.probing import PROBED_LEVELS, LinearConfig, ProbingConfig
from dupr_tf.config.reading import dump_config, field_rows, list_fields, load_config, parse_config
from dupr_tf.config.sections import (
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
    ViewsConfig,
)
from dupr_tf.config.terms import LEVELS, STRIDE_OF, TERMS

__all__ = [
    "BACKBONES",
    "LEVELS",
    "PROBED_LEVELS",
    "STRIDE_OF",
    "TERMS",
    "Config",
    "DataConfig",
    "DetectorConfig",
    "LinearConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ProbingConfig",
    "TrainConfig",
    "ViewsConfig",
    "dump_config",
    "field_rows",
    "list_fields",
    "load_config",
    "parse_config",
]
