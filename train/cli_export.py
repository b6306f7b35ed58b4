"""`seg-export`: a run's network as an ONNX or torch.export file. Parses, calls `train.export`, prints."""

from __future__ import annotations

from pathlib import Path

import click

from shards.errors import SettingsError
from shards.terminal import LocalPath, main_of, say
from train.threads import yield_cores

EPILOG = """\b
Example:
  seg-export --run runs/ldn121-64-4 --out model.onnx
  seg-export --run runs/ldn121-64-4 --out model-1024x2048.onnx --fixed --size 1024,2048
  seg-export --run runs/ldn121-64-4 --out model.pt2 --output classes
"""


def parse_size(text: str | None) -> tuple[int, int] | None:
    """ "1024,2048" as (height, width); raises SettingsError."""
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise SettingsError(f"--size {text!r}: expected a height and a width such as 1024,2048")
    return int(parts[0]), int(parts[1])


@click.command(epilog=EPILOG)
@click.option("--run", "folder", required=True, type=click.Path(path_type=Path), help="The run's folder.")
@click.option("--out", required=True, type=LocalPath(dir_okay=False), help="model.onnx or model.pt2.")
@click.option("--format", "kind", type=click.Choice(["onnx", "torch-export"]), help="Default: by the suffix of --out.")
@click.option("--size", help="H,W that is traced and checked too; with --fixed, the only one: 1024,2048.")
@click.option("--fixed", is_flag=True, help="One image of --size, all shapes constants (TensorRT likes that).")
@click.option(
    "--output",
    type=click.Choice(["logits", "softmax", "classes"]),
    default="logits",
    show_default=True,
    help="What the graph gives: scores, their softmax, or class ids.",
)
@click.option(
    "--input",
    "taken",
    type=click.Choice(["uint8", "float32"]),
    default="uint8",
    show_default=True,
    help="Type of the images, RGB in 0..255 either way; normalising is inside.",
)
@click.option("--opset", type=int, help="Of ONNX. Default: the exporter's own.")
@click.option("--no-check", is_flag=True, help="Publish without running the file and comparing.")
@click.option("--moving-norms", is_flag=True, help="Leave aside the BatchNorm statistics that seg-norms has made.")
@click.option("--quiet", is_flag=True, help="Print errors only.")
def command(
    folder: Path,
    out: Path,
    kind: str | None,
    size: str | None,
    fixed: bool,
    output: str,
    taken: str,
    opset: int | None,
    no_check: bool,
    moving_norms: bool,
    quiet: bool,
) -> None:
    """Write a run's network as one file that runs without this project, checked against the network.

    The graph takes images [B, 3, H, W] of any batch and any size from 32 x 32 up, and answers at their size. Class
    names and all that a reader must know are inside the file and in OUT.json.
    """
    measures = parse_size(size)
    yield_cores()
    from train.export import Export, export_run  # torch takes a second to import: --help does without
    from train.run import open_run

    asked = Export(
        kind,  # type: ignore[arg-type]  # click has checked both
        measures,
        fixed,
        output,  # type: ignore[arg-type]
        taken == "float32",
        opset,
        not no_check,
        not moving_norms,
    )
    written = export_run(open_run(folder), out, asked)
    check = written.check
    if check is None:
        say("not checked", quiet)
    else:
        sizes = ", ".join(f"{b} x {h} x {w}" for b, h, w in check.cases)
        say(f"largest difference {check.absolute:.2g}, {check.difference:.2g} of the scale, at {sizes}", quiet)
    say(f"{written.path}: {written.bytes / 1e6:.1f} MB; described in {written.card}", quiet)


main = main_of(command)

if __name__ == "__main__":
    main()
