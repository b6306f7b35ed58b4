"""Checkpointing changes what is held for backward, and nothing else: weights, gradients, statistics, random masks."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.train.test_distributed import free_port
from train.models.recompute import recompute


class Layer(nn.Module):
    """Two norms, a dropout and a convolution with a skip; checkpointed as a whole, in its first part, or not."""

    def __init__(self, whole: bool | None) -> None:
        super().__init__()
        self.whole = whole
        self.norm = nn.BatchNorm2d(6, momentum=0.05)
        self.narrow = nn.Conv2d(6, 12, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(12, momentum=0.05)
        self.wide = nn.Conv2d(12, 3, 3, padding=1, bias=False)

    def first(self, *parts: Tensor) -> Tensor:
        features = torch.cat(parts, 1)
        return nn.functional.dropout(self.norm2(self.narrow(self.norm(features).relu())).relu(), 0.3, self.training)

    def body(self, *parts: Tensor) -> Tensor:
        return self.wide(self.first(*parts))  # type: ignore[no-any-return]

    def forward(self, *parts: Tensor) -> Tensor:
        if self.whole:
            return recompute(self.body, *parts)  # type: ignore[no-any-return]
        if self.whole is False:
            return self.wide(recompute(self.first, *parts))  # type: ignore[no-any-return]
        return self.body(*parts)


class Net(nn.Module):
    def __init__(self, whole: bool | None) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.layers = nn.ModuleList([Layer(whole) for _ in range(3)])

    def forward(self, images: Tensor) -> Tensor:
        parts = [images, images.flip(3)]
        for layer in self.layers:
            parts = [parts[1], layer(*parts)]
        return parts[1]


def plain(net: nn.Module) -> nn.Module:
    return net


def steps(net: Net, wrap: Callable[[nn.Module], nn.Module] = plain, bf16: bool = False, rank: int | None = None) -> Net:
    """Three steps of SGD, each from the seed of its number; gradients of the last are left in place."""
    wrapped = wrap(net)
    if rank is None:
        rank = distributed.get_rank() if distributed.is_initialized() else 0
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for step in range(3):
        torch.manual_seed(100 * step + rank)
        optimiser.zero_grad()
        images = torch.randn(4, 3, 8, 10) + step
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            output = wrapped(images)
        output.float().square().mean().backward()
        optimiser.step()
    return net


def state(net: Net) -> dict[str, Tensor]:
    """Weights, buffers and gradients."""
    gradients = {f"{name}.grad": p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    return {**{name: value.clone() for name, value in net.state_dict().items()}, **gradients}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert len(a) == 3 * (2 * 5 + 2 * 1) + 3 * 6  # BatchNorm's five, convolutions, and a gradient each
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("whole", [True, False])
def test_three_steps_are_the_same_bits(whole: bool, bf16: bool) -> None:
    direct, checkpointed = steps(Net(None), bf16=bf16), steps(Net(whole), bf16=bf16)
    same(state(direct), state(checkpointed))
    assert int(direct.layers[0].norm.num_batches_tracked) == 3  # type: ignore[union-attr,arg-type]


def test_statistics_are_taken_once_and_the_last_layer_runs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Backward's pass normalises by what the first one has found, and stops where nothing more is needed."""
    taken, real = [], torch.native_batch_norm

    def counted(*args: Any) -> Any:
        taken.append(args[5])  # by the batch's own statistics?
        return real(*args)

    monkeypatch.setattr(torch, "native_batch_norm", counted)
    net = Net(True)
    with Convolutions() as convolutions:
        output = net(torch.randn(2, 3, 8, 8))
        assert (taken, convolutions.seen) == ([True] * 6, [1, 3] * 3)
        output.sum().backward()
    assert taken[6:] == [False] * 6
    assert convolutions.seen[6:] == [1, 1, 1]  # the narrow ones alone


