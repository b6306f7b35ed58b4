"""Recipes as values: what is accepted, what is refused and how it is said, what extends what."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.errors import SettingsError
from train.config import Recipe, from_dict, load_recipe, recipe_names, recipe_summary


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text('description = "a test"\n[data]\nscales = ["1/2", "1/4"]\n[augment]\ncrop = [64, 96]\n')
    return path


def refusal(path: Path, *overrides: str) -> str:
    """The one line that loading ends with."""
    with pytest.raises(SettingsError) as caught:
        load_recipe(str(path), overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert "pydantic" not in message
    return message


def test_values_of_the_file_and_defaults_of_the_schema(recipe_file: Path) -> None:
    recipe = load_recipe(str(recipe_file))
    assert recipe.name == "mine"
    assert recipe.data.scales == ("1/2", "1/4")
    assert recipe.augment.crop == (64, 96)
    assert recipe.loss.kind == "cross-entropy"


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("optim.lr=0.5", lambda r: r.optim.lr == 0.5),
        ("optim.lr=1", lambda r: r.optim.lr == 1.0),
        ("optim.name=adamw", lambda r: r.optim.name == "adamw"),
        ("data.scales=1/8", lambda r: r.data.scales == ("1/8",)),
        ("data.scales=1", lambda r: r.data.scales == ("1",)),
        ("data.scales=2/8", lambda r: r.data.scales == ("1/4",)),
        ("eval.input_scale=4/4", lambda r: r.eval.input_scale == "1"),
        ("eval.input_scale=1", lambda r: r.eval.input_scale == "1"),
        ('data.scales=["1", "1/4"]', lambda r: r.data.scales == ("1", "1/4")),
        ("loss.multi_class_cells=false", lambda r: r.loss.multi_class_cells is False),
        ("optim.clip=2.5", lambda r: r.optim.clip == 2.5),
        ("optim.clip=none", lambda r: r.optim.clip is None),
        ("augment.jitter.hue=0.1", lambda r: r.augment.jitter.hue == 0.1),
        ("model.weights=/some/where.safetensors", lambda r: r.model.weights == "/some/where.safetensors"),
        ("eval.scales=[0.5, 1]", lambda r: r.eval.scales == (0.5, 1.0)),
    ],
)
def test_overrides_are_toml_values_or_bare_strings(recipe_file: Path, override: str, value: object) -> None:
    assert callable(value)
    assert value(load_recipe(str(recipe_file), [override]))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optim.lrr=1", ["unknown key optim.lrr", "did you mean 'lr'"]),
        ("optimm.lr=1", ["unknown section optimm", "did you mean 'optim'"]),
        ("augment.jitter.brightnes=1", ["augment.jitter.brightnes", "'brightness'"]),
        ("zzz.qqq=1", ["unknown section zzz", "known: ", "schedule"]),
        ("optim.lr=fast", ["optim.lr = 'fast'", "number"]),
        ("optim.lr=0", ["optim.lr = 0", "greater than 0"]),
        ("optim.lr=nan", ["optim.lr = nan", "finite"]),
        ("loop.steps=1.5", ["loop.steps = 1.5", "integer"]),
        ("loop.steps=true", ["loop.steps = True", "integer"]),
        ("loop.amp=fp8", ["loop.amp = 'fp8'", "'bf16'"]),
        ("data.scales=1/0", ["data.scales.0 = '1/0'", "scale"]),
        ("data.labels=softer", ["data.labels = 'softer'", "'nearest-corner'"]),
        ("augment.crop=[64, 64, 3]", ["augment.crop", "at most 2"]),
        ("lr=1", ["section.key=value"]),
        ("optim.lr", ["key=value"]),
        ("description.x=1", ["description is not a section"]),
    ],
)
def test_refusals_name_key_value_and_remedy(recipe_file: Path, override: str, said: list[str]) -> None:
    message = refusal(recipe_file, override)
    assert all(part in message for part in said), message


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.mode=rescale", 'data.scales=["1"]'], "augment.rescale"),
        (["augment.rescale=[0.5, 1]"], 'data.mode = "rescale"'),
        (["data.mode=rescale", "augment.rescale=[0.5, 1]"], "data.scales"),
        (["data.mode=rescale", "data.scales=1", "augment.rescale=[1, 0.5]"], "low <= high"),
        (["loop.batch=8", "loop.accumulate=3"], "multiple of loop.accumulate"),
        (["augment.crop=none"], "augment.crop is off"),
        (["schedule.min_lr=1.0"], "schedule.min_lr"),
        (["model.output_stride=32"], "8 or 16"),
        (["optim.nesterov=true", "optim.momentum=0"], "optim.momentum"),
        (["model.std=[0.1, 0, 0.1]"], "model.std"),
        (["data.scales=1/999"], "1/255 to 16"),
        (["data.max_classes_per_cell=1", "loss.multi_class_cells=false"], "max_classes_per_cell above 1"),
    ],
)
def test_values_that_do_not_fit_each_other_are_refused(recipe_file: Path, overrides: list[str], said: str) -> None:
    assert said in refusal(recipe_file, *overrides)


def test_an_unknown_recipe_suggests_the_nearest() -> None:
    with pytest.raises(SettingsError, match="did you mean 'camvid-efficientnet-lite0'"):
        load_recipe("camvid-efficientnet-lite")


def test_a_missing_file_and_a_broken_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nowhere\.toml not found"):
        load_recipe(str(tmp_path / "nowhere.toml"))
    (tmp_path / "broken.toml").write_text("description = \n")
    with pytest.raises(SettingsError, match=r"broken\.toml: not a TOML file"):
        load_recipe(str(tmp_path / "broken.toml"))
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match=r"binary\.toml: not a TOML file"):
        load_recipe(str(tmp_path / "binary.toml"))


def test_extends_merges_tables_and_inherits_neither_description_nor_scores(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text(
        'description = "base"\nexpected = [{dataset = "d", metric = "miou", value = 1.0, source = "s"}]\n'
        "[optim]\nlr = 0.5\nmomentum = 0.5\n[augment]\ncrop = [64, 64]\n"
    )
    (tmp_path / "child.toml").write_text('extends = "base.toml"\ndescription = "child"\n[optim]\nlr = 0.25\n')
    child = load_recipe(str(tmp_path / "child.toml"))
    assert (child.optim.lr, child.optim.momentum, child.augment.crop) == (0.25, 0.5, (64, 64))
    assert (child.name, child.description, child.expected) == ("child", "child", ())
    (tmp_path / "silent.toml").write_text('extends = "base.toml"\n')
    with pytest.raises(SettingsError, match="description is missing"):
        load_recipe(str(tmp_path / "silent.toml"))


def test_extends_in_a_circle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('extends = "b.toml"\ndescription = "a"\n')
    (tmp_path / "b.toml").write_text('extends = "a.toml"\ndescription = "b"\n')
    with pytest.raises(SettingsError, match="break the circle"):
        load_recipe(str(tmp_path / "a.toml"))


def test_overriding_does_not_change_what_was_extended(recipe_file: Path) -> None:
    load_recipe(str(recipe_file), ["augment.jitter.hue=0.5"])
    assert load_recipe(str(recipe_file)).augment.jitter.hue == 0.0


@pytest.mark.parametrize("name", recipe_names())
def test_round_trip_through_json(name: str) -> None:
    recipe = load_recipe(name)
    assert from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


@pytest.mark.parametrize("values", [None, [], 3, {}, {"name": "x"}, {"name": "x", "description": "y", "data": 3}])
def test_stored_values_are_checked_like_a_file(values: object) -> None:
    with pytest.raises(SettingsError):
        from_dict(values)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=4), st.lists, max_leaves=4))
def test_no_value_ends_in_anything_but_a_readable_refusal(value: object) -> None:
    base = {"name": "x", "description": "y"}
    for section, key in (("optim", "lr"), ("augment", "crop"), ("data", "scales"), ("model", "mean")):
        with contextlib.suppress(SettingsError):  # its message is one line by construction
            assert isinstance(from_dict({**base, section: {key: value}}), Recipe)


def test_a_recipe_cannot_be_changed() -> None:
    recipe = load_recipe("camvid-efficientnet-lite0")
    with pytest.raises(ValueError, match="frozen"):
        recipe.optim.lr = 1.0  # type: ignore[misc]


def test_summaries_are_the_descriptions() -> None:
    for name in recipe_names():
        assert recipe_summary(name) == load_recipe(name).description
