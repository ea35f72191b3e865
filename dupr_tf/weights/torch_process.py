"""Runs PyTorch's part of an export in a separate program, because PyTorch and TensorFlow can crash each other.

(Seen with torch 2.14 and TensorFlow 2.21: torchvision imports triton, which causes a segmentation fault once TensorFlow
is loaded.) The program imports nothing of this package. `ask` in `torch_export` calls it with one JSON argument:

    {"task": "pth", "weights": safetensors file, "output": .pth file}
    {"task": "torchvision" or "timm", "architecture": …, "weights": file, "images": npz file, "output": npz file}

It prints one line of JSON, `{"version": …, "missing": […], "unexpected": […]}`, or `{"unavailable": reason}`.
"""

import json
import sys
from pathlib import Path

import numpy as np

LEVELS = ("P2", "P3", "P4", "P5")


def main(job):
    """Run one job and return the result to print."""
    try:
        import torch

        library = __import__("torch" if job["task"] == "pth" else job["task"])
    except Exception as error:  # a broken installation can raise any error
        return {"unavailable": f"{type(error).__name__}: {error}"}
    answer = {"version": library.__version__.split("+")[0], "missing": [], "unexpected": []}
    if job["task"] == "pth":
        return answer | _write_pth(job)
    levels, gaps = {"torchvision": _torchvision, "timm": _timm}[job["task"]](job)
    maps = {}
    with np.load(job["images"], allow_pickle=False) as images, torch.no_grad():
        for name in images.files:
            x = torch.from_numpy(np.ascontiguousarray(images[name].transpose(0, 3, 1, 2)))  # (B, C, H, W)
            for level, value in zip(LEVELS, levels(x), strict=True):
                maps[f"{name} {level}"] = value.numpy().transpose(0, 2, 3, 1)
    np.savez(job["output"], **maps)
    return answer | gaps


def _write_pth(job):
    """Write the state dict with `torch.save`, and read it as users should: tensors only."""
    import torch
    from safetensors.torch import load_file

    state = load_file(job["weights"])
    torch.save(state, job["output"])
    read = torch.load(job["output"], map_location="cpu", weights_only=True)
    different = [name for name in state if name in read and not _same(state[name], read[name])]
    return {"missing": sorted(set(state) - set(read)) + different, "unexpected": sorted(set(read) - set(state))}


def _same(a, b):
    return a.dtype == b.dtype and np.array_equal(a.numpy(), b.numpy(), equal_nan=True)


def _torchvision(job):
    """Build torchvision's ResNet with the weights; return a function to its four levels, and the unmatched names."""
    import torchvision
    from safetensors.torch import load_file

    model = getattr(torchvision.models, job["architecture"])(weights=None).eval()
    result = model.load_state_dict(load_file(job["weights"]), strict=False)

    def levels(x):
        x = model.maxpool(model.relu(model.bn1(model.conv1(x))))
        for layer in (model.layer1, model.layer2, model.layer3, model.layer4):
            x = layer(x)
            yield x

    counters = ".num_batches_tracked"
    missing = [name for name in result.missing_keys if not name.startswith("fc.") and not name.endswith(counters)]
    return levels, {"missing": missing, "unexpected": list(result.unexpected_keys)}


def _timm(job):
    """Build timm's ResNet from the file and from the directory; return a function, and the unmatched names."""
    import timm

    weights = Path(job["weights"])
    plain = timm.create_model(job["architecture"], num_classes=0)
    result = timm.models.load_checkpoint(plain, str(weights), strict=False)
    # Strict, as in the model card.
    timm.create_model(job["architecture"], num_classes=0, checkpoint_path=str(weights))
    model = timm.create_model(
        f"local-dir:{weights.parent}", pretrained=True, features_only=True, out_indices=(1, 2, 3, 4)
    ).eval()
    missing = [name for name in result.missing_keys if not name.endswith(".num_batches_tracked")]
    return model, {"missing": missing, "unexpected": list(result.unexpected_keys)}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
