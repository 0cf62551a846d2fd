"""What commands do around their work: signals, standard streams, errors, exit status."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from bge_runtime.cli.command_line import command_line
from bge_runtime.errors import BgeError

ENDING = ["SIGHUP", "SIGINT", "SIGTERM", "SIGALRM", "SIGUSR1", "SIGUSR2", "SIGXCPU"]


PRELUDE = f"""
import contextlib, os, signal, sys, time
from bge_runtime.cli.command_line import command_line

ENDING = {ENDING}
# As a shell leaves them; the tests may run under nohup.
for name in ENDING:
    default = signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL
    signal.signal(getattr(signal, name), default)
"""


def run_with_signals(body: str) -> subprocess.CompletedProcess[str]:
    """Run a program that sends itself signals, in a process that nobody else sends one."""
    code = PRELUDE + textwrap.dedent(body)
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=False, text=True, timeout=60
    )


@pytest.mark.parametrize("name", ENDING)
def test_a_signal_cleans_up_and_exits_with_the_status_of_a_shell(name: str):
    done = run_with_signals(f"""
        @command_line("test")
        def work():
            try:
                signal.raise_signal(signal.{name})
            finally:
                # A terminal that is closed sends SIGHUP twice; it does not end the cleaning up.
                signal.raise_signal(signal.{name})
                signal.raise_signal(signal.SIGTERM)
                print("cleaned")

        try:
            work()
        finally:
            signal.raise_signal(signal.{name})  # while the interpreter ends
            print("ends")
    """)
    assert (done.returncode, done.stderr) == (128 + getattr(signal, name), "")
    assert done.stdout.split() == ["cleaned", "ends"]


@pytest.mark.parametrize("error", ["", "raise ValueError"])
def test_signal_handlers_are_restored_after_a_command(error: str):
    done = run_with_signals(f"""
        before = [signal.getsignal(getattr(signal, name)) for name in ENDING]
        with contextlib.suppress(ValueError), command_line("test"):
            {error or "pass"}
        assert [signal.getsignal(getattr(signal, name)) for name in ENDING] == before
    """)
    assert done.returncode == 0, done.stderr


def test_a_signal_some_time_after_another_counts():
    done = run_with_signals("""
        now = 0.0
        time.monotonic = lambda: now

        @command_line("test")
        def work():
            global now
            with contextlib.suppress(SystemExit):  # lost, as in a destructor
                signal.raise_signal(signal.SIGTERM)
            for _ in range(10):  # by somebody who has no patience
                now += 1.0
                signal.raise_signal(signal.SIGTERM)
            print("the second one was not heard")

        work()
    """)
    assert (done.returncode, done.stdout) == (128 + signal.SIGTERM, "")


def test_signals_that_nohup_ignores_stay_ignored():
    done = run_with_signals("""
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with command_line("test"):
            signal.raise_signal(signal.SIGHUP)
    """)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (BgeError("no such thing"), "test: no such thing"),
        (OSError(5, "Input/output error", "x"), "test: [Errno 5] Input/output error: 'x'"),
    ],
)
def test_an_error_is_one_sentence(
    error: Exception, message: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as ended, command_line("test"):
        raise error
    assert ended.value.code == 1
    assert capsys.readouterr().err.splitlines() == [message]


def run(body: str, redirections: str) -> subprocess.CompletedProcess[bytes]:
    """Run the body of a command, below a shell."""
    code = f"""
import os, sys
from bge_runtime.cli.command_line import command_line
with command_line("test"):
{body}
"""
    command = f"exec {shlex.join([sys.executable, '-c', code])} {redirections}"
    return subprocess.run(["sh", "-c", command], capture_output=True, check=False, timeout=60)


def test_opened_files_do_not_get_the_descriptors_of_closed_standard_streams(tmp_path: Path):
    """Else what a library prints goes into the result."""
    done = run(
        f"""
    file = open({str(tmp_path / "file")!r}, "wb", buffering=0)
    for descriptor in (1, 2):
        try:
            os.write(descriptor, b"from a library")
        except OSError:
            pass
    print("from Python", file=sys.stderr)
    print("progress")
    file.write(b"result")
""",
        "<&- >&- 2>&-",
    )
    assert done.returncode == 0
    assert (tmp_path / "file").read_bytes() == b"result"


def test_a_command_goes_on_if_standard_error_cannot_be_written(tmp_path: Path):
    done = run(
        """
    print("a message", file=sys.stderr, flush=True)
    from tqdm import tqdm
    list(tqdm(range(3)))
    print("result")
""",
        "2>/dev/full",
    )
    assert (done.returncode, done.stdout) == (0, b"result\n")


@pytest.mark.parametrize(
    ("redirection", "status", "stderr"),
    [
        (">/dev/full", 1, "test: [Errno 28] No space left on device\n"),
        ("| true", 0, ""),  # of the last one of a pipeline; nothing is said
    ],
)
def test_standard_output_that_cannot_be_written_is_no_traceback(
    redirection: str, status: int, stderr: str
):
    done = run("    print('result ' * 100_000)", redirection)
    assert (done.returncode, done.stderr.decode()) == (status, stderr)


def test_a_closed_pipe_exits_with_the_status_of_sigpipe():
    read, write = os.pipe()
    os.close(read)
    code = (
        "from bge_runtime.cli.command_line import command_line\n"
        "with command_line('test'): print('result')"
    )
    with open(write, "wb") as stdout:
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=stdout, stderr=subprocess.PIPE, check=False,
            timeout=60,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (141, b"")
