"""Scores of a run on a shard set with other classes: matched by name, restricted, grouped; against NumPy by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

import shards
from shards.classes import ClassTable
from shards.errors import FormatError, SegshardsError, SettingsError, UserError
from tests.train.conftest import MAINS, Call, recipe
from tests.train.shardset import CLASSES, COLOURS, scene, write
from tests.train.test_cli import RECIPE
from train.class_match import Rule, match
from train.class_names import names_at, read_pairs
from train.distributed import World
from train.evaluate import Example, Split, evaluate, open_for_scoring
from train.inference import Views, load_model, views_of
from train.metrics_split import SplitMetrics
from train.run import open_run
from train.targets import Choice, open_target

CPU = torch.device("cpu")
WORLD = World(CPU)
RUN = ClassTable.make(("dog", "person", "wall", "tree", "road", "car"))
OF_RUN = {"dog": (125, 64, 130), "person": (220, 20, 60), "wall": (70, 70, 70), "tree": (0, 0, 142)}
OF_RUN |= {"road": (128, 60, 120), "car": (10, 0, 140)}  # dog and tree lie nearer to road and car than these do
VOID = shards.IGNORE


class ByColour(nn.Module):
    """Answers the nearest of the colours given: logits [B, R, H, W]."""

    def __init__(self, palette: np.ndarray) -> None:
        super().__init__()
        self.palette = torch.from_numpy(palette).float()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pixels = images.float().permute(0, 2, 3, 1)[..., None, :]  # [B, H, W, 1, 3]
        return -(pixels - self.palette).abs().sum(-1).permute(0, 3, 1, 2) / 20


MODEL = ByColour(np.array([OF_RUN[name] for name in RUN.names]))


def answers_of(split: Split, allowed: set[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    """By hand, image by image: the nearest allowed colour as the shard set's class (C where it has none), the label."""
    out = []
    names = [name for name in RUN.names if name in allowed]
    goal = np.array([list(CLASSES.names).index(n) if n in CLASSES.names else len(CLASSES) for n in names])
    for sample in shards.open(split.path, split="val", scale="1"):
        assert sample.hard is not None
        far = [np.abs(sample.image.astype(int) - OF_RUN[name]).sum(-1) for name in names]
        out.append((goal[np.argmin(far, 0)], sample.hard.astype(int)))
    return out


def iou_of(pairs: list[tuple[np.ndarray, np.ndarray]], klass: int) -> float | None:
    """IoU of a class over images, void left out, pixel by pixel."""
    both = either = 0
    for answer, label in pairs:
        seen = label != VOID
        both += int(((answer == klass) & (label == klass) & seen).sum())
        either += int((((answer == klass) | (label == klass)) & seen).sum())
    return both / either if either else None