class Convolutions(TorchDispatchMode):
    """The kernel sizes of forward passes' convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default:
            self.seen.append(args[1].shape[-1])
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("kind", ["bfloat16", "no scale", "no running statistics", "float64", "channels last"])
def test_norms_of_any_kind_are_the_same_bits(kind: str) -> None:
    """Those in bfloat16 take their statistics twice, the others once."""
    found = []
    for whole in (None, True, False):
        net = Net(whole)
        for name, part in list(net.named_modules()):
            if isinstance(part, nn.BatchNorm2d) and kind.startswith("no"):
                own = {"affine": kind != "no scale", "track_running_stats": kind == "no scale"}
                net.get_submodule(name.rpartition(".")[0]).add_module(
                    name.rpartition(".")[2], nn.BatchNorm2d(part.num_features, **own)
                )
        images = torch.randn(4, 3, 8, 10, generator=torch.Generator().manual_seed(1))
        if kind in ("bfloat16", "float64"):
            net, images = net.to(getattr(torch, kind)), images.to(getattr(torch, kind))
        if kind == "channels last":
            net, images = net.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last)
        torch.manual_seed(2)
        net(images).square().mean().backward()
        found.append(state(net))
    for other in found[1:]:
        assert found[0].keys() == other.keys()
        assert [name for name in other if not torch.equal(found[0][name], other[name])] == []


def test_backward_twice_through_a_graph_that_is_kept() -> None:
    layer, images = Layer(True), torch.randn(4, 3, 8, 10, requires_grad=True)
    output = layer(images, images).square().mean()
    first = torch.autograd.grad(output, [images, *layer.parameters()], retain_graph=True)
    again = torch.autograd.grad(output, [images, *layer.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert int(layer.norm.num_batches_tracked) == 1  # type: ignore[arg-type]


def test_buffers_of_other_layers_count_one_pass() -> None:
    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("passes", torch.zeros(()))
            self.linear = nn.Linear(3, 3)

        def body(self, x: Tensor) -> Tensor:
            self.passes += 1
            return self.linear(x.sin()).exp()  # type: ignore[no-any-return]

    net = Counted()
    recompute(net.body, torch.ones(2, 3)).sum().backward()
    assert float(net.passes) == 1  # type: ignore[arg-type]


def test_a_norm_of_one_value_a_channel_is_torchs_error() -> None:
    layer = Layer(True)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        layer(torch.randn(1, 3, 1, 1), torch.randn(1, 3, 1, 1))


def test_with_a_batch_norm_that_averages_exactly() -> None:
    """momentum None: the factor is 1 / batches seen, which a second count would change."""
    nets = [Net(None), Net(True)]
    for net in nets:
        for part in net.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.momentum = None
    same(state(steps(nets[0])), state(steps(nets[1])))


def test_autocast_is_that_of_the_forward_pass() -> None:
    """bf16 does change the result here, so the equality above is one of bf16."""
    assert not torch.equal(
        state(steps(Net(True)))["layers.0.wide.weight"], state(steps(Net(True), bf16=True))["layers.0.wide.weight"]
    )


def held(net: Net, wrap: Callable[[nn.Module], nn.Module] = plain) -> int:
    """Bytes that a forward pass holds for backward, each storage once, parameters not counted."""
    found: dict[int, Tensor] = {}
    parameters = {p.untyped_storage().data_ptr() for p in net.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    wrapped = wrap(net)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = wrapped(torch.randn(2, 3, 32, 32))
    output.sum().backward()
    return sum(tensor.untyped_storage().nbytes() for key, tensor in found.items() if key not in parameters)


def test_less_is_held_for_backward() -> None:
    plane = 2 * 32 * 32 * 4  # bytes of one channel
    assert held(Net(True)) < 20 * plane  # the images, their mirror, and what the layers pass on: 3 channels each
    assert held(Net(None)) > 3 * (6 + 6 + 12 + 12 + 12) * plane  # inputs of norms, ReLUs and convolutions of 3 layers
    assert held(Net(True)) < held(Net(False)) < 0.6 * held(Net(None))


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")  # torch's own
def test_compiled_without_a_break_in_the_graph() -> None:
    """With dropout, bit for bit; the partitioner recomputes: less is held."""

    def wrap(net: nn.Module) -> nn.Module:
        return torch.compile(net, backend="aot_eager_decomp_partition", fullgraph=True)  # type: ignore[return-value]

    torch._dynamo.reset()
    same(state(steps(Net(None), wrap)), state(steps(Net(True), wrap)))
    assert held(Net(True), wrap) < 20 * 2 * 32 * 32 * 4


def test_compiled_evaluation_is_not_checkpointed() -> None:
    """With gradients asked for, as by whoever explains a prediction."""
    graphs: list[torch.fx.GraphModule] = []

    def kept(graph: torch.fx.GraphModule, inputs: object) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    def checkpoints() -> int:
        torch._dynamo.reset()
        graphs.clear()
        torch.compile(net, backend=kept, fullgraph=True)(torch.randn(2, 3, 8, 8))
        return sum("checkpoint" in str(node.target) for graph in graphs for node in graph.graph.nodes)

    net = Net(True)
    assert checkpoints() == 3
    net.eval()
    assert checkpoints() == 0


def ranks_agree(rank: int, port: int) -> None:
    """What one of two processes checks: with checkpointing of any kind, the bits without it."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    states = [state(steps(Net(whole), nn.parallel.DistributedDataParallel)) for whole in (None, True, False)]
    same(states[0], states[1])
    same(states[0], states[2])
    mean, alone = states[0]["layers.0.norm.running_mean"], state(steps(Net(None), rank=rank))
    assert not torch.equal(alone["layers.0.wide.weight.grad"], states[0]["layers.0.wide.weight.grad"])  # averaged
    both = [torch.empty_like(mean), torch.empty_like(mean)]
    distributed.all_gather(both, mean)
    assert not torch.equal(*both)  # each rank has seen its own samples
    distributed.destroy_process_group()


