"""The model thread and the asyncio side around it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable

import numpy as np
import pytest
from serve_fakes import FakeEngine

from pipeline.config import ServeConfig
from serve.batcher import DeadlinePassed, QueueFull
from serve.service import Service
from serve.worker import CALLS, Batcher, ModelFailed, NotReady


def ids(*words: int) -> list[np.ndarray]:
    return [np.full(n, 3, np.int32) for n in words]


def run(engine: FakeEngine, body: Callable[[Batcher], Awaitable[None]], **settings: float) -> None:
    async def inside() -> None:
        options = {"batch_tokens": 64, "max_queue": 100, "timeout_s": 20.0} | settings
        batcher = Batcher(engine.logits, **options)
        batcher.start()
        try:
            await body(batcher)
        finally:
            engine.gate.set()
            batcher.stop()

    asyncio.run(inside())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def test_rows_come_back_in_the_order_of_the_texts() -> None:
    engine = FakeEngine()
    texts = ["world", "one two three sport", "a science", "business", "b c d e f g h science"]

    async def body(batcher: Batcher) -> None:
        answer = await batcher.submit(engine.encode(texts).ids)
        assert answer.rows.argmax(1).tolist() == [3, 2, 1, 0, 1]
        assert answer.inference_s >= 0
        assert answer.queue_s >= 0

    run(engine, body)
    assert engine.threads == {"model"}


def test_requests_that_wait_share_a_batch() -> None:
    engine = FakeEngine()
    engine.gate.clear()

    async def body(batcher: Batcher) -> None:
        first = asyncio.create_task(batcher.submit(ids(2)))
        await until(lambda: engine.entered == 1)  # the model has it and is held up
        others = [asyncio.create_task(batcher.submit(ids(3))) for _ in range(8)]
        await until(lambda: batcher.waiting == 8)
        engine.gate.set()
        await asyncio.gather(first, *others)

    run(engine, body)
    assert engine.batches == [[2], [3] * 8]


def test_a_cancelled_request_does_not_stop_the_thread() -> None:
    """Once a hand-written loop died of a result set on a cancelled future."""
    engine = FakeEngine()
    engine.gate.clear()

    async def body(batcher: Batcher) -> None:
        running = asyncio.create_task(batcher.submit(ids(2)))
        await until(lambda: engine.entered == 1)
        queued = asyncio.create_task(batcher.submit(ids(5)))
        await until(lambda: batcher.waiting == 1)
        running.cancel()
        queued.cancel()
        await asyncio.gather(running, queued, return_exceptions=True)
        engine.gate.set()
        answer = await batcher.submit(ids(1))
        assert answer.rows.shape == (1, 4)
        assert batcher.alive

    run(engine, body)
    assert engine.batches == [[2], [1]]  # the one that was still queued never ran


def test_a_failing_batch_fails_only_its_own_texts() -> None:
    engine = FakeEngine()
    engine.gate.clear()

    async def body(batcher: Batcher) -> None:
        first = asyncio.create_task(batcher.submit(ids(2)))
        await until(lambda: engine.entered == 1)
        bad = asyncio.create_task(batcher.submit([np.array([2, 2], np.int32)]))
        long = asyncio.create_task(batcher.submit(ids(60)))
        await until(lambda: batcher.waiting == 2)
        engine.gate.set()
        good, failed, also_good = await asyncio.gather(first, bad, long, return_exceptions=True)
        assert isinstance(failed, ModelFailed)
        assert "sport twice" in str(failed)
        assert not isinstance(good, BaseException)
        assert not isinstance(also_good, BaseException)

    run(engine, body)


def test_a_model_that_loses_rows_is_an_error() -> None:
    async def inside() -> None:
        batcher = Batcher(lambda x: np.zeros((1, 2)), batch_tokens=64, max_queue=9, timeout_s=20)
        batcher.start()
        with pytest.raises(ModelFailed, match="3 texts went in, 1 rows came out"):
            await batcher.submit(ids(1, 1, 1))
        batcher.stop()

    asyncio.run(inside())


def test_a_full_queue_refuses_and_recovers() -> None:
    engine = FakeEngine()
    engine.gate.clear()

    async def body(batcher: Batcher) -> None:
        first = asyncio.create_task(batcher.submit(ids(2)))
        await until(lambda: engine.entered == 1)
        second = asyncio.create_task(batcher.submit(ids(1, 1, 1)))
        await until(lambda: batcher.waiting == 3)
        with pytest.raises(QueueFull):
            await batcher.submit(ids(1, 1))
        engine.gate.set()
        await asyncio.gather(first, second)
        await batcher.submit(ids(1, 1, 1, 1))

    run(engine, body, max_queue=4)


def test_a_text_that_waits_too_long_is_given_up() -> None:
    engine = FakeEngine()
    engine.gate.clear()

    async def body(batcher: Batcher) -> None:
        with pytest.raises(DeadlinePassed):
            await batcher.submit(ids(2))
        engine.gate.set()
        await until(lambda: len(engine.batches) == 1)
        assert batcher.alive

    run(engine, body, timeout_s=0.05)


def test_stopping_fails_what_waits() -> None:
    engine = FakeEngine()
    engine.gate.clear()

    async def body(batcher: Batcher) -> None:
        first = asyncio.create_task(batcher.submit(ids(2)))
        await until(lambda: engine.entered == 1)
        second = asyncio.create_task(batcher.submit(ids(2)))
        await until(lambda: batcher.waiting == 1)
        engine.gate.set()
        batcher.stop()
        results = await asyncio.gather(first, second, return_exceptions=True)
        assert isinstance(results[1], (NotReady, tuple))
        with pytest.raises(NotReady):
            await batcher.submit(ids(1))

    run(engine, body)


def test_a_call_runs_between_batches_in_the_models_thread() -> None:
    engine = FakeEngine()
    engine.gate.clear()
    done: list[str] = []

    def work() -> str:
        done.append(threading.current_thread().name)
        return f"after {len(engine.batches)}"

    async def body(batcher: Batcher) -> None:
        soon = time.monotonic() + 20
        first = asyncio.create_task(batcher.submit(ids(2)))
        await until(lambda: engine.entered == 1)
        call = asyncio.create_task(batcher.call(work, soon))
        gone = asyncio.create_task(batcher.call(work, soon))
        second = asyncio.create_task(batcher.submit(ids(3)))
        await until(lambda: batcher.waiting == 1)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        engine.gate.set()
        await asyncio.gather(first, second)
        assert await call == "after 1"

    run(engine, body)
    assert done == ["model"]  # the call that was given up never ran


def test_calls_are_bounded_and_have_a_deadline() -> None:
    engine = FakeEngine()
    engine.gate.clear()

    async def body(batcher: Batcher) -> None:
        soon = time.monotonic() + 20
        first = asyncio.create_task(batcher.submit(ids(2)))
        await until(lambda: engine.entered == 1)
        with pytest.raises(DeadlinePassed):
            await batcher.call(int, time.monotonic() + 0.05)
        calls = [asyncio.create_task(batcher.call(int, soon)) for _ in range(CALLS)]
        await until(lambda: len(batcher._calls) == CALLS)  # the one that was given up has made room
        with pytest.raises(QueueFull):
            await batcher.call(int, soon)
        engine.gate.set()
        batcher.stop()
        results = await asyncio.gather(first, *calls, return_exceptions=True)
        assert all(r == 0 or isinstance(r, NotReady) for r in results[1:])
        with pytest.raises(NotReady):
            await batcher.call(int, soon)

    run(engine, body)


def test_room_is_given_back_when_tokenizing_fails() -> None:
    engine = FakeEngine()

    async def inside() -> None:
        service = Service(engine, ServeConfig(batch_tokens=64, max_queue=2, timeout_s=20))
        await service.start()
        plain, engine.encode = engine.encode, None  # type: ignore[method-assign,assignment]
        for _ in range(5):
            with pytest.raises(TypeError):
                await service.classify(["a", "b"])
        engine.encode = plain  # type: ignore[method-assign]
        result = await service.classify(["a sport", "b " * 3000])  # the second goes through the thread
        assert result.probabilities.argmax(1).tolist() == [2, 0]
        assert result.truncated == 1
        service.stop()
        assert not service.ready

    asyncio.run(inside())
