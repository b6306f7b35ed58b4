"""A ladder in the loop: its loss, its optimiser, rates that fall by epochs, exact resume."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from shards.errors import SettingsError
from tests.train.conftest import recipe
from tests.train.test_loop import WORLD, equal, losses, stop_at, trainer, void_set, weights
from train.config import Recipe
from train.feed import batches
from train.losses import LadderLoss, soft_cross_entropy
from train.losses.auxiliary import auxiliary_loss
from train.losses.soft import SoftLoss
from train.models import build_model
from train.objective import build_objective
from train.plan import make_plan
from train.runlog import read_log
from train.sources import open_sources
from train.stream import Stream

LADDER: dict[str, Any] = {
    "data": {"scales": ["1"], "workers": 0},
    "augment": {"crop": [40, 64]},
    "model": {"arch": "ladder", "encoder": "mobilenetv3_small_050", "down": 32, "up": 4},
    "optim": {"name": "amsgrad", "lr": 0.002, "encoder_lr_scale": 0.25},
    "schedule": {"name": "cosine", "unit": "epoch", "min_lr": 1e-6},
}


def ladder(loop: dict[str, Any] | None = None, **sections: Any) -> Recipe:
    """`recipe`, without what only its linear head has."""
    merged = {name: {**LADDER.get(name, {}), **sections.get(name, {})} for name in {*LADDER, *sections}}
    values = recipe(loop=loop or {}).to_dict()
    values.update(merged)
    return Recipe.model_validate(values)


@pytest.fixture(scope="module")
def straight(shard_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps of four out of eleven samples: two epochs and a bit."""
    folder = tmp_path_factory.mktemp("ladder") / "run"
    assert trainer(shard_set, folder, ladder({"steps": 6})).run().finished
    return folder


def test_first_loss_is_the_mix_of_main_and_auxiliary_losses(shard_set: Path, straight: Path) -> None:
    config = ladder({"steps": 6})
    torch.manual_seed(config.loop.seed)
    model = build_model(config.model, 4, config.loss).train()
    stream = Stream(open_sources([shard_set], config), config)
    stream.fill = tuple(round(float(x)) for x in model.mean.flatten())  # type: ignore[assignment]
    with batches(stream, WORLD) as source, torch.no_grad():
        batch = next(source)
        out = model(batch.images)
    main, weight = soft_cross_entropy(out.logits, batch.ids, batch.weights)
    extra = auxiliary_loss(out, batch.ids, batch.weights, (32, 16, 8), 32)
    assert losses(straight)[0] == pytest.approx(float((0.6 * main + 0.4 * extra) / weight), rel=1e-5)
    assert float(extra / weight) != pytest.approx(float(main / weight), rel=1e-3)


def test_rates_fall_by_epochs(straight: Path) -> None:
    found = [line["lr"] for line in read_log(straight) if "lr" in line]
    begun = [0, 0, 0, 11 / 4, 11 / 4, 11 / 4]  # steps 0..5 of 4 samples: the second epoch begins within step 2
    assert found == pytest.approx([0.001 * (1 + math.cos(math.pi * b / 6)) for b in begun])


def test_crops_of_void_alone_teach_nothing(tmp_path: Path) -> None:
    """No number of the loss is NaN; weights stay to the bit where there is no decay, statistics move."""
    config = ladder({"steps": 2}, optim={"weight_decay": 0.0})
    made = trainer(void_set(tmp_path / "s"), tmp_path / "run", config)
    before = {name: value.clone() for name, value in made.model.state_dict().items()}
    assert made.run().loss is None
    assert losses(tmp_path / "run") == [None, None]
    found = weights(tmp_path / "run")
    moved = {name.rpartition(".")[2] for name, value in found.items() if not torch.equal(value, before[name])}
    assert moved == {"running_mean", "running_var", "num_batches_tracked"}
    assert all(torch.isfinite(value).all() for value in found.values())


