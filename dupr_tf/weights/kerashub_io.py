"""Converts ResNets to and from KerasHub's `ResNetBackbone`, and writes presets. Needs the extra `kerashub`."""

from dupr_tf.errors import UserError
from dupr_tf.models.resnet import IMAGENET_MEAN, IMAGENET_STD, block_and_depths, stage_channels
from dupr_tf.weights.formats import EXPORTS
from dupr_tf.weights.names import architecture_of, assign_arrays, named_arrays
from dupr_tf.weights.verify import Written, check_images, compare, features, float32_twin, normalized

BLOCKS = {"basic": "basic_block", "bottleneck": "bottleneck_block"}


def to_keras_hub(backbone):
    """Return `keras_hub.models.ResNetBackbone` with the weights of a `ResNetBackbone` of width 1, in float32.

    Its images must be normalised already, even if `backbone` normalises them itself.

    Raises:
        UserError: for another model or width, or if KerasHub is not installed.
    """
    EXPORTS.check("kerashub")
    import keras_hub

    architecture = architecture_of(backbone)
    if backbone.width != 1:
        raise UserError(
            "backbone",
            f"Expected width 1 for kerashub, received {backbone.width:g}.",
            "KerasHub's ResNet has no other width; its detectors take the export to kerascv or keras too.",
        )
    block, depths = block_and_depths(architecture)
    model = keras_hub.models.ResNetBackbone(
        input_conv_filters=[stage_channels(1)[0]],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=list(stage_channels(1)),
        stackwise_num_blocks=list(depths),
        stackwise_num_strides=[1, 2, 2, 2],
        block_type=BLOCKS[block],
        name=architecture,
        dtype="float32",
    )
    assign_arrays(model, architecture, named_arrays(backbone, "kerashub"), "kerashub", target="kerashub")
    return model


def write_kerashub(backbone, directory):
    """Write a preset: the backbone, and the image converter that normalises as it was trained.

    Args:
        backbone: a `ResNetBackbone` of width 1.
        directory: an existing, empty directory, which `from_preset` takes afterwards.

    Returns:
        A `Written` that compares the preset, loaded by KerasHub, on the same images. The second comparison is of
            raw images through the preset's converter.
    """
    model = to_keras_hub(backbone)
    import keras_hub

    model.save_to_preset(str(directory))
    converter = keras_hub.layers.ResNetImageConverter(
        scale=[1 / std for std in IMAGENET_STD],
        offset=[-mean / std for mean, std in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)],
        crop_to_aspect_ratio=False,
    )
    converter.save_to_preset(str(directory))
    loaded = keras_hub.models.ResNetBackbone.from_preset(str(directory))
    convert = keras_hub.layers.ResNetImageConverter.from_preset(str(directory))
    twin, version = float32_twin(backbone), keras_hub.__version__
    plain = compare(
        f"KerasHub {version}",
        lambda x: features(twin, x),
        lambda x: features(loaded, x),
        lambda size: normalized(check_images(size)),
    )
    raw = compare(
        f"KerasHub {version} with its image converter",
        lambda x: features(twin, normalized(x)),
        lambda x: features(loaded, convert(x)),
    )
    return Written(plain + raw)
