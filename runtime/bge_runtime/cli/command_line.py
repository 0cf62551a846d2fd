"""What every command does around its work: standard streams, signals, errors, exit status."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, suppress
from types import FrameType
from typing import Any

import click

from bge_runtime.cli.shell_options import in_options
from bge_runtime.errors import BgeError

_ENDING_SIGNALS = ("SIGHUP", "SIGINT", "SIGTERM", "SIGALRM", "SIGUSR1", "SIGUSR2", "SIGXCPU")
"""Signals that end a process. SIGQUIT is left alone: it is for one that does not end otherwise."""

_REPEATED_S = 5.0
"""A signal this soon after another is the same wish. A closed terminal sends SIGHUP twice, once
from the kernel and once from the shell, and the second must not interrupt the cleaning up."""

_PACKAGE = os.path.dirname(os.path.dirname(__file__))
"""Folder of the package, whose warnings are a command's own."""

_BROKEN_PIPE_STATUS = 128 + 13
"""Exit status of what SIGPIPE ends, as shells give it. Python ignores the signal itself."""


@contextmanager
def command_line(name: str) -> Iterator[None]:
    """Run the body of a command the way a shell expects.

    Errors of this package and of the system are one sentence and exit status 1. Signals that end
    the process raise ``SystemExit`` in the main thread, so that whatever is open is cleaned up;
    those that are ignored, as ``nohup`` does with SIGHUP, stay ignored. A closed standard stream
    does no harm, nor does a standard error that cannot be written. When the reader of standard
    output has gone, the exit status is SIGPIPE's, and nothing is said.

    Args:
        name: Name of the command, for errors.
    """
    with ExitStack() as stack:
        _reserve_standard_descriptors()
        if sys.stderr is sys.__stderr__:  # None, too, if it is closed
            stack.enter_context(redirect_stderr(_open_stderr()))
            stack.enter_context(_print_warnings(name))
        if isinstance(sys.stdout, io.TextIOWrapper):
            # A path may hold what the encoding of a terminal or a log has no character for.
            sys.stdout.reconfigure(errors="backslashreplace")
        stack.enter_context(_exit_on_signals())
        try:
            yield
            if sys.stdout is not None:
                sys.stdout.flush()
        except BrokenPipeError:
            status = _BROKEN_PIPE_STATUS
        except (BgeError, OSError) as error:
            click.echo(f"{name}: {in_options(str(error))}", err=True)
            status = 1
        else:
            return
        _drop_unwritten_stdout()
        sys.exit(status)


class _StderrDescriptor(io.FileIO):
    """Standard error, without the errors: its reader may go long before the work is done."""

    def write(self, data: Any) -> int:
        with suppress(OSError):
            super().write(data)
        return len(data)


def _open_stderr() -> io.TextIOWrapper:
    raw: Any = _StderrDescriptor(2, "w", closefd=False)
    # Unbuffered, as `python -u` has it. The stream that it stands in for knows the encoding.
    encoding = getattr(sys.__stderr__, "encoding", "utf-8")
    return io.TextIOWrapper(raw, encoding, "backslashreplace", write_through=True)


def _reserve_standard_descriptors() -> None:
    """Open the null device in place of closed standard streams.

    The next file that is opened would take the place, and hold what libraries print.
    """
    # The wrong way round, so that reading and writing fail; but not what libraries complain of.
    for descriptor, mode in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, mode), True)


@contextmanager
def _print_warnings(name: str) -> Iterator[None]:
    """Print warnings of this package as the command's own: once each, without lines of source."""
    with warnings.catch_warnings():
        show = warnings.showwarning
        printed: set[str] = set()

        def print_ours(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            *args: Any,
            **kwargs: Any,
        ) -> None:
            text = str(message)
            if category is not UserWarning or not filename.startswith(_PACKAGE):
                show(message, category, filename, *args, **kwargs)
            elif text not in printed:
                printed.add(text)
                click.echo(f"{name}: {in_options(text)}", err=True)

        warnings.showwarning = print_ours
        yield


@contextmanager
def _exit_on_signals() -> Iterator[None]:
    last_s: float | None = None

    def leave(number: int, _: FrameType | None) -> None:
        nonlocal last_s
        now_s = time.monotonic()
        if last_s is None or now_s - last_s >= _REPEATED_S:
            last_s = now_s  # of the last one heard: whoever keeps asking is heard again
            sys.exit(128 + number)

    handlers: dict[int, Any] = {}
    # Python takes handlers from the main thread only.
    if threading.current_thread() is threading.main_thread():
        for name in _ENDING_SIGNALS:
            number = getattr(signal, name, None)
            by_default = (signal.SIG_DFL, signal.default_int_handler)
            if number is not None and signal.getsignal(number) in by_default:
                handlers[number] = signal.signal(number, leave)
    try:
        yield
    finally:
        # If one was heard the process ends, and takes no second one for another wish until then.
        if last_s is None:
            for number, handler in handlers.items():
                signal.signal(number, handler)


def _drop_unwritten_stdout() -> None:
    """Keep Python from writing once more, at its end, what could not be written."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