def test_a_batch_of_one_square_crop_is_refused_and_a_wide_one_trains(shard_set: Path, tmp_path: Path) -> None:
    one = {"steps": 1, "batch": 1}
    with pytest.raises(SettingsError, match=r"training batch of 1 image of 64 x 64.*raise loop.batch"):
        trainer(shard_set, tmp_path / "square", ladder(one, augment={"crop": [64, 64]})).run()
    assert trainer(shard_set, tmp_path / "wide", ladder(one, augment={"crop": [32, 64]})).run().finished
    assert math.isfinite(losses(tmp_path / "wide")[0])


def test_resume_is_exact(shard_set: Path, straight: Path, tmp_path: Path) -> None:
    """The optimiser's largest second moments are stored; so is where in the epochs the run is."""
    config = ladder({"steps": 6})
    made = trainer(shard_set, tmp_path / "run", config)
    stop_at(made, 4)
    assert not made.run().finished
    assert trainer(shard_set, tmp_path / "run", config, resume=True).run().finished
    assert losses(tmp_path / "run") == losses(straight)
    assert equal(weights(tmp_path / "run"), weights(straight))


def test_accumulation_changes_nothing_but_rounding(shard_set: Path, straight: Path, tmp_path: Path) -> None:
    """Auxiliary sums add up over the parts of a step; BatchNorm is frozen, as it sees parts."""
    found = []
    for accumulate in (1, 2):
        config = ladder({"steps": 1, "accumulate": accumulate})
        made = trainer(shard_set, tmp_path / str(accumulate), config)
        for part in made.model.modules():
            if isinstance(part, torch.nn.BatchNorm2d):
                part.train = lambda mode=True, part=part: part  # type: ignore[method-assign]
                part.training = False
        made.run()
        found.append(losses(tmp_path / str(accumulate))[0])
    assert found[0] == pytest.approx(found[1], rel=1e-5)


@pytest.mark.parametrize(
    ("down", "up", "dilated", "strides"),
    [(64, 4, "none", (64, 32, 16, 8)), (16, 2, "none", (16, 8, 4)), (8, 8, 8, ()), (8, 4, 8, (8,))],
)
def test_objective_knows_the_strides_of_its_network(down: int, up: int, dilated: Any, strides: tuple[int, ...]) -> None:
    """The network's own heads fit, for every kind of ladder of the paper's tables."""
    model = {"arch": "ladder", "encoder": "densenet121", "down": down, "up": up, "dilated": dilated}
    config = ladder(model=model, loss={"aux_weight": 0.3})
    objective = build_objective(config)
    assert isinstance(objective, LadderLoss)
    assert (objective.strides, objective.down, objective.aux_weight) == (strides, down, 0.3)
    plan = make_plan(config, 4, {"source": 10}, (40, 64))  # runs network and loss on the meta device
    assert plan.optimiser_memory == 12 * plan.parameters


def test_without_auxiliary_heads_the_loss_is_the_plain_one(shard_set: Path, tmp_path: Path) -> None:
    config = ladder({"steps": 1}, model={**LADDER["model"], "auxiliary": False})
    assert isinstance(build_objective(config), SoftLoss)
    assert trainer(shard_set, tmp_path / "run", config).run().finished


def test_aux_weight_is_of_ladders_alone() -> None:
    with pytest.raises(SettingsError, match=r'loss.aux_weight is set: expected model.arch = "ladder"'):
        recipe(loss={"aux_weight": 0.4})
    with pytest.raises(SettingsError, match=r'model.down is set: expected model.arch = "ladder"'):
        recipe(model={"down": 32})
    assert "aux_weight" not in recipe().to_dict()["loss"]
    assert "down" not in recipe().to_dict()["model"]
    stored = ladder().to_dict()
    assert (stored["loss"]["aux_weight"], stored["model"]["down"]) == (0.4, 32)
    assert Recipe.model_validate(stored) == ladder()
