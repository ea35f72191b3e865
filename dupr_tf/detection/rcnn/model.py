"""Faster R-CNN and Mask R-CNN as Keras models, with a feature pyramid or on res4 ("C4").

Definitions are detectron2's (Base-RCNN-FPN, Base-RCNN-C4 and their bases), named in the code. There are three
differences. RoIAlign takes 2×2 points per bin. An anchor without overlap is never forced onto a box. A step has a fixed
number of regions, filled up by repetitions that do not count.
"""

from __future__ import annotations

import keras
import tensorflow as tf

from dupr_tf.detection.detector import SumOfLosses, batch_of, check_image_size, photos_of
from dupr_tf.detection.parts.anchors import grid_anchors
from dupr_tf.detection.parts.box_matching import ground_truth
from dupr_tf.detection.parts.pyramid import PyramidNeck
from dupr_tf.detection.parts.target import LITERT, current_target
from dupr_tf.detection.rcnn.masks import mask_loss, select_class
from dupr_tf.detection.rcnn.proposals import RPNHead, propose, rpn_losses
from dupr_tf.detection.rcnn.region_heads import (
    BOX_BINS,
    C4_STRIDE,
    STRIDES,
    BoxPredictor,
    MaskHead,
    PyramidRegions,
    Res5Regions,
    split_at_p4,
)
from dupr_tf.detection.rcnn.regions import detections, most_positives, region_losses, sample_regions
from dupr_tf.errors import UserError
from dupr_tf.models.resnet import LEVELS, pyramid

# (training, test): detectron2's MODEL.RPN.{PRE,POST}_NMS_TOPK_{TRAIN,TEST} of Base-RCNN-FPN and of Base-RCNN-C4.
PRE_NMS = {"fpn": (2000, 1000), "c4": (12000, 6000)}
POST_NMS = {"fpn": (1000, 1000), "c4": (2000, 1000)}
ANCHOR_SCALE = 8.0  # anchors of 32 to 512 px


