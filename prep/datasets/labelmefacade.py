"""LabelMeFacade, 8 classes of building fronts in colour-coded labels.

    seg-prep labelmefacade --root /data/labelmefacade --out data/labelmefacade

The colour of "various" (0,0,0) is void. Fröhlich, Rodner, Denzler, "A Fast Approach for Pixelwise Labeling of Facade
Images", ICPR 2010; Brust, Sickert, Simon, Rodner, Denzler, "Convolutional Patch Networks with Spatial Prior for Road
Detection and Urban Scene Understanding", VISAPP 2015.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from prep.decode import load_pixels, open_header
from prep.pairs import listed
from prep.places import place_size
from prep.raw import BaseReader, RawSample, UInt16, clean_key
from prep.taxonomy import load_classes, load_colour_remap
from shards.classes import ClassTable
from shards.errors import LayoutError, SampleError

_SPLITS = ("train", "test")


class LabelMeFacade(BaseReader):
    """Reader of the repository's folders and lists; both splits are labelled."""

    name = "labelmefacade"
    title = "LabelMeFacade, 8 classes"
    layout = """\
ROOT/{train,test}.txt      lines such as images/x.jpg
ROOT/images/x.jpg
ROOT/labels/x.png          RGBA or RGB, 8 or 16 bits, nine colours"""
    source = "https://github.com/cvjena/labelmefacade"
    terms = "LabelMe images: non-commercial and research use only"

    @property
    def classes(self) -> ClassTable:
        return load_classes("labelmefacade-8")

    def splits(self, root: Path) -> tuple[str, ...]:
        found = tuple(split for split in _SPLITS if (root / f"{split}.txt").is_file())
        if not found:
            raise LayoutError(
                f"neither train.txt nor test.txt found under {root}: expected the LabelMeFacade repository with "
                "images/, labels/ and its lists; point --root at it"
            )
        return found

    def samples(self, root: Path, split: str) -> Iterator[RawSample]:
        path = root / f"{split}.txt"
        lines = listed(path)
        stems = [PurePosixPath(line.replace("\\", "/")).name.removesuffix(".jpg") for line in lines]
        if not any(place_size(_image(root, stem)) >= 0 for stem in stems):
            raise LayoutError(
                f"none of the {len(lines)} lines of {path} leads to an image under {root / 'images'} (the first is "
                f"'{(lines or ['nothing'])[0][:120]}'): expected lines such as images/x.jpg; unpack the images there"
            )
        for stem in stems:
            yield RawSample(clean_key(stem), _image(root, stem), root / "labels" / f"{stem}.png")

    def decode_label(self, data: bytes, where: str, facts: Any = None) -> UInt16:
        image = open_header(data, where)
        if image.format != "PNG" or image.mode not in ("RGB", "RGBA"):
            raise SampleError(f"{where}: label is {image.format} of mode {image.mode}; expected a PNG in colour")
        load_pixels(image, where)  # of 16-bit samples, which the release has, Pillow keeps the high byte: the colour
        pixels = np.asarray(image)
        if image.mode == "RGBA" and bool((pixels[..., 3] != 255).any()):
            y, x = (int(v) for v in np.argwhere(pixels[..., 3] != 255)[0])
            raise SampleError(f"{where}: label is transparent at row {y}, column {x}; expected alpha 255 everywhere")
        return load_colour_remap("labelmefacade-9_to_8", self.name).apply(pixels[..., :3], where)


def _image(root: Path, stem: str) -> Path:
    return root / "images" / f"{stem}.jpg"


READER = LabelMeFacade()
