"""The dataset card: the README.md of a shard set, for people who have never heard of this project.

It holds the one recipe that decodes a soft label with NumPy alone; ``tests/shards/test_card.py`` runs it as printed.
"""

from __future__ import annotations

from collections.abc import Mapping

from shards.manifest import Manifest

RECIPE = """\
import numpy as np
def decode(npz, num_classes):
    base, bits, more = npz["base"], np.unpackbits(npz["mixed"]), npz["further"]
    plane = lambda ids: np.where(ids == np.iinfo(base.dtype).max, num_classes, ids.astype(int))
    out = np.eye(num_classes + 1, dtype=np.float32)[heavy := plane(base.ravel())] * npz["denominator"]
    edge = np.any([np.roll(base, step, axis) != base for step in (1, -1) for axis in (0, 1)], axis=0)
    cells = np.argsort(~edge.ravel(), kind="stable")  # border cells first
    while len(cells):  # cells with a second class, with a third, ...
        cells, bits = cells[bits[: len(cells)] == 1], bits[len(cells) :]
        (ids, weights), more = more[:, : len(cells)], more[:, len(cells) :]
        out[cells, plane(ids)], out[cells, heavy[cells]] = weights, out[cells, heavy[cells]] - weights
    return out.reshape(*base.shape, -1) / npz["denominator"]
"""

MANY_CLASSES = 2000  # of more, the card lists only those that occur
_WEBDATASET = """\
import webdataset as wds
for sample in wds.WebDataset("{tar}", shardshuffle=False).decode("rgb8"):
    key, meta = sample["__key__"], sample["json"]
    shares = decode(sample["soft.npz"], {classes})
"""

_ZARR = """\
import io, zarr
store = zarr.open_group("{store}", mode="r")
def member(name, i):
    start, end = store[name + "/offsets"][i : i + 2]
    return store[name + "/data"][start:end].tobytes()   # image, json, seg.png, soft.npz, key
shares = decode(np.load(io.BytesIO(member("soft.npz", 0))), {classes})
"""


def card(manifest: Manifest, class_pixels: Mapping[str, int] | None = None, quarantined: int = 0) -> str:
    """Markdown of the card.

    Args:
        manifest: of the set; its digest and files are not used, so the card can be written before it.
        class_pixels: class name -> labelled pixels over all splits, where counted.
        quarantined: how many source samples could not be used.
    """
    parts = [
        _head(manifest, quarantined),
        _splits(manifest),
        _reading(manifest),
        _classes(manifest, class_pixels or {}),
    ]
    return "\n".join(parts)


def _head(m: Manifest, quarantined: int) -> str:
    lost = f"\n{quarantined} source samples could not be used: `quarantine.jsonl` names each with the reason.\n"
    return (
        f"# {m.title}\n\nA shard set of `{m.dataset}`, made by segshards (format version {m.format_version}).\n\n"
        f"- Source: {m.source}\n- Terms of the source: {m.terms}\n"
        f"- {len(m.class_table)} classes; void pixels belong to none\n"
        f"- Images and labels resized by the same filter: `{m.filter}`\n{_choices(m)}{lost if quarantined else ''}"
    )


def _choices(m: Manifest) -> str:
    """What was chosen for this build and what its labels and metadata mean, as the manifest has it."""
    asked = m.settings.get("options")
    options = sorted(asked.items()) if isinstance(asked, dict) else ()
    lines = [f"- `--{name}` {value}\n" for name, value in options]
    if isinstance(m.settings.get("weak"), str):
        lines.append(f"- Pixel labels were turned into image-level labels, for {m.settings['weak']}\n")
    return "".join([*lines, *_facts(m.protocol, "")])


def _facts(values: Mapping[str, object], indent: str) -> list[str]:
    """Short values of the manifest's protocol as a list, in the order of a manifest that was read, so that equal
    manifests give equal cards; tables of numbers stay in the manifest."""
    lines = []
    for name, value in sorted(values.items()):
        words = name.replace("_", " ")
        if isinstance(value, str | bool | int):
            lines.append(f"{indent}- {words}: {value}\n")
        elif isinstance(value, dict) and all(isinstance(part, str) for part in value.values()):
            lines += [f"{indent}- {words}:\n", *_facts(value, f"{indent}  ")]
    return lines


def _splits(m: Manifest) -> str:
    rows = [
        f"| {name} | {split.samples} | {'yes' if split.labelled else 'no'} | {', '.join(m.scales)} |"
        for name, split in m.splits.items()
    ]
    return "\n".join(["## Splits\n", "| split | samples | labelled | scales |", "|---|---|---|---|", *rows, ""])


def _reading(m: Manifest) -> str:
    text = (
        "## Reading it without segshards\n\n"
        "Hard labels (scale 1) are PNGs of class ids: 8 bits with void 255 up to 255 classes, else 16 bits with void\n"
        "65535. Soft labels (other scales) are NumPy archives: the exact share of each class in each cell.\n"
        "`decode` takes what `np.load` returns for one and gives float32 [h, w, num_classes + 1], void last.\n"
        "Where a sample's JSON holds `weak`, these are the ids of the classes that the image is known to show.\n\n"
        f"```python\n{RECIPE}```\n"
    )
    soft = [scale for scale in m.scales if scale != "1"]
    labelled = [name for name, split in m.splits.items() if split.labelled]
    if not soft or not labelled:
        return text
    part = m.splits[labelled[0]].scales[soft[0]]
    classes = len(m.class_table)
    use = _ZARR.format(store=part.store, classes=classes) if part.store else ""
    if part.shards:
        use = _WEBDATASET.format(tar=part.shards[0].path, classes=classes)
    return f"{text}\n```python\n{use}```\n"


def _classes(m: Manifest, pixels: Mapping[str, int]) -> str:
    total = sum(pixels.values())
    rows = []
    for i, (name, colour) in enumerate(zip(m.class_table.names, m.class_table.colours, strict=True)):
        share = f"{100 * pixels.get(name, 0) / total:.3f} %" if total else ""
        rows.append(f"| {i} | {name} | {','.join(map(str, colour))} | {share} |")
    if len(rows) > MANY_CLASSES:
        rows = [row for row, name in zip(rows, m.class_table.names, strict=True) if pixels.get(name)][:MANY_CLASSES]
        rows.append(f"\n{len(m.class_table)} classes; `manifest.json` holds the whole table under `classes`.")
    head = ["## Classes\n", "| id | name | colour | share of labelled pixels |", "|---|---|---|---|"]
    return "\n".join([*head, *rows, ""])
