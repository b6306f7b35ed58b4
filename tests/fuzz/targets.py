"""The parsers as functions of bytes, with the errors that each may raise."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from prep.build.journal import read_journal
from prep.build.sources import decode_line
from prep.build.state import BuildState
from prep.class_file import read_class_file
from prep.coco.annotation import annotation_runs, parse_annotations
from prep.coco.elements import elements
from prep.coco.index import load_index
from prep.coco.runs import polygon_runs, rle_runs
from prep.datasets import coco_panoptic, load_reader, vistas, wilddash
from prep.decode import decode_source
from prep.indexed import decode_indices
from prep.mapping.table import read_mapping
from prep.mapping.tables import table_rows
from prep.matfile import as_ids, load_variable
from prep.pairs import listed
from prep.remapped import remapped
from prep.wnids.lists import _kaggle_row, _read, _tiny_row
from prep.wnids.tarfiles import members
from shards import ClassTable
from shards.codec import (
    decode_hard,
    decode_image,
    decode_instances,
    decode_meta,
    decode_soft,
    encode_soft,
    image_facts,
)
from shards.errors import SegshardsError
from shards.index import decode_entry, decode_index
from shards.manifest import parse_manifest
from shards.scale import Scale
from shards.tar import TAR_END, scan, split_blocks
from tests.fuzz import seeds
from train.class_names import read_pairs
from train.config import load_recipe
from train.run import open_run
from train.runlog import read_log

Call = Callable[[bytes], object]
FOUND = Path(__file__).parent / "found"


@dataclass(frozen=True)
class Target:
    """A parser.

    Attributes:
        call: gives it some bytes.
        seeds: gives honest inputs.
        allowed: what it may raise; everything else is a finding.
    """

    call: Call
    seeds: Callable[[], list[bytes]]
    allowed: tuple[type[Exception], ...] = (SegshardsError,)

    def run(self, data: bytes) -> bool:
        """Whether the input was taken; raises whatever is a finding. Errors must be one line that can be printed."""
        try:
            self.call(data)
        except self.allowed as error:
            said = str(error)
        else:
            return True
        assert "\n" not in said
        said.encode()  # half a surrogate pair could not be printed
        return False


@cache
def _folder() -> Path:
    """Where inputs of parsers that want a file are put; in memory where the system has such a place."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = tempfile.mkdtemp(prefix="fuzz-", dir=place)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _with_file(call: Callable[[Path], object], name: str) -> Call:
    def run(data: bytes) -> object:
        path = _folder() / name
        path.write_bytes(data)
        try:
            return call(path)
        finally:
            path.unlink()

    return run


def _split(data: bytes) -> object:
    return split_blocks(data, seeds.shard()[1], "here")


def _soft(data: bytes) -> None:
    soft = decode_soft(data)
    dense = soft.weights.astype(np.int64)
    if len(soft.cells):  # what is taken keeps the invariants
        assert (np.add.reduceat(dense, soft.starts[:-1]) == soft.denominator).all()
        assert 0 <= soft.cells.min() <= soft.cells.max() < soft.base.size
    assert decode_soft(encode_soft(soft)) == soft


def _hard(data: bytes) -> None:
    hard = decode_hard(data, 5)
    assert (hard.dtype, hard.ndim) == (np.uint16, 2)
    assert ((hard < 5) | (hard == 65535)).all()


def _image(data: bytes) -> None:
    image_facts(data)
    pixels = decode_image(data)
    assert (pixels.dtype, pixels.shape[2:]) == (np.uint8, (3,))


def _instances(data: bytes) -> None:
    assert decode_instances(data).dtype == np.uint16


def _entry(data: bytes) -> object:
    return decode_entry(data, "here", 1)


def _sources(data: bytes) -> object:
    return decode_line(data, (Scale.parse("1"), Scale.parse("1/2")), "here", 1)


