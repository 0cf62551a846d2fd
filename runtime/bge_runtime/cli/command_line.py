"""What all commands share: standard streams, signals, errors and exit status."""

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

from bge_runtime.cli.shell_options import replace_arguments
from bge_runtime.errors import BgeError

_ENDING_SIGNALS = ("SIGHUP", "SIGINT", "SIGTERM", "SIGALRM", "SIGUSR1", "SIGUSR2", "SIGXCPU")
"""Signals that end a process. SIGQUIT is left out, as the last resort against a hung process."""

_REPEATED_S = 5.0
"""A signal within this time after another is ignored. A closed terminal sends SIGHUP twice, once
from the kernel and once from the shell, and the second must not interrupt the clean-up."""

_PACKAGE = os.path.dirname(os.path.dirname(__file__))
"""Folder of the package whose warnings are printed as the command's."""

_BROKEN_PIPE_STATUS = 128 + 13
"""Exit status of a process that SIGPIPE ends. Python itself ignores the signal."""


@contextmanager
def command_line(name: str) -> Iterator[None]:
    """Run the body of a command as shells expect.

    Errors of this package and of the operating system become one sentence and exit status 1.
    Signals that end the process raise ``SystemExit`` in the main thread, so that open files are
    cleaned up. Ignored signals, such as SIGHUP under ``nohup``, stay ignored. Standard streams may
    be closed, and writing to standard error may fail. If the reader of standard output is gone,
    the exit status is that of SIGPIPE, without a message.

    Args:
        name: Name of the command, for error messages.
    """
    with ExitStack() as stack:
        _reserve_standard_descriptors()
        if sys.stderr is sys.__stderr__:  # both are None if it is closed
            stack.enter_context(redirect_stderr(_open_stderr()))
            stack.enter_context(_print_warnings(name))
        if isinstance(sys.stdout, io.TextIOWrapper):
            # The encoding of a terminal or log may lack characters of a path.
            sys.stdout.reconfigure(errors="backslashreplace")
        stack.enter_context(_exit_on_signals())
        try:
            yield
            if sys.stdout is not None:
                sys.stdout.flush()
        except BrokenPipeError:
            status = _BROKEN_PIPE_STATUS
        except (BgeError, OSError) as error:
            click.echo(f"{name}: {replace_arguments(str(error))}", err=True)
            status = 1
        else:
            return
        _drop_unwritten_stdout()
        sys.exit(status)


class _StderrDescriptor(io.FileIO):
    """Standard error that ignores failed writes, since its reader may be gone before the end."""

    def write(self, data: Any) -> int:
        with suppress(OSError):
            super().write(data)
        return len(data)


def _open_stderr() -> io.TextIOWrapper:
    raw: Any = _StderrDescriptor(2, "w", closefd=False)
    # Unbuffered, as with `python -u`, in the encoding of the original stream.
    encoding = getattr(sys.__stderr__, "encoding", "utf-8")
    return io.TextIOWrapper(raw, encoding, "backslashreplace", write_through=True)


def _reserve_standard_descriptors() -> None:
    """Open the null device for closed standard streams.

    Otherwise the next opened file would get the descriptor, and the output of libraries.
    """
    # In the wrong mode, so that reading and writing fail; only standard error can be written.
    for descriptor, mode in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, mode), True)


@contextmanager
def _print_warnings(name: str) -> Iterator[None]:
    """Print each warning of this package once, after the command's name, without source lines."""
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
                click.echo(f"{name}: {replace_arguments(text)}", err=True)

        warnings.showwarning = print_ours
        yield


@contextmanager
def _exit_on_signals() -> Iterator[None]:
    last_s: float | None = None

    def leave(number: int, _: FrameType | None) -> None:
        nonlocal last_s
        now_s = time.monotonic()
        if last_s is None or now_s - last_s >= _REPEATED_S:
            last_s = now_s  # of the last signal that counted, so that repeated ones count later
            sys.exit(128 + number)

    handlers: dict[int, Any] = {}
    # Python accepts handlers only in the main thread.
    if threading.current_thread() is threading.main_thread():
        for name in _ENDING_SIGNALS:
            number = getattr(signal, name, None)
            by_default = (signal.SIG_DFL, signal.default_int_handler)
            if number is not None and signal.getsignal(number) in by_default:
                handlers[number] = signal.signal(number, leave)
    try:
        yield
    finally:
        # After a signal the process ends, and still ignores repeated ones until then.
        if last_s is None:
            for number, handler in handlers.items():
                signal.signal(number, handler)


def _drop_unwritten_stdout() -> None:
    """Prevent Python from writing again at exit what could not be written."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
