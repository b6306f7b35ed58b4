"""How commands talk to people: progress, one-line errors, exit codes 0 (done), 1 (short or stopped), 2 (refused)."""

from __future__ import annotations

import errno
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from shards.errors import SegshardsError, SettingsError

EVERY = 10.0  # seconds between plain progress lines


class LocalPath(click.Path):
    """Where a command writes to, as a Path; SettingsError for a URL, which would become a folder of that name.

    Args:
        dir_okay: whether a folder that is there may be given.
        file_okay: whether a file may.
    """

    def __init__(self, *, dir_okay: bool = True, file_okay: bool = True) -> None:
        super().__init__(path_type=Path, dir_okay=dir_okay, file_okay=file_okay)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from shards.store import is_url

        if is_url(value):
            raise SettingsError(
                f"{value} found for a place to write to; expected a path on this machine: copy it from there"
            )
        return super().convert(value, param, ctx)


def main_of(command: click.Command, remedy: str = "run the same command again to go on") -> Callable[[], None]:
    """A console-script entry that runs ``command`` and turns every expected failure into one line and a code.

    Args:
        command: what runs.
        remedy: what to do after Ctrl-C.
    """

    def main() -> None:
        try:
            code = _run(command)
        except click.UsageError as error:
            fail_usage(error)
        except click.ClickException as error:
            error.show()
            sys.exit(2)
        except (click.Abort, KeyboardInterrupt):
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # pressed again, it ends us at once, without a traceback
            fail(f"stopped; {remedy}", 1)
        except SegshardsError as error:
            fail(str(error), 2)
        except BrokenPipeError:
            sys.stderr.close()  # the reader of our output left: nothing to tell it
            sys.exit(1)
        except OSError as error:
            fail(describe(error), 2)
        sys.exit(code if isinstance(code, int) else 0)

    return main


def _run(command: click.Command) -> Any:
    """Run it; what Ctrl-C has become on its way up (zipfile makes a ValueError of it) is Ctrl-C again."""
    try:
        return command.main(standalone_mode=False)
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, KeyboardInterrupt):
            cause = cause.__context__
        if cause is not None:
            raise cause from None
        raise


def describe(error: OSError) -> str:
    """An operating-system error as one line with a remedy where there is one."""
    where = f": {error.filename}" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"disk full{where}; free some space and run the same command again: what is written stays"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{error.strerror}{where}; choose a place that you may write to, or change its permissions"
    return f"{error.strerror or error}{where}"


def fail(message: str, code: int) -> None:
    """Print one line on stderr and exit."""
    sys.stderr.write(f"error: {message}\n" if code == 2 else f"{message}\n")
    sys.stderr.flush()
    sys.exit(code)


def fail_usage(error: click.UsageError) -> None:
    """A wrong option as one line with exit 2; a group without a command prints its help."""
    text = error.format_message()
    if "\n" in text:
        error.show()
        sys.exit(2)
    fail(f"{text.removesuffix('.')}; {error.ctx.command_path if error.ctx else ''} --help shows what is possible", 2)


def say(text: str, quiet: bool = False) -> None:
    """Print to stdout unless quiet."""
    if not quiet:
        click.echo(text)


class Progress:
    """Progress with rate and time left: a bar on a terminal, a plain line every ten seconds elsewhere, on stderr.

    Args:
        total: how many steps there are, None where unknown.
        what: the unit and action, e.g. ``samples``.
        quiet: show nothing.
        done: steps that an earlier run did; the rate leaves them out.
    """

    def __init__(self, total: int | None, what: str, quiet: bool = False, done: int = 0) -> None:
        self._total, self._what, self._quiet = total, what, quiet
        self._done, self._before = done, done
        self._text = ""
        self._start = self._said = time.monotonic()
        self._bar: Bar | None = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        console = Console(stderr=True)
        if console.is_terminal and not self._quiet:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
            )
            self._bar = Bar(
                *columns, TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[text]}"), console=console
            )
            self._bar.start()
            self._task = self._bar.add_task(self._what, total=self._total, completed=self._done, rate="", text="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif not self._quiet and kind is None:
            self._line()

    def advance(self, n: int = 1) -> None:
        """Count n more steps."""
        self._done += n
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, rate=f"{self.rate:.1f}/s", text=self._text)
        elif not self._quiet and time.monotonic() - self._said >= EVERY:
            self._line()

    def set(self, **text: object) -> None:
        """Show these values beside the progress, e.g. ``set(loss="0.512")``."""
        self._text = " ".join(f"{name} {value}" for name, value in text.items())

    @property
    def rate(self) -> float:
        """Steps a second in this run."""
        return (self._done - self._before) / max(time.monotonic() - self._start, 1e-9)

    def _line(self) -> None:
        self._said = time.monotonic()
        left = (self._total - self._done) / self.rate if self._total is not None and self.rate > 0 else None
        parts = [f"{self._done}{'' if self._total is None else f'/{self._total}'} {self._what}", f"{self.rate:.1f}/s"]
        parts += [f"{left:.0f} s left"] if left is not None and left > 0.5 else []
        parts += [self._text] if self._text else []
        sys.stderr.write(", ".join(parts) + "\n")
        sys.stderr.flush()