@keras.saving.register_keras_serializable("dupr_tf")
class FasterRCNN(SumOfLosses, keras.Model):
    """Faster R-CNN (Ren et al., 2015). Images are RGB in 0–255 of any size; the backbone normalises them itself.

    It trains on batches `{"images": (B, H, W, 3), "bounding_boxes": {"boxes": (B, M, 4) xyxy px, "classes": (B, M), -1
    for padding}, "image_sizes": (B, 2)}`. H and W are multiples of 32. `image_sizes` (height, width) is the
    unpadded part of each image; without it, all of the image. Proposals are constants to the heads: no gradient crosses
    them.

    Args:
        backbone: a functional model with `pyramid_level_inputs` for P2 to P5. With neck "c4", P5 must be computed from
            P4 alone, and its last stage becomes the box head.
        class_names: names of the classes 0, 1, …
        neck: `"fpn"` has P2 to P6 and two dense layers. `"c4"` has P4, and res5 with an extra batch normalisation on
            regions.
        norm: batch normalisation of backbone, pyramid and the extra one: "train", "sync" (over all devices) or
            "frozen" (the backbone's).
        fpn_channels, fpn_norm: width of the pyramid, and True if it is normalised.
        head_channels, head_convs: width and convolutions of the mask head. With "c4" it has no convolutions before the
            upsampling one.
        box_head_width: width of the dense layers.
        anchor_scale: side of the anchors of a level in strides; "c4" has all sizes at its one level.
        rpn_pre_nms, rpn_post_nms: proposals (training, test) before NMS, per level, and after it.
        rois_per_image: proposals per image that train the heads; at most a quarter of them are objects.
        score_threshold, nms_iou, max_detections: settings of `predict`; NMS is per class.
        image_size: side of square inputs. None: sizes vary.
        test_short_side, max_long_side: image size at test, for the input pipeline. None: the image's own.
        seed: seed of the samples, which also depend on the optimizer's step and the replica.
    """

    SETTINGS = (
        "neck", "norm", "fpn_channels", "fpn_norm", "head_channels", "head_convs", "box_head_width",
        "anchor_scale", "rpn_pre_nms", "rpn_post_nms", "rois_per_image", "score_threshold", "nms_iou", "max_detections",
        "image_size", "test_short_side", "max_long_side", "seed", "name",
    )  # fmt: skip

    def __init__(
        self,
        backbone,
        class_names,
        neck="fpn",
        norm="train",
        fpn_channels=256,
        fpn_norm=True,
        head_channels=256,
        head_convs=4,
        box_head_width=1024,
        anchor_scale=ANCHOR_SCALE,
        rpn_pre_nms=None,
        rpn_post_nms=None,
        rois_per_image=512,
        score_threshold=0.05,
        nms_iou=0.5,
        max_detections=100,
        image_size=None,
        test_short_side=None,
        max_long_side=1333,
        seed=0,
        name=None,
    ):
        _check(neck, norm, rois_per_image, image_size)
        super().__init__(name=name, autocast=False)  # boxes must keep their digits under a mixed policy
        self.backbone, self.class_names, self.neck, self.norm = backbone, tuple(class_names), neck, norm
        self.fpn_channels, self.fpn_norm = fpn_channels, fpn_norm
        self.head_channels, self.head_convs, self.box_head_width = head_channels, head_convs, box_head_width
        self.anchor_scale = anchor_scale
        self.rpn_pre_nms, self.rpn_post_nms = tuple(rpn_pre_nms or PRE_NMS[neck]), tuple(rpn_post_nms or POST_NMS[neck])
        self.rois_per_image, self.seed = rois_per_image, seed
        self.score_threshold, self.nms_iou, self.max_detections = score_threshold, nms_iou, max_detections
        self.image_size, self.test_short_side, self.max_long_side = image_size, test_short_side, max_long_side
        self._build_fpn() if neck == "fpn" else self._build_c4()
        self._build_heads()
        self.loss_names = ("rpn_objectness_loss", "rpn_box_loss", "classification_loss", "box_loss", *self.mask_losses)
        self._create_means(self.loss_names)
        self.built = True

    mask_losses = ()

    def _build_fpn(self):
        self.trunk = pyramid(self.backbone, LEVELS)
        self.pyramid_neck = PyramidNeck(self.fpn_channels, self.fpn_norm, name="pyramid")
        self.pyramid_neck.build({level: maps.shape for level, maps in self.trunk.output.items()})
        self.anchor_levels = [(stride, [self.anchor_scale * stride]) for stride in STRIDES]
        self.regions = PyramidRegions(self.box_head_width, name="regions")
        self.level_shape, self.region_shape = (None, None, None, self.fpn_channels), (None, None, self.box_head_width)
        self.mask_shape = (2 * BOX_BINS, 2 * BOX_BINS, self.fpn_channels)
        self._set_norms(self.pyramid_neck)

    def _build_c4(self):
        self.trunk, res5 = split_at_p4(self.backbone)
        self.anchor_levels = [(C4_STRIDE, [self.anchor_scale * stride for stride in STRIDES])]
        self.regions = Res5Regions(res5, name="regions")
        channels = res5.output.shape[-1]
        self.level_shape, self.region_shape = self.trunk.output["P4"].shape, (None, None, channels)
        self.mask_shape = (BOX_BINS, BOX_BINS, channels)
        self._set_norms(self.regions.norm)

    def _build_heads(self):
        self.predictor = BoxPredictor(len(self.class_names), name="predictor")
        self.rpn = RPNHead(len(self.anchor_levels[0][1]), name="rpn")
        self.rpn.build(self.level_shape)
        self.regions.build(self.level_shape)
        self.predictor.build(self.region_shape)

    def class_layers(self):
        return [self.predictor]

    # ---- training ----

    def losses(self, data, training):
        """Returns {name: scalar} of a batch; with `training`, batch norm uses and records the batch's statistics."""
        images, image_sizes, labels = split_batch(data)
        truth = self._truth(labels, tf.shape(images)[0])
        features = self._features(images, training)
        levels, anchors = self._predict_proposals(features)
        seeds = self._seeds()
        objectness, deltas = (tf.concat(level, 1) for level in zip(*levels, strict=True))
        objectness_loss, rpn_box_loss = rpn_losses(objectness, deltas, tf.concat(anchors, 0), truth, seeds[0])
        proposals, valid = self._propose(levels, anchors, image_sizes, True)
        regions = sample_regions(proposals, valid, truth, len(self.class_names), self.rois_per_image, seeds[1])
        vectors, maps = self.regions.vectors(features, regions.boxes, training)
        classification_loss, box_loss = region_losses(*self.predictor(vectors), regions, truth)
        values = (objectness_loss, rpn_box_loss, classification_loss, box_loss)
        values += self._mask_losses(features, regions, maps, truth, training)
        return dict(zip(self.loss_names, values, strict=True))

    def _truth(self, labels, batch_size):
        return ground_truth(labels, batch_size)

    def _mask_losses(self, features, regions, maps, truth, training):
        return ()

    def _features(self, images, training):
        levels = self.trunk(images, training=training)
        return [levels["P4"]] if self.neck == "c4" else self.pyramid_neck(levels, training=training)

    def _predict_proposals(self, features):
        """Returns [(objectness, deltas)] and [anchors] of every level."""
        anchors = [
            grid_anchors(tf.shape(maps)[1], tf.shape(maps)[2], stride, sizes)
            for maps, (stride, sizes) in zip(features, self.anchor_levels, strict=True)
        ]
        return [self.rpn(maps) for maps in features], anchors

    def _propose(self, levels, anchors, image_sizes, training):
        which = 0 if training else 1
        counts = self.rpn_pre_nms[which], self.rpn_post_nms[which]
        return propose(*zip(*levels, strict=True), anchors, image_sizes, *counts)

    def _seeds(self):
        """Returns two (2,) seeds for this step and replica."""
        optimizer = getattr(self, "optimizer", None)  # absent before `compile`
        step = 0 if optimizer is None else tf.cast(optimizer.iterations, tf.int64)
        context = tf.distribute.get_replica_context()
        replica = context.replica_id_in_sync_group if context is not None else 0
        seed = tf.random.experimental.stateless_fold_in(tf.stack([tf.constant(self.seed, tf.int64), step]), replica)
        return [tf.random.experimental.stateless_fold_in(seed, purpose) for purpose in range(2)]

    # ---- detection ----

    def call(self, inputs, training=None):
        """Returns detections of images, or of {"images", "image_sizes"}; with `training`, the losses of a batch."""
        if training:
            return self.losses(inputs, training=True)
        images, image_sizes = photos_of(inputs)
        features = self._features(images, False)
        levels, anchors = self._predict_proposals(features)
        proposals, valid = self._propose(levels, anchors, image_sizes, False)
        logits, deltas = self._map_images(self._predict_boxes, (tf.float32, tf.float32), features, proposals)
        results = detections(
            logits, deltas, proposals, valid, image_sizes, self.score_threshold, self.nms_iou, self.max_detections
        )
        return self._add_masks(results, features)

    def predict_step(self, data):
        return self(data, training=False)

    def _predict_boxes(self, features, boxes):
        return self.predictor(self.regions.vectors(features, boxes, False)[0])

    def _map_images(self, function, signature, features, *tables):
        """Calls `function(features, *tables)` image by image if a whole batch would take gigabytes."""
        if not self.regions.one_image_at_a_time or current_target() == LITERT:  # which takes one image
            return function(features, *tables)

        def of_one(image):
            one = tf.nest.map_structure(lambda x: x[None], image)
            return tf.nest.map_structure(lambda x: x[0], function(*one))

        inputs = (features, *tables)
        return tf.map_fn(of_one, inputs, fn_output_signature=signature, parallel_iterations=1)

    def _add_masks(self, results, features):
        return results


