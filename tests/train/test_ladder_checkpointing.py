"""Whole ladder networks trained with each of Table 11's segments: weights and statistics as without checkpointing.

Three steps of AMSGrad on main and auxiliary losses; a DenseNet of ten narrow units, split, with dropout.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from timm.models.densenet import DenseNet
from torch import Tensor, distributed, nn

from shards.errors import UserError
from tests.train.conftest import recipe
from tests.train.test_distributed import free_port
from tests.train.test_loop import trainer, weights
from train import checkpoint
from train.config import Recipe, from_dict
from train.models import build_model
from train.models.ladder.units import SEGMENTS
from train.objective import build_objective
from train.optim import build_optimizer
from train.run import check_same, open_run

CHECKPOINTED = [name for name in SEGMENTS if name != "none"]
PRINCIPAL = ["cat-1x1, 3x3", "block+stem+td+tu", "unit+stem+td+tu"]  # every layer that any segment holds
Wrap = Callable[[nn.Module], nn.Module]


def recipe_of(segments: str, **model: Any) -> Recipe:
    own = {"arch": "ladder", "encoder": "densenet121", "down": 64, "dropout": 0.2, "segments": segments, **model}
    return from_dict({"name": "t", "description": "t", "model": own, "optim": {"name": "amsgrad", "lr": 1e-3}})


def network(config: Recipe, units: tuple[int, ...]) -> nn.Module:
    """The recipe's, over a small DenseNet; the same random weights each time."""
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        torch.manual_seed(1)
        patch.setattr(
            "train.models.ladder.densenet.timm.create_model",
            lambda *_, **__: DenseNet(growth_rate=8, block_config=units),
        )
        return build_model(config.model, 3, config.loss).train()


def trained(
    segments: str,
    bf16: bool = False,
    wrap: Wrap = lambda net: net,
    rank: int = 0,
    units: tuple[int, ...] = (2, 2, 4, 2),
    **model: Any,
) -> dict[str, Tensor]:
    """Weights, statistics and the last gradients after three steps."""
    config = recipe_of(segments, **model)
    net, loss = network(config, units), build_objective(config)
    optimiser, wrapped = build_optimizer(cast(Any, net), config.optim), wrap(net)
    for step in range(3):
        torch.manual_seed(10 * step + rank)
        images, ids = torch.rand(2, 3, 64, 100) * 255, torch.randint(3, (2, 1, 64, 100))
        weights = (torch.rand(ids.shape) > 0.3).float()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            output = wrapped(images)
        cost, mass = loss(output, ids, weights)
        optimiser.zero_grad(set_to_none=True)
        (cost / mass).backward()
        optimiser.step()
    gradients = {f"{name}.grad": p.grad for name, p in net.named_parameters() if p.grad is not None}
    return {**net.state_dict(), **gradients}


def same_bits(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name, value in expected.items() if not torch.equal(found[name], value)] == []
    assert int(found["encoder.stem.norm0.num_batches_tracked"]) == 3


@pytest.fixture(scope="module")
def plain() -> dict[bool, dict[str, Tensor]]:
    """Without checkpointing, by whether in bf16."""
    return {bf16: trained("none", bf16) for bf16 in (False, True)}


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("segments", CHECKPOINTED)
def test_each_segment_is_the_same_bits(segments: str, bf16: bool, plain: dict[bool, dict[str, Tensor]]) -> None:
    same_bits(trained(segments, bf16), plain[bf16])


def test_bf16_and_dropout_are_at_work(plain: dict[bool, dict[str, Tensor]]) -> None:
    """So that the equality above is one of them."""
    assert not torch.equal(plain[True]["decoder.head.conv.weight"], plain[False]["decoder.head.conv.weight"])
    still = trained("none", dropout=0.0)
    assert not torch.equal(still["decoder.head.conv.weight"], plain[False]["decoder.head.conv.weight"])


def ranks_agree(rank: int, port: int) -> None:
    """What one of two processes checks."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    expected = trained("none", wrap=nn.parallel.DistributedDataParallel, rank=rank)
    for segments in PRINCIPAL:
        same_bits(trained(segments, wrap=nn.parallel.DistributedDataParallel, rank=rank), expected)
    mine = expected["decoder.head.conv.weight"]
    assert not torch.equal(trained("none", rank=rank)["decoder.head.conv.weight"], mine)  # gradients are averaged
    both = [torch.empty_like(mine), torch.empty_like(mine)]
    distributed.all_gather(both, mine)
    assert torch.equal(*both)
    distributed.destroy_process_group()


@pytest.mark.skipif(torch.cuda.is_initialized(), reason="a process that uses CUDA cannot be forked")
def test_on_two_ranks() -> None:
    context, port = multiprocessing.get_context("fork"), free_port()
    processes = [context.Process(target=ranks_agree, args=(rank, port)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")  # torch's own
def test_compiled_as_one_graph() -> None:
    """The compiler recomputes; weights and buffers have the bits of the compiled network without checkpointing."""

    def wrap(net: nn.Module) -> nn.Module:
        torch._dynamo.reset()
        return torch.compile(net, backend="aot_eager", fullgraph=True)  # type: ignore[return-value]

    small: dict[str, Any] = {"units": (1, 1, 1, 1), "down": 32, "up": 8}
    same_bits(trained("unit+stem+td+tu", wrap=wrap, **small), trained("none", wrap=wrap, **small))


COMPILED = {
    "data": {"scales": ["1"], "workers": 0},
    "augment": {"crop": [40, 64]},
    "model": {"arch": "ladder", "encoder": "resnet10t", "down": 16, "up": 8},
}


def compiled(steps: int, **loop: Any) -> Recipe:
    values = recipe(loop={"steps": steps, "compile": True, **loop}).to_dict()
    return Recipe.model_validate({**values, **COMPILED})


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")  # torch's own
def test_a_run_that_is_compiled(shard_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps run the translation, once translated; the network's own weights and statistics move; scores need none."""
    calls: list[int] = []

    def translator(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., Any]:
        calls.append(0)

        def counted(*args: Any) -> Any:
            calls[-1] += 1
            return graph(*args)

        return counted

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: real(model, backend=translator))
    torch._dynamo.reset()
    runs = {name: compiled(3, compile=name == "compiled", eval_every=3) for name in ("plain", "compiled")}
    for name, config in runs.items():
        assert trainer(shard_set, tmp_path / name, config).run().finished
        assert (sum(calls) >= 3) == (name == "compiled")
    torch.testing.assert_close(weights(tmp_path / "compiled"), weights(tmp_path / "plain"), rtol=1e-4, atol=1e-6)
    assert len(calls) <= 4  # steps of one shape are translated once
    with pytest.raises(UserError, match=r"loop\.compile was True, is None"):
        check_same(open_run(tmp_path / "compiled"), open_run(tmp_path / "plain"))


def test_a_compiler_that_fails_is_one_line_and_the_run_is_saved(
    shard_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(graph: object, inputs: object) -> None:
        raise RuntimeError("no C++ compiler")

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: real(model, backend=broken))
    torch._dynamo.reset()
    with pytest.raises(UserError, match=r"torch.compile failed \(.*no C\+\+ compiler.*\); give --set loop.compile=f"):
        trainer(shard_set, tmp_path / "run", compiled(2)).run()
    assert checkpoint.load(tmp_path / "run" / checkpoint.NAME).step == 0


def test_only_recipes_that_compile_say_so() -> None:
    assert "compile" not in recipe().to_dict()["loop"]
    stored = compiled(2).to_dict()
    assert stored["loop"]["compile"] is True
    assert Recipe.model_validate(stored) == compiled(2)
