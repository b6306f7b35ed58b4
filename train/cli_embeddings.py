"""`seg-embeddings`: the class embeddings of a run as files. Parses, calls `train.embeddings`, prints."""

from __future__ import annotations

from pathlib import Path

import click

from shards.terminal import LocalPath, main_of, say
from train.threads import yield_cores

EPILOG = """\b
Example:
  seg-embeddings --run runs/cocolvis --out embeddings
  numpy.load("embeddings/embeddings.npz")["names"]
"""


@click.command(epilog=EPILOG)
@click.option("--run", "folder", required=True, type=click.Path(path_type=Path), help="The run's folder.")
@click.option("--out", required=True, type=LocalPath(), help="Folder for the results.")
@click.option(
    "--neighbours", default=10, show_default=True, type=click.IntRange(1), help="Nearest classes listed for each class."
)
@click.option("--quiet", is_flag=True, help="Print errors only.")
def command(folder: Path, out: Path, neighbours: int, quiet: bool) -> None:
    """Write the class embeddings of a run with an embedding head.

    embeddings.safetensors and embeddings.npz with names and WordNet ids, neighbours.tsv, projection.png.
    """
    yield_cores()
    import torch  # takes a second to import: --help does without

    from train.embeddings import class_vectors, write_all
    from train.inference import load_model
    from train.run import open_run

    run = open_run(folder)
    model, step = load_model(run, torch.device("cpu"))
    found = class_vectors(model, run)
    write_all(found, run, step, out, neighbours)
    count, width = found.vectors.shape
    say(f"{count} class embeddings of {width} numbers, step {step}: {out}", quiet)


main = main_of(command)

if __name__ == "__main__":
    main()
