"""KerasHub's D-FINE on a pre-trained backbone, with the interface of the other detectors; extra `kerashub`.

The graph is that of KerasHub 0.32: hybrid encoder, choice of queries, decoder. Its training is replaced, because it
cannot learn from a batch, or from a few:

* It matches the objects of an image, and then takes the targets of the first image of the batch for all.
* Rows of padding are objects, and predictions without an object overwrite the targets of the first query.
* Its targets must be boxes relative to the image with their centres, and nothing converts or checks them.
* Its weight of background in the loss of scores is a third of D-FINE's.
* Its batch norms have a momentum of 0.99, and their inputs vary by a hundredth. So for the first thousand steps their
  moving variance is mostly its start value of 1, and the detector finds nothing, however well it learns.
* Its denoising queries are made once, of labels that the constructor takes. Here there are none.

Its attention samples with `attend`, which has an eighth of the operations, and `fit` leaves out TensorFlow's rewriting
of graphs. Otherwise the first step takes several times as long.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from typing import ClassVar

import keras
import keras_hub
import tensorflow as tf
from keras.utils.bounding_boxes import convert_format

from dupr_tf.detection.dense import LEVELS, AnchorFree, FixedSize
from dupr_tf.detection.detector import batch_of, check_image_size
from dupr_tf.detection.parts.box_matching import ground_truth
from dupr_tf.detection.parts.boxes import FORMAT
from dupr_tf.detection.parts.sampling import attend
from dupr_tf.detection.parts.set_losses import BINS, WEIGHTS, Layer, set_losses
from dupr_tf.models.resnet import pyramid

STRIDES = [8, 16, 32]  # of P3, P4 and P5
POINTS = [3, 6, 3]  # samples of a query in each level, as in D-FINE
HEADS = 8
MOMENTUM = 0.9  # of batch norms, as in the other detectors


@keras.saving.register_keras_serializable("dupr_tf")
class KerasHubDFine(FixedSize, AnchorFree, keras_hub.models.DFineObjectDetector):
    """KerasHub's D-FINE. Images are RGB in 0–255, (B, S, S, 3); the backbone normalises them itself.

    The sizes of its encoder are those of D-FINE-S.

    Args:
        backbone: a functional model with P3, P4 and P5, as `pyramid` takes.
        class_names: names of the classes 0, 1, …
        image_size: side S of its input, a multiple of 32.
        fpn_channels: width of encoder and decoder, a multiple of 8.
        decoder_layers: layers of the decoder.
        queries: objects that the decoder looks for.
        norm: mode of batch norms, as in `set_norm`: `"train"`, `"sync"` (all) or `"frozen"` (backbone).
        score_threshold, nms_iou, max_detections: settings of `predict`; NMS is per class, as in the other detectors.
            D-FINE itself has no NMS.
        name, trainable: as in every Keras model.
    """

    SETTINGS = (
        "image_size", "fpn_channels", "decoder_layers", "queries", "norm", "score_threshold", "nms_iou",
        "max_detections", "name", "trainable",
    )  # fmt: skip

    NOT_EXPORTED: ClassVar[dict[str, str]] = {
        "onnx": "tf2onnx converts neither its grouped convolutions nor Erfc, of its GELU"
    }

    def __init__(
        self,
        backbone,
        class_names,
        image_size,
        fpn_channels=256,
        decoder_layers=3,
        queries=300,
        norm="train",
        score_threshold=0.05,
        nms_iou=0.5,
        max_detections=100,
        name="kerashub_dfine",
        trainable=True,
    ):
        check_image_size(image_size)
        cells = sum((image_size // stride) ** 2 for stride in STRIDES)
        network = build_network(
            backbone, len(class_names), image_size, fpn_channels, decoder_layers, min(queries, cells)
        )
        super().__init__(
            backbone=network, num_classes=len(class_names), bounding_box_format=FORMAT, compile=False, name=name,
            trainable=trainable,
        )  # fmt: skip
        self.network, self.backbone = network, backbone
        self.class_names, self.image_size, self.norm = tuple(class_names), image_size, norm
        self.fpn_channels, self.decoder_layers, self.queries = fpn_channels, decoder_layers, queries
        self.score_threshold, self.nms_iou, self.max_detections = score_threshold, nms_iou, max_detections
        self.test_short_side, self.max_long_side = None, image_size
        for layer in self._own_norms():
            layer.momentum = MOMENTUM
        for layer in network.decoder.decoder_layers:
            layer.encoder_attn.ms_deformable_attn_core = _attend
        self._set_norms(*self._own_norms())
        self._create_means(WEIGHTS)

    def fit(self, *arguments, **settings):
        """Runs Keras' `fit` without the rewriting of graphs, which takes longer than it saves in thousands of steps."""
        with without_graph_rewriting():
            return super().fit(*arguments, **settings)

    def class_layers(self):
        return [self.network.enc_score_head, *self.network.decoder.class_embed]

    def losses(self, data, training):
        """Computes the losses of D-FINE, `set_losses`, of a batch.

        Args:
            data: a batch {"images": (B, S, S, 3), "bounding_boxes": {"boxes": (B, M, 4) px, "classes": (B, M)}}; rows
                of padding hold -1.
            training: True if batch norm uses and records the statistics of the batch.

        Returns:
            {name: () float32}.
        """
        batch = batch_of(data)
        images = batch["images"]
        outputs = self(images, training=training)
        truth = ground_truth(batch.get("bounding_boxes"), tf.shape(images)[0])
        relative = convert_format(truth.boxes, FORMAT, "center_xywh") / float(self.image_size)
        return set_losses(self._predictions(outputs), truth._replace(boxes=relative))

    def _predictions(self, outputs):
        """Returns the `Layer` of the encoder and those of the decoder. The first of the decoder has no distributions.

        The decoder's first layer predicts twice: at first a plain box, then its distributions, which refine this box.
        """
        logits, boxes, bins, references = (
            tf.unstack(outputs[name], self.decoder_layers + 1, axis=1)
            for name in (
                "intermediate_logits",
                "intermediate_reference_points",
                "intermediate_predicted_corners",
                "initial_reference_points",
            )
        )
        shape = [-1, tf.shape(logits[0])[1], 4, BINS + 1]
        refined = zip(logits[1:], boxes[1:], (tf.reshape(one, shape) for one in bins[1:]), references[1:], strict=True)
        return [
            Layer(outputs["enc_topk_logits"], outputs["enc_topk_bboxes"]),
            Layer(logits[0], boxes[0]),
            *(Layer(*predictions) for predictions in refined),
        ]

    def decode_predictions(self, predictions, images, sizes=None):
        """Returns `boxes`, `classes`, `confidence`, `num_detections` of images (B, S, S, 3), as `RetinaNet` does."""
        boxes = convert_format(predictions["pred_boxes"], "center_xywh", FORMAT) * float(self.image_size)
        return self._suppress(boxes, predictions["logits"], sizes)