def mean(values: list[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known)


def scored(path: Path, rule: Rule, base: np.ndarray | None = None, run: ClassTable = RUN, model: nn.Module = MODEL):
    split = open_for_scoring(path, "val", "1", run, "run r", rule, base)
    return evaluate(model, split, Views(), WORLD)[0], split


def test_answers_are_restricted_to_the_shard_sets_classes(shard_set: Path) -> None:
    scores, split = scored(shard_set, Rule())
    pairs = answers_of(split, set(CLASSES.names))
    assert list(scores["per_class"].values()) == pytest.approx([iou_of(pairs, k) for k in range(4)])
    assert scores["miou"] > 0.9
    assert split.answers is not None
    assert split.answers.allowed.tolist() == [1, 2, 4, 5]


def test_answers_that_the_shard_set_does_not_have_are_wrong(shard_set: Path) -> None:
    """With --classes run, dog is answered on the road: pixels of the road that are missed, and of no class found."""
    scores, split = scored(shard_set, Rule("run"))
    pairs = answers_of(split, set(RUN.names))
    want = [iou_of(pairs, k) for k in range(4)]
    assert list(scores["per_class"]) == list(CLASSES.names)
    assert list(scores["per_class"].values()) == pytest.approx(want)
    assert scores["miou"] == pytest.approx(mean(want))  # the answers outside have no place in the mean
    assert scores["miou"] < 0.7
    right = sum(int((a == label).sum()) for a, label in pairs)
    assert scores["pixel_accuracy"] == pytest.approx(right / sum(int((y != VOID).sum()) for _, y in pairs))
    assert list(scores["per_category"]) == ["flat", "construction", "vehicle", "human"]  # as each is a class here:
    assert list(scores["per_category"].values()) == pytest.approx(want)
    assert list(scores["per_class_iiou"]) == ["car", "person"]


def test_answers_outside_are_shown_as_void(shard_set: Path) -> None:
    seen: list[np.ndarray] = []
    split = open_for_scoring(shard_set, "val", "1", RUN, "run r", Rule("run"))
    evaluate(MODEL, split, Views(), WORLD, watch=lambda example, answer: seen.append(answer))
    for got, (want, _) in zip(seen, answers_of(split, set(RUN.names)), strict=True):
        assert np.array_equal(got, np.where(want == 4, VOID, want))
        assert got.dtype == np.uint16


def test_only_named_classes_are_answers(shard_set: Path) -> None:
    allowed = frozenset({"dog", "person", "wall", "car"})
    scores, split = scored(shard_set, Rule(allowed, "count"))
    pairs = answers_of(split, set(allowed))
    assert list(scores["per_class"].values()) == pytest.approx([iou_of(pairs, k) for k in range(4)])
    assert scores["per_class"]["road"] == 0
    assert split.answers is not None
    assert split.answers.missing == ("road",)


def test_a_class_that_the_run_does_not_have(shard_set: Path) -> None:
    """Refused, or its pixels count as misses, or they count nowhere and the mean goes without."""
    few = ClassTable.make(("person", "wall", "car"))
    model = ByColour(np.array([OF_RUN[name] for name in few.names]))
    with pytest.raises(UserError, match=r"1 of the 4 classes of .* cannot be answers of run r: road; give --missing"):
        scored(shard_set, Rule(), run=few, model=model)
    pairs = answers_of(open_for_scoring(shard_set, "val", "1", CLASSES, "r"), set(few.names))
    counted, _ = scored(shard_set, Rule(missing="count"), run=few, model=model)
    want = [iou_of(pairs, k) for k in range(4)]
    assert list(counted["per_class"].values()) == pytest.approx(want)
    assert (counted["per_class"]["road"], counted["miou"]) == (0, pytest.approx(mean(want)))
    left_out, split = scored(shard_set, Rule(missing="leave-out"), run=few, model=model)
    bare = [(answer, np.where(label == 0, VOID, label)) for answer, label in pairs]
    want = [iou_of(bare, k) for k in range(4)]
    assert want[0] is None
    assert list(left_out["per_class"].values()) == [None, *map(pytest.approx, want[1:])]
    assert left_out["miou"] == pytest.approx(mean(want)) != pytest.approx(counted["miou"])
    assert left_out["pixels"] == sum(int((label != VOID).sum()) for _, label in bare)
    seen: list[Example] = []
    evaluate(model, split, Views(), WORLD, watch=lambda example, answer: seen.append(example))
    assert np.array_equal(seen[0].hard, bare[0][1])


def test_base_and_novel_classes(shard_set: Path) -> None:
    """The run's base classes are wall and person; of the shard set's, road and car are novel."""
    base = np.array([name in ("dog", "person", "wall") for name in RUN.names])
    scores, split = scored(shard_set, Rule("run"), base)
    want = [iou_of(answers_of(split, set(RUN.names)), k) for k in range(4)]
    assert scores["miou_base"] == pytest.approx(mean([want[1], want[3]]))
    assert scores["miou_novel"] == pytest.approx(mean([want[0], want[2]]))
    assert scores["per_class_group"] == {"road": "novel", "wall": "base", "car": "novel", "person": "base"}
    alone, _ = scored(shard_set, Rule())
    assert not {"miou_base", "miou_novel", "per_class_group"} & alone.keys()


def test_equal_classes_score_as_before(shard_set: Path) -> None:
    """Nothing is restricted or looked up where the tables are equal."""
    model = ByColour(COLOURS[:4])
    before = open_for_scoring(shard_set, "val", "1", CLASSES, "run")
    now = open_for_scoring(shard_set, "val", "1", CLASSES, "run", Rule())
    assert now.answers is None
    assert evaluate(model, now, Views(), WORLD) == evaluate(model, before, Views(), WORLD)


def test_other_order_other_place(shard_set: Path) -> None:
    """The same names in another order: no class is matched by its index."""
    turned = ClassTable.make(("person", "car", "wall", "road"))
    model = ByColour(COLOURS[[3, 2, 1, 0]])
    scores, split = scored(shard_set, Rule(), run=turned, model=model)
    assert split.answers is not None
    assert (split.answers.allowed, split.answers.place.tolist()) == (None, [3, 2, 1, 0])
    assert scores["miou"] > 0.95


def test_a_mapping_brings_several_classes_to_one(shard_set: Path, tmp_path: Path) -> None:
    """dog -> road and tree -> car beside the equal names, by a file: both answers count."""
    (tmp_path / "pairs.tsv").write_text("from\tto\tnote\ndog\troad\tx\ntree\tcar\ty\nunicorn\tcar\tz\n")
    pairs = read_pairs(tmp_path / "pairs.tsv", RUN, CLASSES)
    assert pairs == {"dog": "road", "tree": "car"}
    scores, split = scored(shard_set, Rule(pairs=pairs), np.array([name == "tree" for name in RUN.names]))
    assert split.answers is not None
    assert split.answers.allowed is None
    assert split.answers.place.tolist() == [0, 3, 1, 2, 0, 2]
    assert scores["miou"] > 0.9
    assert scores["per_class_group"]["car"] == "base"  # some class that leads there is


def test_a_mapping_by_wnid(tmp_path: Path) -> None:
    """As `seg-prep map` writes it."""
    run = ClassTable.make(("sofa bed", "sofa"), wnids=("n00000001", "n00000002"))
    (tmp_path / "map.tsv").write_text("wnid\tclass\trule\nn00000001\twall\tfirst\nn00000009\tcar\tfirst\n")
    assert read_pairs(tmp_path / "map.tsv", run, CLASSES) == {"sofa bed": "wall"}
    assert match(run, CLASSES, Rule(missing="count", pairs={"sofa bed": "wall"}), "r", "s").place.tolist() == [1, 4]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a\tb\nx\ty\n", "found columns"),
        ("from\tto\ndog\tsky\n", "line 2: 'sky' is no class of the shard set"),
        ("from\tto\ndog\troad\ndog\tcar\n", "line 3: 'dog' leads to 'road' already"),
        ("from\tto\nunicorn\tcar\n", "none of its rows names a class of the run by from"),
        ("from\tto\ndog\n", "line 2: '' is no class"),
        ("", "found columns"),
    ],
)
def test_mappings_that_cannot_be_read(tmp_path: Path, text: str, found: str) -> None:
    (tmp_path / "pairs.tsv").write_text(text)
    with pytest.raises(FormatError, match=found):
        read_pairs(tmp_path / "pairs.tsv", RUN, CLASSES)
    with pytest.raises(SettingsError, match="no such file"):
        read_pairs(tmp_path / "other.tsv", RUN, CLASSES)