def _state(data: bytes) -> object:
    state = BuildState()
    try:
        line = json.loads(data)
        if not isinstance(line, dict):
            return None
    except (ValueError, RecursionError):
        return None
    try:
        state.add(line)
    except (KeyError, TypeError, ValueError, AttributeError):  # what `last_consistent` takes for a foreign line
        return None
    return state


def _annotations(data: bytes) -> list[int]:
    annotations = parse_annotations(data, "here")
    return [len(annotation_runs(annotation, 24, 30, "here")) for annotation in annotations[:8]]


def _rle(data: bytes) -> None:
    runs = rle_runs(data.decode("latin-1"), (24, 30), 24, 30, "here")
    if len(runs):
        assert 0 <= runs.min() <= runs.max() <= 720
        assert (runs[:, 0] < runs[:, 1]).all()


def _counts(data: bytes) -> None:
    runs = rle_runs(np.frombuffer(data[: len(data) // 8 * 8], np.int64).tolist(), (24, 30), 24, 30, "here")
    assert not len(runs) or (runs.min() >= 0 and runs.max() <= 720)


def _polygon(data: bytes) -> None:
    with np.errstate(invalid="ignore"):  # signalling NaNs
        numbers = np.frombuffer(data[: len(data) // 4 * 4], np.float32).astype(np.float64).tolist()
    runs = polygon_runs([numbers[:-6], numbers[-6:]] if len(numbers) > 14 else [numbers], 24, 30, "here")
    assert not len(runs) or (runs.min() >= 0 and runs.max() <= 720)


def _elements(path: Path) -> list[object]:
    found = [(text, spans) for _, text, spans in elements(path, {"images", "annotations"}, chunk=64)]
    size = path.stat().st_size
    assert all(spans.min() >= 0 and (spans[:, 0] + spans[:, 1]).max() <= size for _, spans in found)
    return found  # whether a text is JSON is for its parser to say


def _tarfile(path: Path) -> int:
    count = 0
    for member in members(path):
        assert member.place.offset + member.place.length <= path.stat().st_size
        count += 1
    return count


def _mat(data: bytes) -> object:
    return as_ids(load_variable(data, "GTcls.Segmentation", "here"), "here")


def _mat_text(data: bytes) -> object:
    return load_variable(data, "names", "here")


def _classes(name: str) -> Call:
    def call(path: Path) -> object:
        return read_class_file(path.parent)

    return _with_file(call, name)


def _lists(path: Path) -> object:
    return listed(path), _read(path, _tiny_row), _read(path, _kaggle_row)


def _source_image(data: bytes) -> None:
    source = decode_source(data, "here", max_pixels=1 << 22)
    assert (source.pixels.ndim, source.pixels.dtype) == (3, np.uint8)


def _indices(data: bytes) -> object:
    return decode_indices(data, "here")


def _names_map(path: Path) -> object:
    run, of_set = (ClassTable.make(names) for names in (["road", "car"], ["street", "auto"]))
    return read_pairs(path, run, of_set)


def _class_map(path: Path) -> object:
    return remapped(load_reader("camvid"), str(path)).classes


def _panoptic(path: Path) -> object:
    return coco_panoptic._load(path)


def _recipe(path: Path) -> object:
    return load_recipe(str(path))


def _set(data: bytes) -> object:
    return load_recipe("demo", [data.decode(errors="replace")])


TARGETS: dict[str, Target] = {
    "tar_scan": Target(
        _with_file(lambda path: list(scan(path)), "shard.tar"), lambda: [seeds.shard()[0] + TAR_END, TAR_END]
    ),
    "split_blocks": Target(_split, lambda: [seeds.shard()[0]]),
    "index": Target(decode_index, seeds.index_seeds),
    "index_entry": Target(_entry, lambda: [seeds.index_seeds()[0].splitlines()[1]]),
    "manifest": Target(lambda data: parse_manifest(data, "here"), seeds.manifest_seeds),
    "soft": Target(_soft, seeds.soft_seeds),
    "hard": Target(_hard, lambda: [seeds.members()["seg.png"], seeds.members()["inst.png"]]),
    "image": Target(_image, seeds.images),
    "instances": Target(_instances, lambda: [seeds.members()["inst.png"], seeds.members()["seg.png"]]),
    "meta": Target(decode_meta, lambda: [seeds.members()["json"]]),
    "annotations": Target(_annotations, seeds.text(seeds.ANNOTATION)),
    "rle": Target(_rle, seeds.text(seeds.PACKED)),
    "counts": Target(_counts, lambda: [np.array([3, 700, 17], np.int64).tobytes()]),
    "polygon": Target(_polygon, lambda: [np.array([1, 1, 9, 2, 8, 9] * 4, np.float32).tobytes()]),
    "elements": Target(_with_file(_elements, "coco.json"), seeds.text(seeds.COCO)),
    "coco_index": Target(_with_file(load_index, "index.json"), seeds.text(seeds.COCO)),
    "tarfile": Target(_with_file(_tarfile, "n.tar"), seeds.tar_seeds),
    "matfile": Target(_mat, seeds.mat_seeds),
    "matfile_text": Target(_mat_text, seeds.mat_seeds),
    "classes_txt": Target(_classes("classes.txt"), seeds.text("road\t1,2,3\ncar\nvoid\n")),
    "classes_tsv": Target(
        _classes("classes.tsv"), seeds.text("id\tname\tcolour\n0\troad\t1,2,3\n7\tcar\t\n255\tvoid\t\n")
    ),
    "mapping": Target(_with_file(read_mapping, "m.tsv"), seeds.text("wnid\tclass\tway\nn02084071\tdog\tname\n")),
    "lists": Target(
        _with_file(_lists, "list.txt"), seeds.text("a.JPEG\tn02084071\t1\t2\nImageId,P\nb,n02084071 1 2 3 4\n\ufeffc\n")
    ),
    "source_image": Target(_source_image, seeds.images),
    "indices": Target(_indices, seeds.palettes),
    "journal": Target(_with_file(read_journal, "journal.jsonl"), seeds.text(seeds.JOURNAL), ()),
    "journal_line": Target(_state, seeds.text(seeds.JOURNAL.splitlines()[1]), ()),
    "names_map": Target(_with_file(_names_map, "map.tsv"), seeds.text("from\tto\nroad\tstreet\ncar\tauto\n")),
    "class_map": Target(_with_file(_class_map, "map.tsv"), seeds.class_maps),
    "table_file": Target(
        _with_file(lambda path: table_rows(str(path)), "t.tsv"),
        seeds.text("id\tname\n0\troad\n1\tcar\n", "road\ncar\n"),
    ),
    "wilddash": Target(
        _with_file(lambda path: wilddash._lists(path.parent), "random_split.json"),
        seeds.text('{"train":["a"],"val":["b"]}'),
    ),
    "vistas": Target(
        _with_file(vistas._config_names, "config.json"), seeds.text('{"labels":[{"name":"a","color":[1,2,3]}]}')
    ),
    "panoptic": Target(_with_file(_panoptic, "panoptic.json"), seeds.text(seeds.PANOPTIC)),
    "run_log": Target(
        _with_file(lambda path: read_log(path.parent), "log.jsonl"),
        seeds.text('{"step":1,"loss":2.5}\n{"step":2,"loss":2.25}\n'),
    ),
    "run_json": Target(_with_file(lambda path: open_run(path.parent), "run.json"), seeds.run_files),
    "recipe": Target(_with_file(_recipe, "r.toml"), seeds.text(seeds.RECIPE)),
    "set": Target(_set, seeds.text("optim.lr=0.01", 'data.scales=["1/2"]', "description=x")),
    "sources_line": Target(_sources, seeds.text(seeds.SOURCE_LINE)),
}
