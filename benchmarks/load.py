"""An open-loop load: requests leave at a given rate whatever becomes of those before them, as users do.

``wrk`` asks again when it was answered; a server that hangs is then asked less, and looks better than it is.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import aiohttp

PATIENCE_S = 60.0


@dataclass
class Answer:
    """What became of one request.

    Attributes:
        due: when it was to leave, seconds on the monotonic clock; latency counts from here, so that a request that left
            late because the server was slow is not a fast one (coordinated omission).
        ended: when it was answered or failed.
        outcome: the status, or the name of the error.
        version: the model that answered.
        label: the best label of the text.
    """

    due: float
    ended: float
    outcome: int | str
    version: str = ""
    label: str = ""

    @property
    def ok(self) -> bool:
        """Answered with 2xx."""
        return isinstance(self.outcome, int) and 200 <= self.outcome < 300

    @property
    def failed(self) -> bool:
        """Neither 2xx nor a refusal within policy (429)."""
        return not self.ok and self.outcome != 429


@dataclass
class Load:
    """All answers of a load, in the order in which they ended.

    Attributes:
        answers: of requests that are over.
        offered: requests that left per second; less than was wanted where this process could not make more.
    """

    answers: list[Answer] = field(default_factory=list)
    offered: float = 0.0

    @property
    def outcomes(self) -> dict[str, int]:
        """Requests by outcome."""
        return dict(sorted(Counter(str(a.outcome) for a in self.answers).items()))

    @property
    def failed(self) -> int:
        """Requests that failed."""
        return sum(a.failed for a in self.answers)

    def latency_ms(self, share: float) -> float | None:
        """A quantile of the latency of requests that were answered 2xx; None without any."""
        times = sorted(a.ended - a.due for a in self.answers if a.ok)
        return round(1_000 * times[min(len(times) - 1, int(share * len(times)))], 1) if times else None

    @property
    def goodput(self) -> float:
        """Requests answered 2xx per second, from the first one due to the last one due (or answered, if later)."""
        ok = [a for a in self.answers if a.ok]
        if not ok:
            return 0.0
        span = max(a.ended for a in ok) - min(a.due for a in self.answers)
        return round(len(ok) / span, 1)

    def recovery_s(self, faults: Sequence[float]) -> float:
        """The longest time from a fault to the end of the last failure between it and the next one; 0 without any."""
        ends = [*faults[1:], float("inf")][: len(faults)]
        return round(
            max(
                (a.ended - at for at, end in zip(faults, ends, strict=True) for a in self.answers
                 if a.failed and at <= a.ended < end),
                default=0.0,
            ),
            2,
        )  # fmt: skip


async def _ask(session: aiohttp.ClientSession, url: str, text: str, due: float, load: Load) -> None:
    version = label = ""
    try:
        async with session.post(url, json={"inputs": text, "top_k": 1}) as response:
            outcome: int | str = response.status
            version = response.headers.get("x-model-version", "")
            body = await response.json()
            if response.status == 200:
                label = body[0][0]["label"]
            elif response.status == 429 and "retry-after" not in response.headers:
                outcome = "429 without Retry-After"
            elif set(body) != {"error", "error_type"}:
                outcome = f"{response.status} of another shape"
    except (aiohttp.ClientError, asyncio.TimeoutError, ValueError, OSError) as e:
        outcome = type(e).__name__
    load.answers.append(Answer(due, time.monotonic(), outcome, version, label))


async def steady(url: str, texts: Sequence[str], rate: float, count: int, load: Load) -> None:
    """Send ``count`` requests of one text each, ``rate`` a second, and wait for all answers.

    Args:
        url: that classifies.
        texts: taken in turn, again and again.
        rate: requests per second.
        count: requests in all.
        load: takes the answers while they come.
    """
    timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        began = time.monotonic()
        waiting: set[asyncio.Task[None]] = set()
        for i, text in zip(range(count), itertools.cycle(texts), strict=False):
            due = began + i / rate
            if (pause := due - time.monotonic()) > 0:
                await asyncio.sleep(pause)
            task = asyncio.create_task(_ask(session, url, text, due, load))
            waiting.add(task)
            task.add_done_callback(waiting.discard)
            load.offered = round((i + 1) / max(1e-9, time.monotonic() - began), 1)
        while waiting:
            await asyncio.wait(waiting)


async def closed(url: str, texts: Sequence[str], clients: int, seconds: float) -> float:
    """Requests answered per second while each of ``clients`` asks again as soon as it was answered."""
    load = Load()
    end = time.monotonic() + seconds

    async def client(session: aiohttp.ClientSession, first: int) -> None:
        for i in itertools.count(first, clients):
            if time.monotonic() >= end:
                return
            await _ask(session, url, texts[i % len(texts)], time.monotonic(), load)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(client(session, i) for i in range(clients)))
    return load.goodput