@pytest.mark.skipif(torch.cuda.is_initialized(), reason="a process that uses CUDA cannot be forked")
def test_on_two_ranks() -> None:
    """Under DistributedDataParallel, gradients averaged and buffers shared as without checkpointing."""
    context, port = multiprocessing.get_context("fork"), free_port()
    processes = [context.Process(target=ranks_agree, args=(rank, port)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0


@pytest.mark.parametrize("how", ["eval", "no grad"])
def test_outside_of_training_the_function_is_called_as_it_is(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: object, **options: object) -> None:
        raise AssertionError("checkpointed")

    monkeypatch.setattr("train.models.recompute.checkpoint", refused)
    net, images = Net(True), torch.randn(2, 3, 8, 8)
    with torch.set_grad_enabled(how == "eval"):
        net.train(how != "eval")(images)
    with pytest.raises(AssertionError, match="checkpointed"):
        net.train()(images)


def test_frozen_statistics_stay() -> None:
    """A layer that trains beside norms in eval mode: neither pass moves them."""
    net = Net(True)
    before = {name: b.clone() for name, b in net.named_buffers()}
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eval()
    steps(net)
    assert all(torch.equal(b, before[name]) for name, b in net.named_buffers())


def test_any_function_with_an_owner() -> None:
    layer, direct = Layer(None), Layer(None)
    direct.load_state_dict(layer.state_dict())
    images = torch.randn(2, 3, 4, 4, requires_grad=True)
    torch.manual_seed(1)
    recompute(lambda a: layer.first(a, a), images, owner=layer).sum().backward()
    torch.manual_seed(1)
    direct.first(images, images).sum().backward()
    for (name, a), b in zip(layer.named_buffers(), direct.buffers(), strict=True):
        assert torch.equal(a, b), name
    assert layer.norm.running_mean is dict(layer.named_buffers())["norm.running_mean"]


def test_a_function_of_no_module_is_refused() -> None:
    with pytest.raises(TypeError, match="name the owner"):
        recompute(torch.relu, torch.ones(1))


def test_buffers_are_the_same_tensors_after_an_error_in_backward() -> None:
    """An optimiser, a wrapper or a state dict that holds a buffer goes on holding the one that is used."""
    layer = Layer(True)
    layer.calls = 0  # type: ignore[assignment]

    def body(*parts: Tensor) -> Tensor:
        layer.calls += 1  # type: ignore[operator]
        output = layer.norm(torch.cat(parts, 1))
        if layer.calls == 2:  # type: ignore[comparison-overlap]
            raise ValueError("in the second pass")
        return output.relu()  # type: ignore[no-any-return]

    kept, images = layer.norm.running_mean, torch.randn(2, 3, 4, 4, requires_grad=True)
    output = recompute(body, images, images, owner=layer)
    assert kept is not None
    value = kept.clone()
    with pytest.raises(ValueError, match="second pass"):
        output.sum().backward()
    assert layer.norm.running_mean is kept
    assert torch.equal(kept, value)
