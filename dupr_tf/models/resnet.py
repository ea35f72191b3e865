"""ResNets in torchvision's layout, as feature pyramids.

They follow Deep Residual Learning (He et al., 2016) in its "v1.5" form. The stride is in the 3×3 convolution, padding
is symmetric, and batch normalisation has epsilon 1e-5. With any other choice, torch-trained weights load without an
error but give different features (12–35 % off).

Shapes are NHWC. Level `P2` is conv2_x (stride 4) … `P5` is conv5_x (stride 32). Layer names are KerasHub's.
"""

import math

import keras

from dupr_tf.config import BACKBONES
from dupr_tf.errors import UserError
from dupr_tf.models.cost import BackboneCost
from dupr_tf.models.layers import FusedBatchNormalization, TrainedConv2D

LEVELS = ("P2", "P3", "P4", "P5")
IMAGENET_MEAN = (123.675, 116.28, 103.53)  # RGB, 0–255
IMAGENET_STD = (58.395, 57.12, 57.375)
STAGE_WIDTHS = (64, 128, 256, 512)

# name -> (kind of block, blocks in each of the four stages)
ARCHITECTURES = {
    name: (entry.facts["block"], entry.facts["depths"])
    for name, entry in BACKBONES.items()
    if entry.target == "dupr_tf.models.resnet:ResNetBackbone"
}


