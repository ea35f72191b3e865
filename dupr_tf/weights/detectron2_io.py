"""Writes ResNets as the `.pkl` file that detectron2 takes in `MODEL.WEIGHTS`.

Files are only written. Reading a pickle from elsewhere can run any code, so nothing here reads one. A written file is
checked by listing its opcodes, which runs nothing.

The pickle is written opcode by opcode, because NumPy 2 would write the name `numpy._core`, which NumPy before 1.26 does
not have. The result equals that of `pickle.dump(…, protocol=3)` under NumPy 1: strings, a bool, one dict in another,
and float32 arrays.
"""

import logging
import pickle
import pickletools
import struct
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
    arrays = torch_arrays(model, "detectron2")
    # Without __author__ detectron2 rejects the file; without matching_heuristics an FPN model loads nothing.
    checkpoint = {"model": arrays, "__author__": AUTHOR, "matching_heuristics": True}
    with path.open("wb") as file:
        file.write(pickle.PROTO + b"\x03")
        _write_object(file, checkpoint)
        file.write(pickle.STOP)
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
    arrays, name, text, integers, shape = {}, None, None, [], ()
    for opcode, argument, _ in pickletools.genops(Path(path).read_bytes()):
        if opcode.name == "BINUNICODE":
            text = argument
        elif opcode.name == "GLOBAL" and argument.endswith("_reconstruct"):
            name = text  # the string before an array is its key
        elif opcode.name == "MARK":
            integers = []
        elif opcode.name == "BININT":
            integers.append(argument)
        elif opcode.name == "GLOBAL" and argument == "numpy dtype":
            shape = tuple(integers)  # the tuple before the dtype
        elif opcode.name == "BINBYTES":
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


def _write_object(file, value):
    """Write one value of the checkpoint: a dict with string keys, a string, a bool or a float32 array."""
    if isinstance(value, dict):
        file.write(pickle.EMPTY_DICT + pickle.MARK)
        for key, item in value.items():
            _write_object(file, key)
            _write_object(file, item)
        file.write(pickle.SETITEMS)
    elif isinstance(value, str):
        encoded = value.encode("utf-8")
        file.write(pickle.BINUNICODE + struct.pack("<I", len(encoded)) + encoded)
    elif isinstance(value, bool):
        file.write(pickle.NEWTRUE if value else pickle.NEWFALSE)
    else:
        _write_array(file, value)


def _write_array(file, array):
    """Write `numpy.core.multiarray._reconstruct(ndarray, (0,), b"b")` and the state that fills it."""
    data = np.ascontiguousarray(array, dtype="<f4")
    file.write(_global("numpy.core.multiarray", "_reconstruct") + _global("numpy", "ndarray"))
    file.write(_integer(0) + pickle.TUPLE1 + _short_bytes(b"b") + pickle.TUPLE3 + pickle.REDUCE)
    shape = pickle.MARK + b"".join(_integer(size) for size in data.shape) + pickle.TUPLE
    file.write(pickle.MARK + _integer(1) + shape + _float32() + pickle.NEWFALSE)
    file.write(pickle.BINBYTES + struct.pack("<I", data.nbytes))
    file.write(data.tobytes())
    file.write(pickle.TUPLE + pickle.BUILD)


def _float32():
    """Returns opcodes for `numpy.dtype("f4", False, True)` and its state (version 3, little-endian, no fields)."""
    new = _global("numpy", "dtype") + pickle.BINUNICODE + struct.pack("<I", 2) + b"f4"
    new += pickle.NEWFALSE + pickle.NEWTRUE + pickle.TUPLE3 + pickle.REDUCE
    order = pickle.BINUNICODE + struct.pack("<I", 1) + b"<"
    state = _integer(3) + order + 3 * pickle.NONE + _integer(-1) + _integer(-1) + _integer(0)
    return new + pickle.MARK + state + pickle.TUPLE + pickle.BUILD


def _global(module, name):
    return pickle.GLOBAL + f"{module}\n{name}\n".encode("ascii")


def _integer(value):
    return pickle.BININT + struct.pack("<i", value)


def _short_bytes(value):
    return pickle.SHORT_BINBYTES + bytes([len(value)]) + value