def build_network(backbone, classes, image_size, channels, decoder_layers, queries):
    """Builds KerasHub's encoder and decoder on P3 to P5 of a backbone, in the sizes of D-FINE-S."""
    levels = pyramid(backbone, LEVELS)
    square = (image_size, image_size)
    with warnings.catch_warnings():  # Keras warns of layers that KerasHub builds by hand
        warnings.filterwarnings("ignore", r"`build\(\)` was called", UserWarning)
        return keras_hub.models.DFineBackbone(
            backbone=levels,
            out_features=list(LEVELS),
            image_shape=(*square, 3),
            anchor_image_size=square,
            feat_strides=STRIDES,
            num_feature_levels=len(LEVELS),
            encoder_in_channels=[levels.output[level].shape[-1] for level in LEVELS],
            encoder_hidden_dim=channels,
            encode_proj_layers=[2],
            num_attention_heads=math.gcd(channels, HEADS),
            encoder_ffn_dim=4 * channels,
            num_encoder_layers=1,
            hidden_expansion=0.5,
            depth_multiplier=0.34,
            decoder_in_channels=[channels] * len(LEVELS),
            hidden_dim=channels,
            num_decoder_layers=decoder_layers,
            eval_idx=-1,
            decoder_attention_heads=math.gcd(channels, HEADS),
            decoder_ffn_dim=4 * channels,
            decoder_n_points=POINTS,
            lqe_hidden_dim=64,
            num_lqe_layers=2,
            num_labels=classes,
            num_queries=queries,
            num_denoising=0,
            learn_initial_query=False,
            name="network",
        )


def _attend(values, _, locations, weights, points, sizes, shapes, *settings):
    """Calls `attend` with the arguments of KerasHub's `multi_scale_deformable_attention_v2`."""
    return attend(values, locations, weights, points, shapes)


@contextlib.contextmanager
def without_graph_rewriting():
    """Runs functions without TensorFlow's graph optimiser (Grappler) inside this context."""
    name = "disable_meta_optimizer"
    before = tf.config.optimizer.get_experimental_options().get(name, False)
    tf.config.optimizer.set_experimental_options({name: True})
    try:
        yield
    finally:
        tf.config.optimizer.set_experimental_options({name: before})
