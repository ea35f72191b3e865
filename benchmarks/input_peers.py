"""Times MoCo v2's two-crop pipeline on torchvision with Pillow, and on albumentations with OpenCV."""

from __future__ import annotations

import itertools
import random

import numpy as np

from benchmarks.photos import photos

IMAGES = 64  # images in a repeat
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def torchvision_pillow(data, files, size):
    """Decodes with Pillow; torchvision draws and applies the augmentation."""
    from PIL import Image
    from torchvision import transforms

    crop = transforms.RandomResizedCrop(size, scale=(0.2, 1.0))
    transform = transforms.Compose(
        [crop, *_torchvision_colours(), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    )

    def views(path):
        with open(path, "rb") as file, Image.open(file) as opened:
            image = opened.convert("RGB")
        return [np.moveaxis(transform(image).numpy(), 0, -1) for _ in range(2)]

    return _work(views, photos(data, files))


def albumentations_opencv(data, files, size):
    """Decodes and computes with OpenCV; albumentations draws."""
    import albumentations
    import cv2

    cv2.setNumThreads(1)
    crop = albumentations.RandomResizedCrop((size, size), scale=(0.2, 1.0))
    transform = albumentations.Compose([crop, *_albumentations_colours(), albumentations.Normalize(MEAN, STD)])

    def views(path):
        image = cv2.cvtColor(cv2.imread(path), cv2.COLOR_BGR2RGB)
        return [transform(image=image)["image"] for _ in range(2)]

    return _work(views, photos(data, files))


def torchvision_photometric(count, size):
    """Applies colours and blur to images in memory."""
    from PIL import Image
    from torchvision import transforms

    colours = transforms.Compose([*_torchvision_colours(), transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    images = [Image.fromarray(image) for image in _noise(count, size)]
    return _each(colours, images)


def albumentations_photometric(count, size):
    """Applies colours and blur to images in memory."""
    import albumentations
    import cv2

    cv2.setNumThreads(1)
    colours = albumentations.Compose([*_albumentations_colours(), albumentations.Normalize(MEAN, STD)])
    return _each(lambda image: colours(image=image), _noise(count, size))


def _torchvision_colours():
    from PIL import ImageFilter
    from torchvision import transforms

    def blur(image):
        return image.filter(ImageFilter.GaussianBlur(radius=random.uniform(0.1, 2.0)))

    return [
        transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
        transforms.RandomGrayscale(p=0.2),
        transforms.RandomApply([blur], p=0.5),
        transforms.RandomHorizontalFlip(),
    ]


def _albumentations_colours():
    import albumentations as a

    return [
        a.ColorJitter(brightness=(0.6, 1.4), contrast=(0.6, 1.4), saturation=(0.6, 1.4), hue=(-0.1, 0.1), p=0.8),
        a.ToGray(p=0.2),
        a.GaussianBlur(blur_limit=0, sigma_limit=(0.1, 2.0), p=0.5),
        a.HorizontalFlip(p=0.5),
    ]


def _work(views, paths):
    order = itertools.cycle(np.random.default_rng(0).permutation(paths))

    def work():
        for _ in range(IMAGES):
            views(next(order))
        return IMAGES

    sample = np.stack([views(next(order))[0] for _ in range(IMAGES)])
    work.facts = {
        "channel_means": [round(float(x), 3) for x in sample.mean((0, 1, 2))],
        "channel_stds": [round(float(x), 3) for x in sample.std((0, 1, 2))],
    }
    return work


def _each(function, images):
    def work():
        for image in images:
            function(image)
        return len(images)

    return work


def _noise(count, size):
    from PIL import Image

    coarse = np.random.default_rng(0).integers(0, 256, (count, 7, 7, 3), dtype=np.uint8)
    return [np.asarray(Image.fromarray(each).resize((size, size), Image.Resampling.BICUBIC)) for each in coarse]
