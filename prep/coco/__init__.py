"""COCO's annotation files: finding objects in JSON of a gigabyte, rasterising masks, painting label maps."""
