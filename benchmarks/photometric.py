"""MoCo v2's colours and blur on a batch of 224 px, one core: ours, and two other libraries image by image."""

from benchmarks.contest import Case
from benchmarks.input import contestants

OPTIONS = {"count": 64, "size": 224}
PEERS = ("torchvision_photometric", "albumentations_photometric")


def cases(_data):
    return [
        Case("photometric: 224 px", "images/s", contestants(OPTIONS, "input_ours:photometric", *PEERS), cores=1),
    ]
