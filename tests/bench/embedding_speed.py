"""Time of the losses over class embeddings against C dense logits, and the error of the approximation.

    python -m tests.bench.embedding_speed [--rounds 3] [--threads 1] [--device cpu]

Unit rows and classes, d = 12, tau = 0.05, one target a row; forward and backward, in milliseconds of the median round.
Rivals take turns in one process: `dense` is the product of rows and classes over tau and torch's cross-entropy, `exact`
is streaming_cross_entropy, `nearest` nearest_cross_entropy with k = 8, search included. Dense is left out where its
three arrays take more than 7 GiB.

Then what leaving classes out does to the target's probability (train/losses/approximation.py): on random rows, and on
rows that lie near their class as trained ones do. `paper` is its worst case, 1/k - 1/C; `bound` the true one; the last
row is built to meet it.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.bench.timing import alternate, markdown
from train.losses import nearest_cross_entropy, streaming_cross_entropy
from train.losses.approximation import approximation

D, K, TAU, MOST = 12, 8, 0.05, 7 * 2**30
SIZES = [(65_536, 1_284), (65_536, 4_096), (131_072, 4_096), (262_144, 1_284), (16_384, 21_841), (65_536, 21_841)]


def rivals(number: int, classes: int, device: str) -> dict[str, Callable[[], object]]:
    """What takes turns."""
    torch.manual_seed(0)
    rows = F.normalize(torch.randn(number, D, device=device), dim=1).requires_grad_()
    table = F.normalize(torch.randn(classes, D, device=device), dim=1).requires_grad_()
    ids = torch.randint(classes, (number, 1), device=device)
    weights = torch.ones(number, 1, device=device)

    def timed(loss: Callable[[], Tensor]) -> Callable[[], object]:
        def job() -> object:
            rows.grad = table.grad = None
            loss().backward()
            return rows.grad.sum().item()  # waits for a GPU

        return job

    found = {
        "exact": timed(lambda: streaming_cross_entropy(rows, table, ids, weights, TAU)),
        "nearest": timed(lambda: nearest_cross_entropy(rows, table, ids, weights, K, TAU)),
    }
    if 12 * number * classes <= MOST:
        found["dense"] = timed(lambda: F.cross_entropy((rows @ table.t()) * (2 / TAU), ids[:, 0]))
    return found


def speed(rounds: int, device: str) -> None:
    """The table of times."""
    lines = []
    for number, classes in SIZES:
        took = alternate(rivals(number, classes, device), rounds)
        dense = took.get("dense")
        lines.append(
            [
                f"{number:,}",
                f"{classes:,}",
                *(f"{1e3 * took[name]:,.0f}" for name in ("exact", "nearest")),
                f"{1e3 * dense:,.0f}" if dense else "does not fit",
                f"{took['exact'] / dense:.2f}" if dense else "",
            ]
        )
    print(markdown(["N", "C", "exact, ms", "nearest, ms", "dense, ms", "exact / dense"], lines))


def samples(classes: int) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Rows, classes and targets, by name."""
    torch.manual_seed(0)
    table = F.normalize(torch.randn(classes, D), dim=1)
    ids = torch.randint(classes, (4096,))
    found = {"random rows": (F.normalize(torch.randn(4096, D), dim=1), table, ids)}
    for noise in (0.3, 0.15):
        found[f"class + noise of {noise:g} a dimension"] = (
            F.normalize(table[ids] + noise * torch.randn(4096, D), dim=1),
            table,
            ids,
        )
    height = torch.full((classes, 1), 0.2)
    height[0] += TAU * math.log((K - 1) * (classes - 1)) / 4
    around = F.normalize(torch.randn(classes, D - 1), dim=1)
    found["built to meet the bound"] = (
        torch.eye(D)[:1],
        torch.cat([height, (1 - height.square()).sqrt() * around], dim=1),
        torch.zeros(1, dtype=torch.int64),
    )
    return found


def errors() -> None:
    """The table of the approximation's error."""
    lines = []
    for classes in (150, 1_284, 21_841):
        for name, (rows, table, ids) in samples(classes).items():
            seen = approximation(rows, table, ids[:, None], torch.ones(len(ids), 1), K, TAU)
            numbers = (seen.mean, seen.largest, seen.paper, seen.bound, seen.loss, seen.exact_loss)
            lines.append([f"{classes:,}", name, *(f"{value:.4f}" for value in numbers)])
    print(markdown(["C", "rows", "mean", "largest", "paper", "bound", "loss, k = 8", "exact loss"], lines))


def main() -> None:
    """Both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    speed(options.rounds, options.device)
    print()
    errors()


if __name__ == "__main__":
    main()
