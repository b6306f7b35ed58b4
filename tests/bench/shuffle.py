"""Quality of the shuffle: orders of an epoch against a true shuffle, on a set whose samples are sorted by class.

    python -m tests.bench.shuffle [--shards 100] [--samples 200] [--classes 20] [--batch 16] [--epochs 10]

No file is read: an order is a function of the shards' sizes. Columns, means over some epochs with their deviations:

chi2      chi-square of the class mix of batches, per degree of freedom: 1 for a true shuffle, larger where batches
          hold too much of one class
beyond    batches whose chi-square passes what 95 % of a true shuffle's stay below: 5 %
moved     how far samples are from where they are stored, as a share of the set: 1/3
KS        largest difference of the distribution of `moved` from a true shuffle's (Kolmogorov-Smirnov)
apart     how far two samples that are stored side by side are from each other, as a share of the set: 1/3
files     shards that 1,000 samples in a row lie in: what a cache has to hold
reads     samples whose neighbour in the file is read within the same 1,000: what reading ahead can use
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from shards import epoch_order
from tests.bench.timing import markdown

Order = npt.NDArray[np.int64]
NEAR = 1000  # samples


def chi_squares(order: Order, classes: Order, batch: int) -> npt.NDArray[np.float64]:
    """Of each whole batch's class mix, per degree of freedom: float64 [batches]."""
    whole = len(order) // batch * batch
    mixes = np.zeros((whole // batch, classes.max() + 1))
    np.add.at(mixes, (np.arange(whole) // batch, classes[order[:whole]]), 1)
    expected = np.bincount(classes) / len(classes) * batch
    return ((mixes - expected) ** 2 / expected).sum(1) / (len(expected) - 1)


def figures(order: Order, classes: Order, batch: int, limit: float, per_shard: int) -> dict[str, float]:
    """The columns of one epoch; those that need a true shuffle beside it are left out."""
    found, place = chi_squares(order, classes, batch), np.empty_like(order)
    place[order] = np.arange(len(order))
    blocks = [order[at : at + NEAR] for at in range(0, len(order) - NEAR + 1, NEAR)]
    return {
        "chi2": found.mean(),
        "beyond": (found > limit).mean(),
        "moved": np.abs(place - np.arange(len(order))).mean() / len(order),
        "apart": np.abs(np.diff(place)).mean() / len(order),
        "files": float(np.mean([len(np.unique(block // per_shard)) for block in blocks])),
        "reads": float(np.mean([np.isin(block + 1, block).mean() for block in blocks])),
    }


def distance(order: Order, true: Order) -> float:
    """Kolmogorov-Smirnov distance of how far samples have moved in two orders."""
    moved = [np.sort(np.abs(one - np.arange(len(one)))) for one in (order, true)]
    steps = np.arange(len(order))
    shares = [np.searchsorted(one, steps, side="right") / len(one) for one in moved]
    return float(np.abs(shares[0] - shares[1]).max())


def rivals(groups: list[int]) -> dict[str, Callable[[int], Order]]:
    """The orders that are compared, by name: each a function of the epoch."""
    made: dict[str, Callable[[int], Order]] = {
        "true shuffle": lambda epoch: np.random.default_rng(epoch).permutation(sum(groups)),
        "another true shuffle": lambda epoch: np.random.default_rng(epoch + 10**6).permutation(sum(groups)),
    }
    for window, run in ((1, None), (4, None), (16, None), (len(groups), None), (4, 8), (4, 1), (16, 8), (16, 4)):
        name = f"window {window}" + (f", runs of {run}" if run else " shards")
        made[name] = lambda epoch, w=window, r=run: epoch_order(groups, "bench", 0, epoch, w, r)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("shards", 100), ("samples", 200), ("classes", 20), ("batch", 16), ("epochs", 10)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    groups = [given.samples] * given.shards
    classes = np.arange(sum(groups)) * given.classes // sum(groups)
    made = rivals(groups)
    true = [made["true shuffle"](epoch) for epoch in range(given.epochs)]
    limit = float(np.quantile(np.concatenate([chi_squares(one, classes, given.batch) for one in true]), 0.95))
    rows = []
    for name, order in made.items():
        orders = [order(epoch) for epoch in range(given.epochs)]
        found = [figures(one, classes, given.batch, limit, given.samples) for one in orders]
        found = [{**one, "KS": distance(o, t)} for one, o, t in zip(found, orders, true, strict=True)]
        columns = {key: [one[key] for one in found] for key in ("chi2", "beyond", "moved", "KS", "apart")}
        rows.append(
            [
                name,
                *(f"{np.mean(values):.3f} ± {np.std(values):.3f}" for values in columns.values()),
                f"{np.mean([one['files'] for one in found]):.0f}",
                f"{np.mean([one['reads'] for one in found]):.2f}",
            ]
        )
    print(
        f"{given.shards} shards x {given.samples} samples, sorted by {given.classes} classes; batches of {given.batch}"
    )
    print(markdown(["order", "chi2", "beyond", "moved", "KS", "apart", "files", "reads"], rows))


if __name__ == "__main__":
    main()
