"""Parameters and multiply-adds against the paper's Tables 1, 2 and 9 ("Model size", "FLOP 1MPx").

Our own counter: parameters without the auxiliary heads; a convolution of k x k costs out numbers * in / groups * k * k
(biases, norms, pooling, resizing: nothing), for one image of 1024 x 1024 on the meta device.

The paper's DenseNets are smaller than its text makes them, by 4.5 G and 0.08 M for DenseNet-121 (10.1 G, 0.18 M for
161). Its release explains that: built without ImageNet weights, it leaves out the 1x1 of every unit whose input is no
wider than the 1x1's output (the first three of DB1, the first of DB2), so that the 3x3 sees the input itself; so has
`model.short_units = true`, which is what is compared. With ImageNet weights all units have their 1x1. Differences that
are left, beyond the paper's rounding:

- DenseNet-161, DPN-68: the widths 512, 128, 256 of the pyramid agree (30.1 M), the text's d/2, d/8, d/4 do not
  (34.1 M), nor do the release's 512, 128, 512 (31.1 M). For DenseNet-121 the first two are the same.
- ResNets, everything dilated and the baseline without a ladder: 512, 128, 512 agree. So do they for DenseNet-169, where
  the steps without a residual are nearer (15.57 M, 88.3 G; with it 15.73 M, 89.4 G).
- 128 -> 4: 0.17 M more. Nothing says where the sixth pooling is or how wide its step; cutting DB4 in half agrees with
  the multiply-adds to 0.3 G (so the cut is right), the width of one convolution does not.
- 32 -> 2: 37.7 G and 0.19 M more in the paper: to 0.95 G what a second 3x3 of 128 channels at stride 2 costs. The text
  has one 3x3 a step ("only one 3x3 convolution"), and so have we.
- NoSPP: 10.19 M, if the 3x3 that replaces the pyramid stands behind the pyramid's first projection, to d/2. The text
  has "a single 3x3 convolution"; from d channels to d/4 that makes 10.85 M, from d to d/8 9.54 M.
- SPP [17]: no widths given. PSPNet's own (1x1 to d/4 a level, beside d, 3x3 to 512) make 19.4 M. Of those that we tried
  with 1x1 fusion, d/2 projected, d/4 a level, d/2 out is the nearest: 0.16 M and 0.4 G more than printed (without the
  steps' residual 10.59 M, 66.6 G); without the first projection 11.02 M, with levels of d/8 10.23 M, d/4 out 9.94 M.
- Dilated: 0.6 G (DB4) to 2.3 G (DB3 and DB4) more in the paper with the same parameters; not explained.
- DPN-68: the parameters agree, but the paper has 8.3 G fewer; timm's encoder alone has 48.6 G (2.33 G at 224 x 224),
  and the ladder costs what it costs over ResNets. Not explained.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from train.config import Model
from train.models import build_model


class Row(NamedTuple):
    """What the paper prints, how we build it, and how far apart the two may be."""

    encoder: str
    down: int
    up: int
    size: float  # M parameters, as printed
    flop: float  # G multiply-adds, as printed
    settings: dict[str, Any] = {}  # noqa: RUF012
    size_off: float = 0.1  # M; ours - the paper's
    flop_off: float = 0.5  # G


ROWS = [
    Row("densenet121", 64, 4, 9.5, 66.5),
    Row("densenet121", 32, 4, 9.0, 75.4),
    Row("densenet121", 128, 4, 9.9, 66.2, size_off=0.18),
    Row("densenet161", 64, 4, 30.0, 138.7, {"spp_width": 256}),
    Row("densenet121", 64, 4, 8.7, 54.2, {"depthwise": True}),
    Row("densenet121", 64, 4, 10.2, 66.7, {"spp": "none"}),
    Row("densenet121", 64, 4, 10.6, 66.9, {"spp": "square"}, size_off=0.17),
    Row("densenet169", 32, 4, 15.6, 88.8, {"spp_width": 512, "ladder_residual": False}),
    Row("densenet121", 32, 32, 8.2, 56.1, {"spp_width": 512}),
    Row("densenet121", 32, 2, 9.4, 154.5, size_off=0.2, flop_off=38),
    Row("resnet18", 32, 4, 13.3, 55.7, {"spp_width": 512}),
    Row("resnet50", 32, 4, 26.9, 109.0, {"spp_width": 512}),
    Row("resnet101", 32, 4, 45.9, 186.7, {"spp_width": 512}),
    Row("dpn68", 32, 4, 13.7, 59.0, {"spp_width": 256}, flop_off=8.4),
    Row("densenet121", 8, 8, 8.2, 147.8, {"spp_width": 512, "dilated": 8}, flop_off=2.3),
    Row("densenet121", 8, 4, 8.6, 174.8, {"spp_width": 512, "dilated": 8}, flop_off=2.4),
    Row("densenet121", 16, 4, 8.9, 87.0, {"spp_width": 512, "dilated": 16}, flop_off=0.7),
]


def counts(**settings: Any) -> tuple[float, float]:
    """(M parameters, G multiply-adds) of a ladder with 19 classes."""
    with torch.device("meta"):
        model = build_model(Model(arch="ladder", auxiliary=False, **settings), 19).eval()
    total = 0

    def add(conv: nn.Conv2d, inputs: object, out: Tensor) -> None:
        nonlocal total
        total += out.numel() * conv.in_channels // conv.groups * conv.kernel_size[0] * conv.kernel_size[1]

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(add)
        elif isinstance(module, nn.BatchNorm2d):
            module.forward = lambda x: x  # counts nothing, and is slow without memory
    with torch.no_grad():
        model.decoder(model.encoder(torch.empty(1, 3, 1024, 1024, device="meta")))
    return sum(p.numel() for p in model.parameters()) / 1e6, total / 1e9


def left_out(encoder: str) -> tuple[float, float]:
    """(M parameters, G multiply-adds) that the release's DenseNet saves where it is built without ImageNet weights."""
    if not encoder.startswith("densenet"):
        return 0.0, 0.0
    grown = 48 if encoder == "densenet161" else 32
    parameters = multiplied = 0
    for width, cells in [(2 * grown, 256**2), (3 * grown, 256**2), (4 * grown, 256**2), (4 * grown, 128**2)]:
        saved = width * 4 * grown + 9 * 4 * grown * grown - 9 * width * grown
        parameters, multiplied = parameters + saved, multiplied + saved * cells
    return parameters / 1e6, multiplied / 1e9


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.encoder}-{row.down}-{row.up}")
def test_size_and_cost_are_the_papers(row: Row) -> None:
    short = row.encoder.startswith("densenet")
    size, flop = counts(encoder=row.encoder, down=row.down, up=row.up, short_units=short, **row.settings)
    assert size == pytest.approx(row.size, abs=row.size_off)
    assert flop == pytest.approx(row.flop, abs=row.flop_off)