@keras.saving.register_keras_serializable("dupr_tf")
class MaskRCNN(FasterRCNN):
    """Mask R-CNN (He et al., 2017): `FasterRCNN` with a mask of 28×28 ("c4": 14×14) for every detection.

    Batches also have `bounding_boxes["masks"]`: (B, M, h, w) float32 0–1, each over its own box. Detections also have
    `masks (B, K, 28, 28)`, probabilities over the box, -1 from `num_detections` on; see `predictions.paste_masks`.

    Arguments are `FasterRCNN`'s.
    """

    mask_losses = ("mask_loss",)

    def _build_heads(self):
        super()._build_heads()
        convs = self.head_convs if self.neck == "fpn" else 0
        self.mask_head = MaskHead(len(self.class_names), self.head_channels, convs, name="mask_head")
        self.mask_head.build(self.mask_shape)

    def class_layers(self):
        return [self.predictor, self.mask_head.prediction]

    def _truth(self, labels, batch_size):
        if labels is not None and "masks" not in labels:
            raise UserError(
                "bounding_boxes", "The boxes of the batch have no masks.", "Add masks, or use a FasterRCNN."
            )
        return ground_truth(labels, batch_size)

    def _mask_losses(self, features, regions, maps, truth, training):
        if truth.masks is None:
            return (tf.constant(0.0),)
        few = most_positives(regions)
        regions, maps = regions.first(few), None if maps is None else maps[:, :few]
        logits = self.mask_head(self.regions.mask_maps(features, regions.boxes, training, maps))
        classes = tf.minimum(regions.classes, len(self.class_names) - 1)
        return (mask_loss(logits, regions.boxes, classes, regions.matches, regions.positive, truth),)

    def _add_masks(self, results, features):
        boxes, number = tf.maximum(results["boxes"], 0.0), results["num_detections"]
        classes = tf.cast(tf.maximum(results["classes"], 0), tf.int32)
        masks = self._map_images(self._masks, tf.float32, features, boxes, classes, number)
        return {**results, "masks": tf.where(results["classes"][..., None, None] >= 0, masks, -1.0)}

    def _masks(self, features, boxes, classes, number):
        """Returns (B, K, 28, 28) masks. Only as many are computed as the image with most detections has."""
        most = tf.maximum(tf.reduce_max(number), 1)
        logits = self.mask_head(self.regions.mask_maps(features, boxes[:, :most], False))
        masks = tf.sigmoid(select_class(logits, classes[:, :most]))
        padded = tf.pad(masks, [[0, 0], [0, self.max_detections - most], [0, 0], [0, 0]])
        return tf.reshape(padded, [tf.shape(boxes)[0], self.max_detections, *masks.shape[2:]])


def split_batch(data):
    """Splits a Keras batch into images (B, H, W, 3), image_sizes (B, 2) float32 and the labels or None."""
    data = batch_of(data)
    data = data if isinstance(data, dict) else {"images": data}
    images = tf.convert_to_tensor(data["images"])
    sizes = data.get("image_sizes")
    if sizes is None:
        sizes = tf.tile(tf.shape(images)[None, 1:3], [tf.shape(images)[0], 1])
    return images, tf.cast(sizes, tf.float32), data.get("bounding_boxes")


def _check(neck, norm, rois_per_image, image_size):
    for name, value, known in (("neck", neck, ("fpn", "c4")), ("norm", norm, ("train", "sync", "frozen"))):
        if value not in known:
            raise UserError(name, f"Expected {' or '.join(known)}, received {value!r}.", f"Use {known[0]!r}.")
    if rois_per_image < 4:
        raise UserError("rois_per_image", f"Expected 4 or more, received {rois_per_image}.", "Use 512.")
    check_image_size(image_size)
