"""The kernels of the exact softmax on CUDA (train/losses/triton_streaming.py says what they compute and why).

Triton reads these functions' source: they take no annotations, and everything is in their arguments.
"""

# mypy: ignore-errors
# ruff: noqa: N803
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _squares(x, step, inside, e, stride, real, D: tl.constexpr, R: tl.constexpr, B: tl.constexpr):
    """||x - e||^2 of R rows and B classes: x + row * step + j, e + j * stride + class."""
    total = tl.zeros([R, B], tl.float32)
    for j in range(D):
        row = tl.load(x + step + j, mask=inside, other=0.0)
        column = tl.load(e + j * stride, mask=real, other=0.0)
        apart = row[:, None] - column[None, :]
        total += apart * apart
    return total


@triton.jit
def _logits(squares, inverse, PLAIN: tl.constexpr):
    """Logits, and what turns a share of the softmax into the pull of a class on a row (times tau)."""
    if PLAIN:
        radii = tl.sqrt(squares)
        pull = tl.where(radii > 0, 1 / tl.where(radii > 0, radii, 1.0), 0.0)
        logits = -radii * inverse
    else:
        pull = tl.zeros_like(squares) + 2.0
        logits = -squares * inverse
    return logits, pull


@triton.jit
def _banned(allowed, group, targets, rows, inside, columns, real, classes, K: tl.constexpr):
    """Classes [R, B] that a row's group does not allow and that are none of its targets."""
    place = group.to(tl.int64)[:, None] * classes + columns[None, :]
    free = tl.load(allowed + place, mask=inside[:, None] & real[None, :], other=1) != 0
    for k in range(K):
        target = tl.load(targets + rows.to(tl.int64) * K + k, mask=inside, other=-1)
        free = free | (target[:, None] == columns[None, :])
    return ~free


@triton.jit
def rows_kernel(
    x, e, table, tau, group, allowed, targets, lse, gradient, number, classes,
    D: tl.constexpr, P: tl.constexpr, K: tl.constexpr, R: tl.constexpr, B: tl.constexpr,
    PLAIN: tl.constexpr, ALLOWED: tl.constexpr, GRADIENT: tl.constexpr,
):  # fmt: skip
    """One program: R rows. lse [N]; gradient [N, D] of lse in x, before 1 / tau. One pass with a running maximum."""
    rows = tl.program_id(0) * R + tl.arange(0, R)
    inside = rows < number
    step = rows.to(tl.int64) * D
    wide = tl.arange(0, P)
    inverse = 1 / tl.load(tau)
    top = tl.zeros([R], tl.float32) - float("inf")
    mass = tl.zeros([R], tl.float32)
    drawn = tl.zeros([R, P], tl.float32)
    pulled = tl.zeros([R], tl.float32)
    images = tl.load(group + rows, mask=inside, other=0) if ALLOWED else rows
    for first in range(0, classes, B):
        columns = first + tl.arange(0, B)
        real = columns < classes
        squares = _squares(x, step, inside, e + columns, classes, real, D, R, B)
        logits, pull = _logits(squares, inverse, PLAIN)
        if ALLOWED:
            banned = _banned(allowed, images, targets, rows, inside, columns, real, classes, K)
            logits = tl.where(banned, -float("inf"), logits)
        logits = tl.where(real[None, :], logits, -float("inf"))
        higher = tl.maximum(top, tl.max(logits, axis=1))
        floor = tl.where(higher == -float("inf"), 0.0, higher)
        shrink = tl.exp(top - floor)
        shares = tl.exp(logits - floor[:, None])
        mass = mass * shrink + tl.sum(shares, axis=1)
        top = higher
        if GRADIENT:
            pulls = shares * pull
            place = columns[:, None] * D + wide[None, :]
            values = tl.load(table + place, mask=real[:, None] & (wide < D)[None, :], other=0.0)
            drawn = drawn * shrink[:, None] + tl.dot(pulls, values, input_precision="ieee")
            pulled = pulled * shrink + tl.sum(pulls, axis=1)
    tl.store(lse + rows, top + tl.log(mass), mask=inside)
    if GRADIENT:
        own = inside[:, None] & (wide < D)[None, :]
        place = step[:, None] + wide[None, :]
        mine = tl.load(x + place, mask=own, other=0.0)
        tl.store(gradient + place, (drawn - mine * pulled[:, None]) / mass[:, None], mask=own)


@triton.jit
def classes_kernel(
    x, e, tau, group, allowed, targets, lse, total, parts, number, classes, span,
    D: tl.constexpr, P: tl.constexpr, K: tl.constexpr, R: tl.constexpr, B: tl.constexpr,
    PLAIN: tl.constexpr, ALLOWED: tl.constexpr,
):  # fmt: skip
    """One program: B classes against `span` rows, a multiple of R. parts [splits, C, D + 1]: sums of q x, then of q.

    q is a class's share of the softmax times the row's weight `total` and the pull of `_logits`.
    """
    columns = tl.program_id(0) * B + tl.arange(0, B)
    real = columns < classes
    wide = tl.arange(0, P)
    inverse = 1 / tl.load(tau)
    drawn = tl.zeros([B, P], tl.float32)
    pulled = tl.zeros([B], tl.float32)
    begin = tl.program_id(1) * span
    for first in range(0, span, R):
        rows = begin + first + tl.arange(0, R)
        inside = rows < number
        step = rows.to(tl.int64) * D
        squares = _squares(x, step, inside, e + columns, classes, real, D, R, B)
        logits, pull = _logits(squares, inverse, PLAIN)
        level = tl.load(lse + rows, mask=inside, other=0.0)
        weight = tl.load(total + rows, mask=inside, other=0.0)
        shares = tl.exp(logits - level[:, None]) * weight[:, None]
        if ALLOWED:
            images = tl.load(group + rows, mask=inside, other=0)
            banned = _banned(allowed, images, targets, rows, inside, columns, real, classes, K)
            shares = tl.where(banned, 0.0, shares)
        pulls = tl.where(inside[:, None] & real[None, :], shares * pull, 0.0)
        own = inside[:, None] & (wide < D)[None, :]
        mine = tl.load(x + step[:, None] + wide[None, :], mask=own, other=0.0)
        drawn += tl.dot(tl.trans(pulls), mine, input_precision="ieee")
        pulled += tl.sum(pulls, axis=0)
    place = (tl.program_id(1).to(tl.int64) * classes + columns) * (D + 1)
    tl.store(parts + place[:, None] + wide[None, :], drawn, mask=real[:, None] & (wide < D)[None, :])
    tl.store(parts + place + D, pulled, mask=real)