@keras.saving.register_keras_serializable("dupr_tf")
class ResNetBackbone(keras.Model):
    """A ResNet without its classifier. It maps images to the P5 feature map; P2..P5 are available by name.

    It has two attributes: `pyramid_level_inputs` (layer names, as KerasCV's detectors expect) and `pyramid_outputs`
    (symbolic tensors, as KerasHub's do). `pyramid(backbone)` turns either into a model.

    Args:
        architecture: one of `resnet18`, `resnet34`, `resnet50`, `resnet101`, `resnet152`.
        width: multiplies every channel count (64, 128, 256, 512), rounded to a multiple of 8.
        input_shape: `(height, width, channels)` of one image; `None` for a side that may vary.
        include_normalization: if True, the model takes RGB images in 0–255 (uint8 or float) and its first layer applies
            ImageNet's mean and standard deviation. If False, it takes normalised images.
        output_stride: 32 or 16. With 16, conv5 has stride 1 and dilation 2 in every 3×3 convolution, so that P5 is as
            large as P4. Weights and P2 to P4 are the same.
        name, trainable, dtype: as in every Keras model; `dtype` may be a policy such as `"mixed_bfloat16"`.
    """

    def __init__(
        self,
        architecture,
        width=1.0,
        input_shape=(None, None, 3),
        include_normalization=False,
        output_stride=32,
        name=None,
        trainable=True,
        dtype=None,
    ):
        if output_stride not in (16, 32):
            raise UserError("output_stride", f"Expected 16 or 32, received {output_stride!r}.", "16 dilates conv5.")
        block, depths = block_and_depths(architecture)
        channels = stage_channels(width)
        _check_input_shape(input_shape, include_normalization)
        policy = keras.dtype_policies.get(dtype or keras.config.dtype_policy())

        images = keras.Input(shape=input_shape, dtype=policy.variable_dtype, name="images")  # (B, H, W, 3)
        # The input has the variables' dtype, because a mixed policy must not round the pixels first.
        x = imagenet_normalization(policy.variable_dtype)(images) if include_normalization else images
        x = _stem(x, channels[0], policy)  # (B, H/4, W/4, C)
        levels = {}
        for stage, (level, filters, depth) in enumerate(zip(LEVELS, channels, depths, strict=True)):
            dilation = 2 if level == "P5" and output_stride == 16 else 1
            strides = 1 if stage == 0 or dilation > 1 else 2
            x = _stage(x, block, filters, depth, strides, dilation, name=f"stack{stage}", dtype=policy)
            levels[level] = x  # (B, H/2^(stage+2), W/2^(stage+2), filters or 4·filters)
        super().__init__(inputs=images, outputs=x, name=name or architecture, trainable=trainable)

        self.architecture = architecture
        self.width = width
        self.include_normalization = include_normalization
        self.output_stride = output_stride
        self.pyramid_outputs = levels
        self.pyramid_level_inputs = {
            level: f"stack{stage}_block{depth - 1}_out"
            for stage, (level, depth) in enumerate(zip(LEVELS, depths, strict=True))
        }
        self.dtype_policy = policy
        self._image_shape = tuple(input_shape)

    def get_config(self):
        return {
            "architecture": self.architecture,
            "width": self.width,
            "input_shape": self._image_shape,
            "include_normalization": self.include_normalization,
            "output_stride": self.output_stride,
            "name": self.name,
            "trainable": self.trainable,
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        return cls(**config)

    def cost(self, image_size):
        """Counts the costs of one view of `image_size` px, a `BackboneCost`."""
        twin = self.from_config({**self.get_config(), "input_shape": (image_size, image_size, 3)})
        convolutions = [
            2 * math.prod(layer.output.shape[1:]) * math.prod(layer.kernel.shape[:3])
            for layer in twin.layers
            if isinstance(layer, keras.layers.Conv2D)
        ]
        freed = (keras.layers.BatchNormalization, keras.layers.Add)  # the gradient needs their inputs, not the outputs
        kept = [layer.output.shape[1:] for layer in twin.layers if not isinstance(layer, freed)]
        return BackboneCost(sum(convolutions), convolutions[0], sum(map(math.prod, kept)))


def build_backbone(architecture, width=1.0, **kwargs):
    """Creates a new backbone from the registry (`dupr-tf list backbones`); `kwargs` go to its constructor.

    Raises:
        UserError: an unknown name, or a width the backbone does not support.
    """
    return BACKBONES.load(architecture)(architecture, width=width, **kwargs)


def dilated(backbone):
    """Returns a copy of a `ResNetBackbone` with the same weights and `output_stride` 16.

    Raises:
        UserError: the model is not a `ResNetBackbone`, so its convolutions cannot be dilated here.
    """
    if not isinstance(backbone, ResNetBackbone):
        problem = f"Expected a ResNetBackbone, received {type(backbone).__name__}."
        raise UserError("backbone", problem, "Pass a backbone of build_backbone.")
    twin = ResNetBackbone.from_config({**backbone.get_config(), "output_stride": 16})
    twin.set_weights(backbone.get_weights())
    return twin


def pyramid(backbone, levels=LEVELS):
    """Returns a model from the backbone's inputs to `{level: feature map}`. It shares the backbone's weights.

    Args:
        backbone: any functional Keras model with `pyramid_outputs` (KerasHub) or `pyramid_level_inputs`
            (KerasCV).
        levels: the levels to return, for example `("P4", "P5")`.

    Raises:
        UserError: the model has neither attribute, or lacks one of the levels.
    """
    tensors = pyramid_tensors(backbone)
    missing = [level for level in levels if level not in tensors]
    if missing or not levels:
        raise UserError(
            "backbone",
            f"Expected the levels {', '.join(levels) or '(at least one)'}, received `{backbone.name}` with "
            f"{', '.join(sorted(tensors)) or 'none'}.",
            "Set `pyramid_outputs` ({level: tensor}) or `pyramid_level_inputs` ({level: layer name}) on it, or ask for "
            "fewer levels.",
        )
    inputs = backbone.input if len(backbone.inputs) == 1 else backbone.inputs
    return keras.Model(inputs, {level: tensors[level] for level in levels}, name=f"{backbone.name}_pyramid")


def pyramid_tensors(backbone):
    """Returns {level: symbolic tensor} of all levels of a backbone; empty if it has no feature pyramid."""
    tensors = dict(getattr(backbone, "pyramid_outputs", None) or {})
    names = getattr(backbone, "pyramid_level_inputs", None) or {}
    return tensors or {level: backbone.get_layer(layer).output for level, layer in names.items()}


def imagenet_normalization(dtype="float32"):
    """Creates the layer that maps RGB in 0–255 to (x − mean) / std, channel by channel."""
    scale = [1.0 / std for std in IMAGENET_STD]
    offset = [-mean / std for mean, std in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)]
    return keras.layers.Rescaling(scale, offset, name="normalization", dtype=dtype)


def stage_channels(width):
    """Returns the channels of the stem and of each stage, before a bottleneck's factor 4, as multiples of 8."""
    if not isinstance(width, int | float) or not 0 < width <= 16:
        raise UserError(
            "width", f"Expected a number between 0 and 16, received {width!r}.", "1 is the standard network."
        )
    return tuple(max(8, round(channels * width / 8) * 8) for channels in STAGE_WIDTHS)


def block_and_depths(architecture):
    """Returns the kind of block (`"basic"`, `"bottleneck"`) and the number of blocks in each of the four stages."""
    if architecture not in ARCHITECTURES:
        raise UserError(
            "architecture",
            f"Expected one of {', '.join(ARCHITECTURES)}, received {architecture!r}.",
            "Choose one of them; `width` makes a network narrower or wider.",
        )
    return ARCHITECTURES[architecture]


