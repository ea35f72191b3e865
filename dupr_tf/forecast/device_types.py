"""Lists GPUs with figures from vendors' data sheets. No GPU was available, so nothing here was measured."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class DeviceType:
    """A GPU by its data sheet, without sparsity.

    Args:
        peak: TFLOP/s by `train.precision`. float32 means TF32 if the GPU has it, because TensorFlow then uses it.
        memory: GB.
        bandwidth: bandwidth of that memory, GB/s.
        link: bandwidth to another GPU of the machine, GB/s in one direction.
        source: source of all these.
    """

    peak: dict[str, float]
    memory: float
    bandwidth: float
    link: float
    source: str


PCIE_3, PCIE_4 = 16.0, 32.0  # GB/s of 16 lanes in one direction


def _peaks(float32: float, half: float, bfloat16: bool = True) -> dict[str, float]:
    return {"float32": float32, "float16": half, **({"bfloat16": half} if bfloat16 else {})}


TYPES = {
    "t4": DeviceType(_peaks(8.1, 65, False), 16, 300, PCIE_3, "NVIDIA T4 data sheet; float32 has no TF32"),
    "v100-32gb": DeviceType(_peaks(15.7, 125, False), 32, 900, 150, "NVIDIA V100 SXM2 data sheet; no TF32"),
    "a10": DeviceType(_peaks(62.5, 125), 24, 600, PCIE_4, "NVIDIA A10 data sheet; float32 is TF32"),
    "l4": DeviceType(_peaks(60, 121), 24, 300, PCIE_4, "NVIDIA L4 data sheet, halved (no sparsity); float32 is TF32"),
    "a100-40gb": DeviceType(_peaks(156, 312), 40, 1555, 300, "NVIDIA A100 SXM data sheet; float32 is TF32"),
    "a100-80gb": DeviceType(_peaks(156, 312), 80, 2039, 300, "NVIDIA A100 SXM data sheet; float32 is TF32"),
    "h100": DeviceType(
        _peaks(494, 989), 80, 3350, 450, "NVIDIA H100 SXM data sheet, halved (no sparsity); float32 is TF32"
    ),
}
CPU = "cpu"  # this machine's CPU, measured
NAMES = (*TYPES, CPU)
