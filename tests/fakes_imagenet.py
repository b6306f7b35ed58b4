"""Tiny ImageNets in each layout in which they are found: folders and tars of wnids, tars in a tar, Tiny, ILSVRC.

    fake_folders(tmp_path / "in", {"n02084071": 3, "n02121808": 2})

Pictures are a few hundred bytes; equal arguments give equal files, in whatever layout they lie.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

WNIDS = {"n02084071": 3, "n02121808": 2, "n12345678": 1, "n04399382": 2}  # dog, cat, none in WordNet, teddy


def jpeg(wnid: str, number: int, size: tuple[int, int] = (24, 32)) -> bytes:
    """A picture of its own for every wnid and number: a gradient and a little noise, as a JPEG."""
    rng = np.random.default_rng([int(wnid[1:]), number])
    corners = rng.integers(0, 256, (2, 2, 3)).astype(np.uint8)
    image = Image.fromarray(corners).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=85)
    return out.getvalue()


def pictures(wnids: Mapping[str, int] = WNIDS) -> dict[str, bytes]:
    """{"<wnid>/<wnid>_<number>": bytes}: every key and what its image must be."""
    return {f"{wnid}/{wnid}_{n * 7}": jpeg(wnid, n) for wnid, count in wnids.items() for n in range(count)}


def write(path: Path, data: bytes) -> Path:
    """A file, its folders made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def fake_folders(root: Path, wnids: Mapping[str, int] = WNIDS) -> Path:
    """ROOT/<wnid>/<wnid>_<number>.JPEG."""
    for key, data in pictures(wnids).items():
        write(root / f"{key}.JPEG", data)
    return root


def tar_bytes(files: Mapping[str, bytes], form: int = tarfile.GNU_FORMAT) -> bytes:
    """A tar of files, in their order."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


def synset_tars(wnids: Mapping[str, int] = WNIDS) -> dict[str, bytes]:
    """{"<wnid>.tar": bytes}; the members of each lie in reverse order."""
    found = pictures(wnids)
    return {
        f"{wnid}.tar": tar_bytes(
            {f"{key.split('/')[1]}.JPEG": found[key] for key in reversed(found) if key.startswith(wnid)}
        )
        for wnid in wnids
    }


def fake_tars(root: Path, wnids: Mapping[str, int] = WNIDS) -> Path:
    """ROOT/<wnid>.tar, as fall11 gives one for each synset."""
    for name, data in synset_tars(wnids).items():
        write(root / name, data)
    return root


def fake_whole_tar(root: Path, wnids: Mapping[str, int] = WNIDS) -> Path:
    """ROOT/fall11_whole.tar, which holds the tars of the synsets, in reverse order."""
    tars = synset_tars(wnids)
    write(root / "fall11_whole.tar", tar_bytes({name: tars[name] for name in reversed(tars)}))
    return root


def fake_tiny(root: Path, wnids: Mapping[str, int] = WNIDS) -> Path:
    """Tiny ImageNet: train/<wnid>/images, val/images with val_annotations.txt, test/images."""
    lines = []
    for number, (wnid, count) in enumerate(wnids.items()):
        for n in range(count):
            write(root / f"train/{wnid}/images/{wnid}_{n}.JPEG", jpeg(wnid, n))
        write(root / f"train/{wnid}/{wnid}_boxes.txt", f"{wnid}_0.JPEG\t0\t0\t9\t9\n".encode())
        name = f"val_{len(wnids) - number}.JPEG"
        write(root / "val/images" / name, jpeg(wnid, 100))
        lines.append(f"{name}\t{wnid}\t0\t32\t44\t62\n")
    write(root / "val/val_annotations.txt", "".join(lines).encode())
    write(root / "test/images/test_0.JPEG", jpeg("n00000001", 0))
    write(root / "wnids.txt", "".join(f"{wnid}\n" for wnid in wnids).encode())
    return root


def fake_kaggle(root: Path, wnids: Mapping[str, int] = WNIDS) -> Path:
    """ImageNet-1k as Kaggle's archive unpacks it: ILSVRC/Data/CLS-LOC, val flat, LOC_val_solution.csv."""
    images = root / "ILSVRC/Data/CLS-LOC"
    fake_folders(images / "train", wnids)
    lines = ["ImageId,PredictionString\n"]
    for number, wnid in enumerate(wnids):
        stem = f"ILSVRC2012_val_{90 - number:08d}"
        write(images / f"val/{stem}.JPEG", jpeg(wnid, 100))
        lines.append(f"{stem},{wnid} 1 2 3 4 {wnid} 5 6 7 8 \n")
    write(images / "test/ILSVRC2012_test_00000001.JPEG", jpeg("n00000001", 0))
    write(root / "ILSVRC/ImageSets/CLS-LOC/val.txt", b"x 1\n")
    write(root / "ILSVRC/Annotations/CLS-LOC/val/x.xml", b"<a/>")
    write(root / "LOC_val_solution.csv", "".join(lines).encode())
    return root
