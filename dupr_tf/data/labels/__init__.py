"""Labels of images: boxes, masks of objects, classes of pixels. One file a layout."""
