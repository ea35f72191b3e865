"""The command that lists the available names."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Literal

import tyro

from dupr_tf.commands.screen import print_table
from dupr_tf.registry import Entry, Registry

# Kind -> location of its registry. None of these modules imports TensorFlow.
REGISTRIES = {
    "backbones": "dupr_tf.config.backbones:BACKBONES",
    "terms": "dupr_tf.config.terms:TERMS",
    "detectors": "dupr_tf.config.detectors:DETECTORS",
    "photos": "dupr_tf.data.layouts:FOLDERS",
    "sources": "dupr_tf.data.layouts:SOURCES",
    "boxes": "dupr_tf.data.layouts:BOXES",
    "pixels": "dupr_tf.data.layouts:PIXELS",
    "outputs": "dupr_tf.detection.outputs:OUTPUTS",
    "features": "dupr_tf.probing.feature_files:FEATURE_FILES",
    "probes": "dupr_tf.config.probes:PROBES",
    "weights": "dupr_tf.weights.catalogue:CATALOGUE",
    "exports": "dupr_tf.weights.formats:EXPORTS",
    "detector_exports": "dupr_tf.detection.formats:DETECTOR_EXPORTS",
}


@dataclasses.dataclass
class List:
    """List the names that a config or a flag accepts.

    They are backbones, terms, detectors, layouts of data, formats of predictions and features, probes, public weights
    and exports.
    """

    EXAMPLE = "dupr-tf list backbones"

    kind: tyro.conf.Positional[Literal[tuple(REGISTRIES)] | None] = None
    """Kind to list. Default: all."""

    def run(self, overrides: dict[str, str]) -> None:
        for kind in [self.kind] if self.kind else REGISTRIES:
            registry = load_registry(kind)
            print_table((f"{kind} ({registry.field})", "what it is", "needs"), rows_of(registry))
            print()


def load_registry(kind: str) -> Registry:
    """Loads the registry of a kind, a key of `REGISTRIES`."""
    module, _, name = REGISTRIES[kind].partition(":")
    return getattr(importlib.import_module(module), name)


def rows_of(registry: Registry) -> list[tuple[str, str, str]]:
    """Returns (name, summary, required packages) of each entry."""
    return [(name, entry.summary, _needs(entry)) for name, entry in registry.items()]


def _needs(entry: Entry) -> str:
    if not entry.modules:
        return ""
    state = f"missing: {', '.join(entry.missing)}" if entry.missing else "installed"
    return f"dupr_tf[{entry.extra}] ({state})"
