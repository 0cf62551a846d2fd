"""A job shows how far it is, on a terminal and elsewhere."""

from __future__ import annotations

import io
import logging
import sys
import threading

import pytest

from bge_runtime.bulk import progress as module
from bge_runtime.bulk.progress import Progress, show_reading


class Clock:
    now_s = 1000.0

    def monotonic(self):
        return self.now_s


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def no_terminal(monkeypatch):
    monkeypatch.setattr(module, "on_terminal", lambda: False)


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.INFO, "bge_runtime.bulk")
    return caplog


def test_without_a_terminal_a_line_a_minute_is_logged(clock, no_terminal, lines, capsys):
    with Progress(10_000, initial=2000) as progress:
        for _ in range(8):
            clock.now_s += 20
            progress.update(rows=500, texts=450, tokens=45_000)
    assert [record.levelname for record in lines.records] == ["INFO", "INFO"]
    assert lines.messages == [
        "3,500 of 10,000 rows (35 %), 22 texts/s, 2,250 tokens/s, 0:04:20 left",
        "5,000 of 10,000 rows (50 %), 22 texts/s, 2,250 tokens/s, 0:03:20 left",
    ]
    assert capsys.readouterr() == ("", "")


def test_the_last_row_makes_it_100_percent(clock, no_terminal, lines):
    with Progress(1000) as progress:
        clock.now_s += 86_400
        progress.update(rows=999, texts=999, tokens=9)
        clock.now_s += 86_400
        progress.update(rows=1, texts=1, tokens=9)
    assert lines.messages[0].startswith("999 of 1,000 rows (99 %), 0.0 texts/s, 0.0 tokens/s")
    assert lines.messages[1].startswith("1,000 of 1,000 rows (100 %)")


@pytest.mark.parametrize("terminal", [True, False])
def test_nothing_is_shown_if_that_is_asked_for(clock, monkeypatch, lines, capsys, terminal):
    monkeypatch.setattr(module, "on_terminal", lambda: terminal)
    with Progress(10, show=False) as progress:
        clock.now_s += 1000
        progress.update(rows=5, texts=5, tokens=5)
    assert not lines.records
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("show", [None, True])
def test_a_terminal_gets_a_bar_with_the_rows_of_earlier_runs(monkeypatch, lines, show):
    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(module, "on_terminal", lambda: show is None)
    with Progress(1000, initial=250, show=show) as progress:
        progress.update(rows=250, texts=200, tokens=9000)
    assert "250/1,000 rows" in terminal.getvalue()
    last = terminal.getvalue().rstrip().rpartition("\r")[2]
    assert " 50%|" in last
    assert "500/1,000 rows" in last
    assert " texts/s, " in last
    assert " tokens/s]" in last
    assert not lines.records


def test_threads_lose_no_row(no_terminal):
    progress = Progress(4000)

    def work():
        for _ in range(1000):
            progress.update(rows=1, texts=1, tokens=2)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert (progress._rows, progress._texts, progress._tokens) == (4000, 4000, 8000)


class TestReading:
    """What is read before the first row is embedded, if it is much."""

    @pytest.mark.parametrize("show", [None, True])
    def test_a_terminal_gets_a_bar(self, monkeypatch, show):
        terminal = io.StringIO()
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setattr(module, "on_terminal", lambda: show is None)
        with show_reading(2 * 10**9, show=show) as on_bytes:
            on_bytes(10**9)
        assert "reading:  50%" in terminal.getvalue()

    def test_elsewhere_one_line_is_logged(self, no_terminal, lines, capsys):
        with show_reading(2 * 10**9, show=None) as on_bytes:
            on_bytes(10**9)
        assert lines.messages == ["reading 2.0 GB to count rows and hash files"]
        assert capsys.readouterr() == ("", "")

    @pytest.mark.parametrize(("size", "show"), [(10**6, None), (10**6, True), (10**12, False)])
    def test_nothing_is_shown_if_it_is_little_or_not_asked_for(
        self, monkeypatch, lines, capsys, size, show
    ):
        monkeypatch.setattr(module, "on_terminal", lambda: True)
        with show_reading(size, show=show) as on_bytes:
            on_bytes(size)
        assert not lines.records
        assert capsys.readouterr() == ("", "")