def test_one_name_for_two_synsets_is_refused(tmp_path: Path) -> None:
    mine = ClassTable.make(("crane", "wall"), wnids=("n02012849", None))
    theirs = ClassTable.make(("wall", "crane"), wnids=("n04546855", "n03126707"))
    with pytest.raises(UserError, match="class 'crane' is n02012849 in run r and n03126707 in data/x"):
        match(mine, theirs, Rule(), "run r", "data/x")
    unknown = replace(theirs, wnids=(None, None))  # a synset that nobody states is no conflict
    assert match(mine, unknown, Rule(), "run r", "data/x").place.tolist() == [1, 0]
    assert match(mine, theirs, Rule(missing="count", pairs={"crane": "wall"}), "r", "x").place.tolist() == [0, 0]


def test_names_of_files_and_shard_sets(shard_set: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("\n wall \nbuilding, edifice\n\nwall\n")
    assert names_at(str(tmp_path / "names.txt"), "--base") == ("wall", "building, edifice")
    assert names_at(str(shard_set), "--base") == CLASSES.names
    (tmp_path / "none.txt").write_text(" \n")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    for value, found in (("none.txt", "no name"), ("ade20k", "neither a shard set nor a file"), ("", "neither")):
        with pytest.raises(SettingsError, match=found):
            names_at(str(tmp_path / value), "--classes")
    with pytest.raises(FormatError, match="UTF-8"):
        names_at(str(tmp_path / "bytes.txt"), "--classes")


@given(st.data())
def test_places_against_a_slow_search(data: st.DataObject) -> None:
    """Any two tables, any rule: each answer by looking for its name."""
    letters = st.lists(st.sampled_from("abcdefgh"), min_size=1, unique=True)
    mine, theirs = data.draw(letters), data.draw(letters)
    allowed = data.draw(st.sampled_from(["shards", "run"]) | st.frozensets(st.sampled_from(mine), min_size=1))
    may = [n for n in mine if allowed == "run" or (n in theirs if allowed == "shards" else n in allowed)]
    missing = [n for n in theirs if n not in may]
    rule = Rule(allowed, data.draw(st.sampled_from(["count", "leave-out"])))
    tables = ClassTable.make(mine), ClassTable.make(theirs)
    if len(missing) == len(theirs):
        with pytest.raises(UserError, match="no class in common"):
            match(*tables, rule, "r", "s")
        return
    found = match(*tables, rule, "r", "s")
    assert found.place.tolist() == [theirs.index(n) if n in theirs else len(theirs) for n in mine]
    assert [mine[i] for i in (range(len(mine)) if found.allowed is None else found.allowed)] == may
    assert list(found.missing) == missing
    assert [theirs[i] for i in found.left_out] == (missing if rule.missing == "leave-out" else [])


def test_counts_are_a_few_numbers_a_class() -> None:
    """21,841 classes: nothing of size C x C, with an answer outside and groups."""
    many = ClassTable.make([f"c{i}" for i in range(21_841)])
    metrics = SplitMetrics(many, None, "cpu", outside=True, base=np.arange(21_841) < 171)
    metrics.update(torch.tensor([[5, 21_841, 500]]), np.array([[5, 7, 500]], np.uint16))
    assert sum(table.numel() for table in metrics.tables()) < 4 * 21_842
    scores = metrics.to_dict()
    assert (scores["miou"], scores["miou_base"], scores["miou_novel"]) == (pytest.approx(2 / 3), 0.5, 1.0)


# --- as people call it -------------------------------------------------------------------------------------------

SETTINGS = ("loop.steps=25", "optim.name=adamw", "optim.lr=0.01", "eval.input_scale=1")
SIX = ClassTable.make(("dog", "person", "wall", "tree", "road", "car"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of some steps on scenes of six classes, enough to answer several of them."""
    place = tmp_path_factory.mktemp("restricted")
    six = write(place / "six", {"train": [scene(i, classes=6) for i in range(2)]}, classes=SIX)
    (place / "tiny.toml").write_text(RECIPE)
    words = ["--shards", str(six), "--recipe", str(place / "tiny.toml"), "--out", str(place / "run"), "--quiet"]
    with pytest.MonkeyPatch.context() as patch:
        settings = [word for s in SETTINGS for word in ("--set", s)]
        patch.setattr("sys.argv", ["seg-train", *words, *settings])
        with pytest.raises(SystemExit) as ended:
            MAINS["seg-train"]()
    assert ended.value.code in (0, None)
    return place / "run"


def by_hand(folder: Path, path: Path, allowed: list[str]) -> list[float | None]:
    """IoU of each class from the run's logits: arg-max among the allowed, classes by name."""
    model, _ = load_model(open_run(folder), CPU)
    columns = [SIX.names.index(name) for name in allowed]
    goal = np.array([CLASSES.names.index(name) if name in CLASSES.names else 99 for name in allowed])
    pairs = []
    for sample in shards.open(path, split="val", scale="1"):
        with torch.no_grad():
            logits = model(torch.tensor(sample.image).permute(2, 0, 1)[None])[0]
        assert sample.hard is not None
        pairs.append((goal[logits[columns].argmax(0).numpy()], sample.hard.astype(int)))
    return [iou_of(pairs, k) for k in range(4)]


def test_seg_eval_on_other_classes(call: Call, folder: Path, shard_set: Path, tmp_path: Path) -> None:
    """Restricted by default; --classes run; --base; what was done is in the table, the JSON and the report."""
    (tmp_path / "base.txt").write_text("road\nwall\n")
    words = ("seg-eval", "--run", folder, "--shards", shard_set, "--json", tmp_path / "s.json")
    words = (*words, "--report", tmp_path / "report", "--base", tmp_path / "base.txt")
    for option, allowed in (((), [n for n in SIX.names if n in CLASSES.names]), (("--classes", "run"), SIX.names)):
        code, out, err = call(*words, *option)
        assert code == 0, err
        scores = json.loads((tmp_path / "s.json").read_text())
        want = by_hand(folder, shard_set, list(allowed))
        assert len(set(want)) > 2  # several classes are answered
        assert list(scores["per_class"].values()) == pytest.approx(want)
        assert scores["miou_novel"] == pytest.approx(mean(want[2:]))
        assert scores["matched"]["allowed"] == len(allowed)
        assert f"answers: {len(allowed)} of the run's 6 classes" in out
        assert "2 base and 2 novel classes" in out
        rows = {line.split()[0]: line.split()[-1] for line in out.splitlines() if line}
        assert (rows["road"], rows["car"]) == ("base", "novel")
        assert "mean IoU, novel" in out
        assert "novel classes" in (tmp_path / "report" / "index.html").read_text()


def test_base_classes_by_the_runs_names(folder: Path, shard_set: Path, tmp_path: Path) -> None:
    """A mapping leads from dog, which is base, to road; names of the shard set's own count as well."""
    (tmp_path / "pairs.tsv").write_text("from\tto\ndog\troad\n")
    (tmp_path / "base.txt").write_text("dog\ncar\n")
    choice = Choice(mapping=tmp_path / "pairs.tsv", base=str(tmp_path / "base.txt"))
    target = open_target(open_run(folder), shard_set, "val", "1", choice)
    assert target.base is not None
    assert target.base.tolist() == [True, False, True, False]


def test_seg_eval_says_what_cannot_be_answered(call: Call, folder: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "o", {"val": [scene(0)]}, classes=ClassTable.make(("road", "sky", "car", "sea")))
    words = ("seg-eval", "--run", folder, "--shards", other, "--report", tmp_path / "report")
    code, _, err = call(*words)
    assert (code, len(err.strip().splitlines())) == (2, 1)
    assert "2 of the 4 classes of" in err
    assert ": sky, sea; give --missing" in err
    code, out, _ = call(*words, "--missing", "leave-out", "--json", tmp_path / "s.json")
    assert code == 0
    assert "2 classes cannot be answered, pixels left out: sky, sea" in out
    scores = json.loads((tmp_path / "s.json").read_text())
    assert scores["matched"]["missing_classes"] == ["sky", "sea"]
    assert scores["per_class"]["sky"] is None
    code, out, _ = call(*words, "--missing", "count", "--quiet", "--json", tmp_path / "s.json")
    assert (code, out) == (0, "")
    assert json.loads((tmp_path / "s.json").read_text())["per_class"]["sky"] == 0


@pytest.mark.parametrize(
    ("option", "text", "found"),
    [
        ("--classes", "road\ncarr\n", "1 names are no classes of run .*first 'carr'; did you mean 'car'"),
        ("--base", "sky\n", "none of its 1 names is a class of"),
        ("--map", "x\ty\n", "found columns"),
        ("--base", None, "neither a shard set nor a file"),
    ],
)
def test_seg_eval_refuses(
    call: Call, folder: Path, shard_set: Path, tmp_path: Path, option: str, text: str | None, found: str
) -> None:
    if text is not None:
        (tmp_path / "file").write_text(text)
    code, out, err = call("seg-eval", "--run", folder, "--shards", shard_set, option, tmp_path / "file")
    assert (code, out, len(err.strip().splitlines())) == (2, "", 1)
    with pytest.raises(SegshardsError, match=found):
        raise SegshardsError(err)


# --- windows, choices and legends --------------------------------------------------------------------------------


def test_windows_are_asked_for(call: Call, folder: Path, shard_set: Path, tmp_path: Path) -> None:
    """A window of the image's own size changes nothing; smaller ones give what `predict` gives with them."""
    words = ("seg-eval", "--run", folder, "--shards", shard_set, "--quiet", "--report", tmp_path / "report")
    found = {}
    for options in ((), ("--window", "64,96"), ("--window", "32,64", "--stride", "16,32"), ("--window", "none")):
        code, _, err = call(*words, *options, "--json", tmp_path / "s.json")
        assert code == 0, err
        found[options] = json.loads((tmp_path / "s.json").read_text())
    plain, whole, small, none = found.values()
    assert (whole.pop("window"), whole.pop("stride")) == ([64, 96], [64, 96])
    assert plain == whole == none
    assert (small["window"], small["stride"]) == ([32, 64], [16, 32])
    split = open_for_scoring(shard_set, "val", "1", SIX, "r", Rule())
    model, _ = load_model(open_run(folder), CPU)
    want, _ = evaluate(model, split, Views(window=(32, 64), stride=(16, 32)), WORLD)
    assert small["per_class"] == want["per_class"] != plain["per_class"]


def test_a_recipe_asks_for_windows(folder: Path) -> None:
    opened = open_run(folder)
    assert views_of(opened.recipe, CPU) == Views((1.0,))
    asked = opened.recipe.eval.model_copy(update={"window": (64, 48), "stride": (32, 48)})
    views = views_of(opened.recipe.model_copy(update={"eval": asked}), CPU)
    assert (views.window, views.stride) == ((64, 48), (32, 48))


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (("--window", "x"), "--window 'x': expected pixels such as 512"),
        (("--window", "31"), "--window '31': expected at least 32"),
        (("--window", "64,-3"), "--window '64,-3'"),
        (("--window", "64", "--stride", "65"), "--stride '65': expected 1 to the window's own size, 64,64"),
        (("--window", "64", "--stride", "0,9"), "--stride '0,9'"),
        (("--stride", "64"), "--stride '64': expected --window as well"),
    ],
)
def test_windows_that_are_refused(call: Call, folder: Path, options: tuple[str, ...], found: str) -> None:
    for words in (("seg-eval", "--shards", "x"), ("seg-predict", "--out", "o", "a.png")):
        code, _, err = call(words[0], "--run", folder, *words[1:], *options)
        assert (code, len(err.strip().splitlines())) == (2, 1)
        assert found in err


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        ({"stride": [64, 64]}, "expected eval.window as well"),
        ({"window": [16, 64]}, "at least 32"),
        ({"window": [64, 64], "stride": [64, 65]}, "at most eval.window"),
    ],
)
def test_windows_of_recipes_that_are_refused(keys: dict[str, list[int]], found: str) -> None:
    with pytest.raises(SettingsError, match=found):
        recipe(eval=keys)
    assert "window" not in recipe().to_dict()["eval"]  # runs from before there were windows go on
    assert recipe(eval={"window": [64, 64]}).to_dict()["eval"]["window"] == [64, 64]


