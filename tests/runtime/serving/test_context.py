"""How long a request waits: until its result, its deadline, or its client's end."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from bge_runtime.serving import context as context_module
from bge_runtime.serving.context import ClientLeftError, RequestContext
from bge_runtime.serving.errors import Kind, RequestError


@pytest.fixture(autouse=True)
def watch_soon(monkeypatch):
    monkeypatch.setattr(context_module, "_WATCH_AFTER_S", 0.02)


class Client:
    """What a server receives of a client that has sent all of its request."""

    def __init__(self):
        self.left = asyncio.Event()
        self.received = 0

    async def receive(self):
        self.received += 1
        if self.received == 1:
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}


def run(scenario):
    async def all_of_it():
        await scenario()
        await asyncio.sleep(0.01)
        assert len(asyncio.all_tasks()) == 1, "a task is left"

    asyncio.run(all_of_it())


def make(client, timeout_s=10.0):
    return RequestContext("id", "/route", client.receive, timeout_s=timeout_s)


def test_a_result_at_once_takes_no_task():
    async def scenario():
        client = Client()
        result = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(result.set_result, None)
        await make(client).wait(result)
        assert not client.received

    run(scenario)


def test_a_result_later_is_waited_for():
    async def scenario():
        client = Client()
        result = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(0.1, result.set_result, None)
        await make(client).wait(result)
        assert client.received == 2

    run(scenario)


@pytest.mark.parametrize("timeout_s", [0.0, 0.01, 0.1])
def test_the_deadline_ends_it(timeout_s):
    async def scenario():
        result = asyncio.get_running_loop().create_future()
        context = make(Client(), timeout_s)
        started_s = time.monotonic()
        with pytest.raises(RequestError, match="no answer within") as error:
            await context.wait(result)
        assert error.value.kind is Kind.DEADLINE
        assert timeout_s <= time.monotonic() - started_s < timeout_s + 1
        with pytest.raises(RequestError):
            context.check()

    run(scenario)


def test_a_client_that_leaves_ends_it():
    async def scenario():
        client = Client()
        result = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(0.05, client.left.set)
        with pytest.raises(ClientLeftError):
            await make(client).wait(result)

    run(scenario)


def test_a_client_that_has_left_already_ends_it():
    async def scenario():
        client = Client()
        client.left.set()
        with pytest.raises(ClientLeftError):
            await make(client).wait(asyncio.get_running_loop().create_future())

    run(scenario)


def test_a_result_and_an_end_at_the_same_time_are_one_of_them():
    async def scenario():
        loop = asyncio.get_running_loop()
        for _ in range(20):
            client, result = Client(), loop.create_future()
            client.received = 1
            loop.call_later(0.021, client.left.set)
            loop.call_later(0.021, lambda result=result: result.done() or result.set_result(None))
            with contextlib.suppress(ClientLeftError, RequestError):
                await make(client, 0.0215).wait(result)

    run(scenario)


def test_a_request_that_is_cancelled_leaves_nothing_behind():
    async def scenario():
        result = asyncio.get_running_loop().create_future()
        waiting = asyncio.create_task(make(Client()).wait(result))
        await asyncio.sleep(0.05)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    run(scenario)


@pytest.fixture
def executor():
    with ThreadPoolExecutor(1) as executor:
        yield executor


def test_a_call_in_a_thread_returns_or_raises(executor):
    class PanicError(BaseException):
        """As a panic of Rust: no Exception."""

    def fail(error):
        raise error

    async def scenario():
        assert await make(Client()).run(executor, lambda: 5) == 5
        with pytest.raises(ZeroDivisionError):
            await make(Client()).run(executor, lambda: fail(ZeroDivisionError()))
        with pytest.raises(RuntimeError, match="PanicError"):
            await make(Client()).run(executor, lambda: fail(PanicError()))
        assert await make(Client()).run(executor, lambda: 6) == 6

    run(scenario)


def test_a_call_that_nobody_waits_for_any_more_is_left_out(executor):
    async def scenario():
        called, go_on = [], threading.Event()
        executor.submit(go_on.wait, 10)
        client = Client()
        asyncio.get_running_loop().call_later(0.05, client.left.set)
        with pytest.raises(ClientLeftError):
            await make(client).run(executor, lambda: called.append(1))
        with pytest.raises(RequestError):
            await make(Client(), 0.05).run(executor, lambda: called.append(2))
        go_on.set()
        await make(Client()).run(executor, lambda: called.append(3))
        assert called == [3]

    run(scenario)