@pytest.mark.parametrize("encoder", ["densenet121", "densenet161"])
def test_short_units_save_four_projections(encoder: str) -> None:
    """Beside what the formula counts, the norms behind those projections: 2 of 4 * growth each become none."""
    whole, short = (counts(encoder=encoder, short_units=short) for short in (False, True))
    spare_size, spare_flop = left_out(encoder)
    norms = 4 * 2 * 4 * (48 if encoder == "densenet161" else 32) / 1e6
    assert whole[0] - short[0] == pytest.approx(spare_size + norms, abs=1e-9)
    assert whole[1] - short[1] == pytest.approx(spare_flop, abs=1e-9)


def test_the_counts_are_without_auxiliary_heads() -> None:
    """Table 9 prints 9.5 M with and without auxiliary losses, so the heads (norm, 1x1 with bias) are left out."""
    with torch.device("meta"):
        kinds = [
            build_model(Model(arch="ladder", encoder="densenet121", auxiliary=auxiliary), 19)
            for auxiliary in (False, True)
        ]
    without, whole = (sum(p.numel() for p in model.parameters()) for model in kinds)
    assert whole - without == sum(2 * n + 19 * n + 19 for n in (256, 256, 256, 128, 512, 512, 512, 512))


def test_ldn121_counted_as_the_release_is_built() -> None:
    """9.62 M with d/4 and 10.31 M with 512: the release's network with residual and ImageNet weights."""
    assert counts(encoder="densenet121")[0] == pytest.approx(9.62, abs=0.006)
    assert counts(encoder="densenet121", spp_width=512)[0] == pytest.approx(10.31, abs=0.006)
