"""How often each client may ask: a token bucket per client, in bounded memory."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable

CLIENTS = 10_000
ROUNDING = 1e-9


class RateLimit:
    """Token buckets. A bucket holds one second's worth, and at least one request, and is full at first.

    The client that was away longest is forgotten for a new one beyond ``CLIENTS``: its bucket is the likeliest to be
    full, and a full one is what it gets when it comes back.

    Args:
        rate: requests per second of each client.
        clients: how many are remembered.
        clock: seconds.
    """

    def __init__(self, rate: float, clients: int = CLIENTS, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate = rate
        self.burst = max(1.0, rate)
        self._most = clients
        self._clock = clock
        self._buckets: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()  # tokens, and when there were so many

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, client: Hashable) -> float:
        """Let a request in, or say how long to wait.

        Returns:
            0 for a request that may pass; else the seconds after which one may. Asking costs nothing then.
        """
        now = self._clock()
        tokens, at = self._buckets.pop(client, (self.burst, now))
        tokens = min(self.burst, tokens + (now - at) * self.rate)
        admitted = tokens >= 1 - ROUNDING
        self._buckets[client] = (tokens - 1 if admitted else tokens, now)
        if len(self._buckets) > self._most:
            self._buckets.popitem(last=False)
        return 0.0 if admitted else (1 - tokens) / self.rate
