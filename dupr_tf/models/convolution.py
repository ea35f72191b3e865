"""Keras' `Conv2D` with the kernel gradient of `dupr_tf.ops.convolution`."""

import keras

from dupr_tf.ops.convolution import convolve_3x3


@keras.saving.register_keras_serializable("dupr_tf")
class TrainedConv2D(keras.layers.Conv2D):
    """Keras' `Conv2D`, with a faster kernel gradient where it is 3×3, of stride 1 and "same" padding.

    Arguments are those of `keras.layers.Conv2D`; the features are the same.
    """

    def convolution_op(self, inputs, kernel):
        plain = (
            self.kernel_size == (3, 3)
            and self.strides == self.dilation_rate == (1, 1)
            and (self.padding, self.groups, self.data_format) == ("same", 1, "channels_last")
        )
        return convolve_3x3(inputs, kernel) if plain else super().convolution_op(inputs, kernel)
