"""The card's recipe, run as printed by a process that cannot import this project: webdataset and zarr alone."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np

from shards import soften
from tests.shards.build import pair
from tests.shards.oracles import box_with_void_border

BLOCK = "import sys\nfor name in ('shards', 'prep', 'train'): sys.modules[name] = None\n"
WEBDATASET = """
import webdataset as wds
for s in wds.WebDataset(sys.argv[2:], shardshuffle=False).decode("rgb8"):
    np.save(f"{sys.argv[1]}/{s['__key__'].replace('/', '_')}.npy", decode(s["soft.npz"], 3))
    assert s["png"].dtype == np.uint8 and s["json"]["key"] == s["__key__"]
"""
ZARR = """
import io, zarr
store = zarr.open_group(sys.argv[2], mode="r")
def member(name, i):
    start, end = store[name + "/offsets"][i : i + 2]
    return store[name + "/data"][start:end].tobytes()
for i in range(store["key/offsets"].shape[0] - 1):
    key = member("key", i).decode().replace("/", "_")
    np.save(f"{sys.argv[1]}/{key}.npy", decode(np.load(io.BytesIO(member("soft.npz", i))), 3))
"""


def test_the_printed_recipe_decodes_every_sample(shard_set, tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (shard_set / "README.md").read_text(), re.S)
    recipe = [b for b in blocks if "def decode(" in b]
    assert len(recipe) == 1
    assert sum(bool(line.strip()) for line in recipe[0].splitlines()) <= 12
    tars = sorted(map(str, shard_set.glob("train/1-4/*.tar")))
    code = BLOCK + recipe[0] + (WEBDATASET if tars else ZARR)
    sources = tars or [str(shard_set / "train/1-4/train-1-4.zarr")]
    subprocess.run([sys.executable, "-c", code, str(tmp_path), *sources], check=True)
    assert len(list(tmp_path.glob("*.npy"))) == 5
    for i in range(5):
        shares = np.load(tmp_path / f"city_train_{i:03d}.npy")
        np.testing.assert_allclose(shares, box_with_void_border(pair(i)[1], 3, 4), atol=1e-6)


def test_recipe_handles_wide_ids_and_no_mixed_cells(tmp_path):
    from shards.card import RECIPE
    from shards.codec import encode_soft

    scope: dict = {}
    exec(RECIPE, scope)  # the text that the card prints
    import io

    for hard in (np.full((8, 8), 65535, np.uint16), np.arange(64, dtype=np.uint16).reshape(8, 8) * 5):
        soft = soften(hard, "1/4")
        shares = scope["decode"](np.load(io.BytesIO(encode_soft(soft))), 400)
        np.testing.assert_allclose(shares[..., :400], soft.dense(400, void="keep"), atol=1e-6)
        np.testing.assert_allclose(shares[..., 400], soft.void(), atol=1e-6)


def test_the_printed_use_of_the_card_runs(shard_set):
    blocks = re.findall(r"```python\n(.*?)```", (shard_set / "README.md").read_text(), re.S)
    code = BLOCK + "\n".join(blocks) + "\nassert shares.shape == (16, 24, 4)\n"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=shard_set)


def test_the_card_says_what_was_chosen_and_what_metadata_means(shard_set):
    from shards.card import card
    from shards.manifest import load_manifest

    protocol = {"labels": "as published, with known errors", "sizes": {"car": 1.5}, "meta": {"neg_classes": "absent"}}
    settings = {"options": {"overlap": "first"}, "weak": "windows of 512"}
    text = card(load_manifest(shard_set).model_copy(update={"protocol": protocol, "settings": settings}))
    assert "- labels: as published, with known errors\n- meta:\n  - neg classes: absent\n" in text
    assert "- `--overlap` first\n" in text
    assert "image-level labels, for windows of 512\n" in text
    assert "1.5" not in text


def test_the_card_is_that_of_the_manifest_as_it_will_be_read(shard_set):
    """Which sorts its keys: a set that is converted and converted back must have the card that it had."""
    from shards.card import card
    from shards.manifest import load_manifest, manifest_bytes, parse_manifest, seal

    protocol = {"wnids": "given", "labels": {"b": "two", "a": "one"}}
    settings = {"options": {"overlap": "first", "labels": "published"}}
    manifest = seal(load_manifest(shard_set).model_copy(update={"protocol": protocol, "settings": settings}))
    assert card(manifest) == card(parse_manifest(manifest_bytes(manifest), "memory"))