def _check_input_shape(input_shape, include_normalization):
    if len(input_shape) != 3 or input_shape[-1] is None:
        problem = f"Expected (height, width, channels) with known channels, received {input_shape}."
        raise UserError("input_shape", problem, "Use (None, None, 3).")
    if include_normalization and input_shape[-1] != 3:
        raise UserError(
            "input_shape",
            f"Expected 3 channels with include_normalization=True, received {input_shape[-1]}.",
            "Normalise the images before the model and pass include_normalization=False.",
        )


def _stem(x, filters, dtype):
    x = conv_bn(x, filters, 7, strides=2, name="conv1", dtype=dtype)  # (B, H/2, W/2, C)
    x = keras.layers.Activation("relu", name="conv1_relu", dtype=dtype)(x)
    # After a ReLU, zero padding cannot change a maximum.
    x = keras.layers.ZeroPadding2D(1, name="pool1_pad", dtype=dtype)(x)
    return keras.layers.MaxPooling2D(3, strides=2, name="pool1_pool", dtype=dtype)(x)  # (B, H/4, W/4, C)


def _stage(x, block, filters, depth, strides, dilation, name, dtype):
    """Applies `depth` residual blocks. The first has the stride, and a projection shortcut if the shape changes.

    A dilated stage has no stride, but its weights are the same.
    """
    build = {"basic": _basic_block, "bottleneck": _bottleneck_block}[block]
    expansion = {"basic": 1, "bottleneck": 4}[block]
    for index in range(depth):
        stride = strides if index == 0 else 1
        project = index == 0 and (stride != 1 or dilation != 1 or x.shape[-1] != filters * expansion)
        x = build(x, filters, stride, dilation, project, name=f"{name}_block{index}", dtype=dtype)
    return x


def _basic_block(x, filters, strides, dilation, project, name, dtype):
    shortcut = conv_bn(x, filters, 1, strides, name=f"{name}_0", dtype=dtype) if project else x
    x = conv_bn(x, filters, 3, strides, dilation, name=f"{name}_1", dtype=dtype)
    x = keras.layers.Activation("relu", name=f"{name}_1_relu", dtype=dtype)(x)
    x = conv_bn(x, filters, 3, 1, dilation, name=f"{name}_2", dtype=dtype)
    return _residual(shortcut, x, name, dtype)


def _bottleneck_block(x, filters, strides, dilation, project, name, dtype):
    shortcut = conv_bn(x, 4 * filters, 1, strides, name=f"{name}_0", dtype=dtype) if project else x
    x = conv_bn(x, filters, 1, 1, name=f"{name}_1", dtype=dtype)
    x = keras.layers.Activation("relu", name=f"{name}_1_relu", dtype=dtype)(x)
    x = conv_bn(x, filters, 3, strides, dilation, name=f"{name}_2", dtype=dtype)  # v1.5: the stride is here
    x = keras.layers.Activation("relu", name=f"{name}_2_relu", dtype=dtype)(x)
    x = conv_bn(x, 4 * filters, 1, 1, name=f"{name}_3", dtype=dtype)
    return _residual(shortcut, x, name, dtype)


def _residual(shortcut, x, name, dtype):
    x = keras.layers.Add(name=f"{name}_add", dtype=dtype)([shortcut, x])
    return keras.layers.Activation("relu", name=f"{name}_out", dtype=dtype)(x)


def conv_bn(x, filters, kernel, strides, dilation=1, *, name, dtype):
    """Applies a convolution without bias, padded by kernel // 2 · dilation on every side, then batch normalisation.

    At stride 1 this padding equals TensorFlow's "same", which needs no copy of the input. At stride 2 it does not: an
    even-sized input gets all of TensorFlow's padding at the bottom right. There the padding is explicit.
    """
    explicit = strides > 1 and kernel > 1
    if explicit:
        x = keras.layers.ZeroPadding2D(kernel // 2, name=f"{name}_pad", dtype=dtype)(x)
    x = TrainedConv2D(
        filters,
        kernel,
        strides=strides,
        dilation_rate=dilation,
        padding="valid" if explicit else "same",
        use_bias=False,
        kernel_initializer=keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal"),
        name=f"{name}_conv",
        dtype=dtype,
    )(x)
    return FusedBatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_bn", dtype=dtype)(x)