def test_seg_predict_chooses_and_names(call: Call, folder: Path, shard_set: Path, tmp_path: Path) -> None:
    """Ids stay the run's whatever there is to choose from; the legend names what is shown."""
    image = scene(9).image
    Image.fromarray(image).save(tmp_path / "a.png")
    (tmp_path / "two.txt").write_text("tree\ndog\n")
    words = ("seg-predict", "--run", folder, tmp_path / "a.png", "--legend")
    model, _ = load_model(open_run(folder), CPU)
    with torch.no_grad():
        logits = model(torch.tensor(image).permute(2, 0, 1)[None])[0]
    for value, ids in (("run", range(6)), (tmp_path / "two.txt", [0, 3]), (shard_set, [1, 2, 4, 5])):
        out = tmp_path / f"out{len(ids)}"
        code, _, err = call(*words, "--classes", value, "--out", out, "--top", "2")
        assert code == 0, err
        want = np.array(ids)[logits[list(ids)].argmax(0).numpy()]
        assert np.array_equal(np.array(Image.open(out / "a.label.png")), want)
        top = np.load(out / "a.top.npz")
        assert np.array_equal(top["ids"][0], want)
        assert set(np.unique(top["ids"])) <= set(ids)
        overlay, legend = (np.array(Image.open(out / f"a.{kind}.png")) for kind in ("overlay", "legend"))
        assert np.array_equal(legend[: len(overlay), : overlay.shape[1]], overlay)
        assert len(legend) > len(overlay)
    code, _, err = call(*words, "--classes", tmp_path / "two.txt", "--out", tmp_path / "o", "--top", "3")
    assert code == 2
    assert "--top 3: found 2 classes" in err
    code, _, err = call(*words, "--classes", "ade20k", "--out", tmp_path / "o")
    assert code == 2
    assert "--classes 'ade20k': found neither a shard set nor a file" in err
