"""Check a whole shard set: every checksum, every member decoded, every invariant. ``seg-shards verify OUT``.

Nothing stops at the first problem: all of them are reported, each naming its file. Only a server or a cache that cannot
be used ends it: each sample would wait for it again, and it says nothing of the set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from shards.dataset import Sample, ShardDataset, decode_sample
from shards.errors import FormatError
from shards.local import check_file as check_file
from shards.manifest import Manifest, load_manifest
from shards.scale import Scale
from shards.soften import soften
from shards.store import Place, Store, open_store
from shards.tar import scan
from shards.tarset import TarReader


def verify(place: Place | Store, advance: Callable[[], None] = lambda: None) -> Iterator[str]:
    """Problems of a shard set, one line each.

    Args:
        place: folder, URL or open store of the shard set.
        advance: called once a file and once a sample, for progress; ``count_steps`` says how often.

    Raises:
        UserError, FormatError: no manifest, or one that is damaged: then nothing else can be trusted.
        UserError: a file that cannot be fetched: refused, no connection, no room in the cache.
    """
    store = open_store(place, check=False)  # all files are hashed here, and broken ones looked into
    manifest = load_manifest(store)
    broken = set()
    for file in manifest.all_files():
        problem = store.check(file)
        if problem:
            broken.add(file.path)
            yield problem
        advance()
    for name in manifest.splits:
        yield from _verify_split(store, manifest, name, broken, advance)


def count_steps(place: Place | Store) -> int:
    """Files plus samples at each scale."""
    manifest = load_manifest(place)
    return len(manifest.all_files()) + sum(len(s.scales) * s.samples for s in manifest.splits.values())


def _verify_split(
    store: Store, manifest: Manifest, name: str, broken: set[str], advance: Callable[[], None]
) -> Iterator[str]:
    """Indexes against tar headers, keys against each other, then every sample at every scale."""
    split = manifest.splits[name]
    sets = {scale: ShardDataset(store, manifest, name, Scale.parse(scale)) for scale in split.scales}
    keys: list[str] | None = None
    for scale, dataset in sets.items():
        try:
            yield from _verify_index(dataset, broken)
            found = dataset.keys()
        except FormatError as error:
            yield str(error)
            return
        if keys is not None and found != keys:
            yield f"{store.name}: split {name}: scale {scale} holds other keys than scale {next(iter(sets))}"
            return
        keys = found
    if len(set(keys or ())) != len(keys or ()):
        yield f"{store.name}: split {name}: a key comes twice"
    for i, key in enumerate(keys or ()):
        yield from _verify_sample(sets, i, key, manifest, split.labelled)
        for _ in sets:
            advance()


def _verify_index(dataset: ShardDataset, broken: set[str]) -> Iterator[str]:
    """Every tar's headers must be what its index says, and so must its samples where that has their checksums."""
    store = dataset.store
    reader = TarReader(store, dataset.manifest.splits[dataset.split].scales[dataset.scale])
    for number, shard in enumerate(reader.part.shards):
        if {shard.path, shard.index.path} & broken:
            continue
        try:
            where, entries = f"{store.name}/{shard.path}", reader.entries(number)
            sums = any(entry.crc is not None for entry in entries)
            if list(scan(store.local(shard), where, sums)) != entries:
                yield f"{where}: headers or samples differ from the index {shard.index.path}"
        except FormatError as error:
            yield str(error)


def _verify_sample(
    sets: dict[str, ShardDataset], i: int, key: str, manifest: Manifest, labelled: bool
) -> Iterator[str]:
    """Decode a sample at every scale and compare the scales."""
    samples: dict[str, Sample] = {}
    for scale, dataset in sets.items():
        where = f"{dataset.folder}/{dataset.split}/{Scale.parse(scale).folder} sample {key}"
        try:
            sample = decode_sample(dataset.members(i), len(dataset.classes), where)
        except FormatError as error:
            yield str(error)
            continue
        samples[scale] = sample
        if sample.meta.get("split", dataset.split) != dataset.split:
            yield f"{where}: metadata names the split {sample.meta['split']!r}"
        for problem in _sample_problems(sample, key, scale, manifest, labelled):
            yield f"{where}: {problem}"
    full = samples.get("1")
    if full is None or full.hard is None:
        return
    for scale, sample in samples.items():
        if sample.soft is not None and sample.soft != soften(full.hard, scale, manifest.filter):
            yield f"{sets[scale].folder} sample {key}: soft label at {scale} is not what its hard label gives"


def _sample_problems(sample: Sample, key: str, scale: str, manifest: Manifest, labelled: bool) -> Iterator[str]:
    if sample.key != key:
        yield f"metadata names the key {sample.key!r}"
    label = sample.hard if scale == "1" else sample.soft
    if labelled != (label is not None):
        yield f"{'no label' if labelled else 'a label'} found in a split that is {'' if labelled else 'not '}labelled"
    size = sample.meta.get("size")
    if not (isinstance(size, list) and len(size) == 2 and all(type(v) is int and v > 0 for v in size)):
        yield f"metadata has size {size!r}; expected [height, width] of the source image"
    elif Scale.parse(scale).size(size[0], size[1], manifest.filter) != sample.image.shape[:2]:
        yield f"image of {sample.image.shape[:2]} does not fit a source of {size} at scale {scale}"
