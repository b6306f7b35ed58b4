"""The regulariser of class embeddings (ESSNet, eq. 7): a class whose nearest other class is closer than a margin pays.

    L_r = 1/C sum_i max(0, m - d_i),        d_i = min_{j != i} ||e_i - e_j||

The nearest class is searched in chunks (train/neighbors.py), so nothing of size C x C exists.
"""

from __future__ import annotations

import torch
from torch import Tensor

from shards.errors import SettingsError
from train.losses.rows import Found, Search, add_rows, attach, finite, full_precision, wants_gradients
from train.neighbors import nearest


def margin_regulariser(table: Tensor, margin: float = 0.2, *, search: Search | None = None) -> Tensor:
    """Eq. 7, a scalar in float32 (float64 for a float64 table).

    The gradient is that of the formula: each pair that a class forms with its nearest pushes both ends apart. Of
    several nearest classes the one with the lowest id forms the pair. Two classes at distance 0 pay the whole margin
    and have no direction to go: gradient 0. One class alone pays nothing. A table that holds NaN costs NaN.

    Args:
        table: [C, d] class embeddings.
        margin: distance from which on a class pays nothing.
        search: stands in for `train.neighbors.nearest`.

    Raises:
        SettingsError: the table is not [C, d] with C and d above 0, or the margin is negative.
    """
    if table.ndim != 2 or 0 in table.shape:
        raise SettingsError(f"table {list(table.shape)}; expected [C, d], both above 0")
    if not margin >= 0:
        raise SettingsError(f"margin is {margin:g}; it must be 0 or more")
    gradients = wants_gradients(table)
    with full_precision(table.device):
        found = _pushed(table.to(torch.promote_types(table.dtype, torch.float32)), margin, search or nearest)
    return attach(found, None, table, None) if gradients else found.cost


def _pushed(table: Tensor, margin: float, search: Search) -> Found:
    count = len(table)
    if count == 1:
        return Found(table.sum() * 0, table=torch.zeros_like(table))
    safe = finite(table)
    other = search(safe, safe, 2)[:, 1]  # the nearest is itself, or one that lies on it
    apart = table - table.index_select(0, other)
    distances = apart.square().sum(dim=1).sqrt()
    cost = (margin - distances).clamp_(min=0).sum() / count
    pushes = torch.where((distances < margin) & (distances > 0), -1 / (count * distances), 0)
    apart *= pushes[:, None]
    gradient = apart.clone()
    add_rows(gradient, other, apart.neg_())
    return Found(cost, table=gradient)
