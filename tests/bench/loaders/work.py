"""What is done to the bytes of a sample: the functions that every rival of the bench shares.

Imported by the runners, each in its own virtual environment; so nothing is imported before it is needed.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

FACTOR = 4  # of the smaller scale
PLANES = 4  # classes of a cell that a sparse target keeps, void among them
VOID8, VOID16 = 255, 65535
STEP = 16  # every 16th row and column goes into a checksum: looking at all would cost what a decoder does
Pair = tuple[Any, Any]


@dataclass(frozen=True)
class Job:
    """What a runner is asked for.

    Args:
        task: "read" or "write".
        peer: name of the module peer_<name>.
        mode: of work, see `Decode`; and "documented", "raw" and each rival's own.
        shards: folder of the source shard set.
        data: folder of the peer's own format.
        setting: "workers=2" or "threads=3".
        batch: samples in a batch.
        classes: C of the class table.
        first: stop after the first batch.
        spawned: time.time() just before the process was started.
    """

    task: str
    peer: str
    mode: str
    shards: str
    data: str
    setting: str
    batch: int
    classes: int
    first: bool = False
    spawned: float = 0.0

    @property
    def count(self) -> int:
        """Workers or threads."""
        return int(self.setting.split("=")[1])

    @property
    def kind(self) -> str:
        """ "workers" or "threads"."""
        return self.setting.split("=")[0]


class Decode:
    """Bytes of image and label -> what a batch stacks, by mode; picklable.

    fast: our decoders (`shards.codec`): uint8 [H, W, 3], uint16 [H, W].
    soft: decoded so, the image resized to 1/4, the label's one-hot planes averaged to 1/4: float32 [C, h, w].
    soft-torch: the same as torch users write it, one_hot and interpolate.
    pil: uint8 [H, W, 3] and [H, W] by Pillow.
    raw: the bytes.
    """

    def __init__(self, mode: str, classes: int) -> None:
        self.mode, self.classes, self._ready = mode, classes, mode in ("pil", "raw")

    def __call__(self, image: bytes, label: bytes) -> Pair:
        if not self._ready:
            single_threaded()
            self._ready = True
        return _WORK[self.mode](image, label, self.classes)


def single_threaded() -> None:
    """OpenCV takes one thread: how many decode is the bench's to set."""
    import cv2

    cv2.setNumThreads(1)


def _fast(image: bytes, label: bytes, classes: int) -> Pair:
    from shards.codec import decode_hard, decode_image

    return decode_image(image), decode_hard(label, classes)


def _pil(image: bytes, label: bytes, classes: int) -> Pair:
    import numpy as np
    from PIL import Image

    return np.array(Image.open(io.BytesIO(image))), np.array(Image.open(io.BytesIO(label)))


def _soft(image: bytes, label: bytes, classes: int) -> Pair:
    """One plane at a time in the cache: several times faster than torch's one_hot and interpolate of all classes."""
    import cv2
    import numpy as np

    pixels, hard = _fast(image, label, classes)
    size = (-(-hard.shape[1] // FACTOR), -(-hard.shape[0] // FACTOR))
    planes = [cv2.resize((hard == c).astype(np.float32), size, interpolation=cv2.INTER_AREA) for c in range(classes)]
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.stack(planes)


def _soft_torch(image: bytes, label: bytes, classes: int) -> Pair:
    import cv2
    import numpy as np
    import torch
    import torch.nn.functional as F

    pixels, hard = _fast(image, label, classes)
    size = (-(-hard.shape[0] // FACTOR), -(-hard.shape[1] // FACTOR))
    ids = torch.from_numpy(np.minimum(hard, classes).astype(np.int64))  # void becomes class C, whose plane is dropped
    planes = F.one_hot(ids, classes + 1)[..., :classes].permute(2, 0, 1)[None].float()
    small = F.interpolate(planes, size=size, mode="bilinear", antialias=True)[0]
    return cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_AREA), small.numpy()


def _raw(image: bytes, label: bytes, classes: int) -> Pair:
    return bytes(image), bytes(label)


_WORK: dict[str, Callable[[bytes, bytes, int], Pair]] = {
    "fast": _fast,
    "pil": _pil,
    "soft": _soft,
    "soft-torch": _soft_torch,
    "raw": _raw,
}


def stack(pairs: Sequence[Pair]) -> Pair:
    """(images, labels) of a batch as arrays [B, ...]; bytes stay lists."""
    import numpy as np

    images, labels = zip(*pairs, strict=True)
    if isinstance(images[0], bytes):
        return list(images), list(labels)
    return np.stack(images), np.stack(labels)


def tensors(pairs: Sequence[Pair]) -> Pair:
    """A batch as torch's DataLoader makes it: in its workers straight into shared memory; bytes stay lists."""
    from torch.utils.data import default_collate

    if isinstance(pairs[0][0], bytes):
        return stack(pairs)
    images, labels = default_collate(list(pairs))
    return images, labels


def label_sum(labels: Any) -> float:
    """What rivals that did equal work agree on, whatever the order of samples: a sum over the batch.

    Bytes: their lengths. Hard labels [B, H, W]: the ids of every 16th row and column, void as 255. Dense soft labels
    [B, C, h, w]: the mass of every 4th row and column; sparse ones (ids, weights, wholes [B]): the same.
    """
    import numpy as np

    if isinstance(labels, list):
        return float(sum(map(len, labels)))
    if isinstance(labels, tuple):
        ids, weights = (np.asarray(part)[..., :: STEP // FACTOR, :: STEP // FACTOR] for part in labels[:2])
        return float((np.where(ids == VOID16, 0.0, weights.astype(np.float64)).sum((1, 2, 3)) / labels[2]).sum())
    array = np.asarray(labels)
    if array.ndim == 4:
        return float(array[..., :: STEP // FACTOR, :: STEP // FACTOR].sum(dtype=np.float64))
    seen = array[:, ::STEP, ::STEP].astype(np.int64)
    return float(np.where(seen == VOID16, VOID8, seen).sum())
