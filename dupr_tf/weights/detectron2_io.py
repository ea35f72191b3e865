"""Writes ResNets as the `.pkl` file that detectron2 takes in `MODEL.WEIGHTS`.

Files are only written. Reading a pickle from elsewhere can run any code, so nothing here reads one. A written file is
checked by listing its opcodes, which runs nothing.

NumPy 2 pickles arrays with the name `numpy._core`, which NumPy before 1.26 does not have. The name is therefore
replaced by `numpy.core`, which both have.
"""

import io
import logging
import pickle
import pickletools
from pathlib import Path

import numpy as np

from dupr_tf.errors import UserError
from dupr_tf.weights.names import torch_arrays
from dupr_tf.weights.torch_export import reread_checks
from dupr_tf.weights.verify import Written, check_arrays

log = logging.getLogger(__name__)

AUTHOR = "dupr_tf"
DETECTRON2_FILE = "backbone.pkl"

README = """# {name} for detectron2

`{file}` holds the backbone under detectron2's own names ({arrays} arrays, float32). Set in a config:

```yaml
MODEL:
  WEIGHTS: "{file}"
  PIXEL_MEAN: [123.675, 116.28, 103.53]
  PIXEL_STD: [58.395, 57.12, 57.375]
  BACKBONE:
    FREEZE_AT: 0
  RESNETS:
    DEPTH: {depth}
    STRIDE_IN_1X1: False
    NORM: "SyncBN"{extra}
INPUT:
  FORMAT: "RGB"
```

- For FPN models add `MODEL.FPN.NORM: "SyncBN"`. In a single process, `SyncBN` computes the same as `BN`.{heads}
- `STRIDE_IN_1X1: False` and `FORMAT: "RGB"` are not detectron2's defaults. With the defaults the weights load
  without complaint and compute something else.
- The envelope says `matching_heuristics: True`: detectron2 finds the arrays by suffix, with or without
  `backbone.bottom_up.` before them. Its log lists what it did not find: for a detector, the heads alone.
- Nothing is frozen (`FREEZE_AT: 0`): every norm is trained, as in the recipes of MoCo and DetCo. Their C4
  models also put a norm after res5 in the box head, since pre-trained features come at another scale than
  ImageNet's.
"""


def write_detectron2(model, path):
    """Write a `ResNetBackbone` as a detectron2 checkpoint, and a `README.md` with its config next to it.

    Args:
        model: a `ResNetBackbone` of any depth; width 1 for detectron2's own configs.
        path: the file to write, ending in `.pkl` (detectron2 chooses its reader by the ending).

    Raises:
        UserError: for another ending, or a model that has no detectron2 names.
    """
    path = Path(path)
    if path.suffix != ".pkl":
        raise UserError(
            "path", f"Expected a name ending in .pkl, received {path}.", "detectron2 reads it by its ending."
        )
    arrays = {name: np.ascontiguousarray(array, "<f4") for name, array in torch_arrays(model, "detectron2").items()}
    # Without __author__ detectron2 rejects the file; without matching_heuristics an FPN model loads nothing.
    checkpoint = {"model": arrays, "__author__": AUTHOR, "matching_heuristics": True}
    path.write_bytes(_pickled(checkpoint))
    path.with_name("README.md").write_text(_readme(model, path.name, len(arrays)), encoding="utf-8")


def write_detectron2_directory(backbone, directory):
    """Write `backbone.pkl` and `README.md`; compare the arrays to the last bit, and the features computed from them.

    Args:
        backbone: a `ResNetBackbone`.
        directory: an existing, empty directory.

    Returns:
        A `Written` that compares a backbone made from the file's arrays on the same images. detectron2 is not run.
    """
    path = directory / DETECTRON2_FILE
    write_detectron2(backbone, path)
    arrays = list_arrays(path)
    check_arrays(torch_arrays(backbone, "detectron2"), arrays, path.name)
    checks = reread_checks(backbone, arrays, "detectron2", f"{path.name}, read again")
    return Written(checks, ["detectron2: exports do not run it"])


def list_arrays(path):
    """Return `{name: array}` of a file written by `write_detectron2`, from its opcodes; no pickle is loaded."""
    arrays, name, text, integers, shape = {}, None, None, [], None
    for opcode, argument, _ in pickletools.genops(Path(path).read_bytes()):
        if opcode.name == "BINUNICODE":
            text = argument
        elif opcode.name == "GLOBAL" and argument.endswith("_reconstruct"):
            name, shape = text, None  # the string before an array is its key
        elif opcode.name == "REDUCE":
            integers = []
        elif opcode.name.startswith("BININT"):
            integers.append(argument)
        elif opcode.name == "GLOBAL" and argument == "numpy dtype":
            shape = integers[1:]  # before the dtype comes a version, then the shape
        elif opcode.name.endswith("BINBYTES") and shape is not None:
            arrays[name] = np.frombuffer(argument, "<f4").reshape(shape)
    return arrays


def _readme(model, file, arrays):
    depth = int(model.architecture.removeprefix("resnet"))
    extra = heads = ""
    stem = model.get_layer("conv1_bn").gamma.shape[0]
    if depth < 50:  # detectron2 requires the channels there; its C4 head builds res5 from bottleneck blocks
        heads = "\n- **FPN only.** The C4 models of detectron2 build another res5, which these weights do not fill."
        extra = f"\n    RES2_OUT_CHANNELS: {stem}"
    elif model.width != 1:
        channels = {"STEM_OUT_CHANNELS": stem, "WIDTH_PER_GROUP": stem, "RES2_OUT_CHANNELS": 4 * stem}
        extra = "".join(f"\n    {name}: {count}" for name, count in channels.items())
    text = README.format(name=model.architecture, file=file, arrays=arrays, depth=depth, extra=extra, heads=heads)
    if model.width != 1:
        text += f"- It is {model.width:g} times as wide as detectron2's own.\n"
        if depth < 50:
            text += "- **detectron2 refuses it**: it builds ResNet-18 and ResNet-34 with 64 channels in res2 only.\n"
            log.warning("detectron2 builds ResNet-18 and ResNet-34 of width 1 only, and does not load these weights")
    return text


def _pickled(checkpoint):
    """Pickles strings, bools, dicts and arrays as NumPy 1 does, with protocol 3. No byte of an array is replaced."""
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, 3)
    pickler.fast = True  # without references to earlier objects, which `list_arrays` does not resolve
    pickler.dump(checkpoint)
    data, parts, start = buffer.getvalue(), [], 0
    for opcode, argument, place in pickletools.genops(data):
        if opcode.name == "GLOBAL" and argument == "numpy._core.multiarray _reconstruct":
            parts += [data[start:place], b"cnumpy.core.multiarray\n"]
            start = place + len(b"cnumpy._core.multiarray\n")
    return b"".join([*parts, data[start:]])
