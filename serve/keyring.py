"""The API keys of a running server, which follow their file: keys come and go without a restart."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable

from pipeline.storage import Place
from serve.keys import read

LOOK_S = 1.0
LOOK_REMOTE_S = 10.0  # each look at an object store is a request that costs money
WAIT_S = 1.0  # for a look; a store that is slower leaves the keys as they were

log = logging.getLogger("ray.serve")


class KeyRing:
    """The keys of a file, and the changes that are made to it while the server runs.

    ``keys`` is what held at the last look. Whoever needs it awaits ``look`` first where ``due``: a look takes place in
    a thread, all that wait share it, and none waits longer than ``WAIT_S``. A file that is damaged or gone leaves the
    last good keys, and the log says so once. Made for one event loop.

    Raises:
        UserError: the file cannot be read now. Without any keys nobody could be let in, or everybody would be.
    """

    def __init__(self, place: Place, clock: Callable[[], float] = time.monotonic) -> None:
        self._place = place
        self._clock = clock
        self._every = LOOK_S if place.is_local else LOOK_REMOTE_S
        self._seen = _identity(place)
        self.keys = read(place)
        self._looked = clock()
        self._look: asyncio.Task[None] | None = None
        self._said = ""

    @property
    def due(self) -> bool:
        """Whether it is time for another look, or one is under way."""
        return self._look is not None or self._clock() - self._looked >= self._every

    async def look(self) -> None:
        """See whether the file has changed."""
        if self._look is None:
            self._looked = self._clock()
            self._look = asyncio.create_task(asyncio.to_thread(self._follow))
            self._look.add_done_callback(self._over)
        await asyncio.wait({self._look}, timeout=max(0.0, self._looked + WAIT_S - self._clock()))

    def _over(self, _: asyncio.Task[None]) -> None:
        self._look = None
        self._looked = self._clock()

    def _follow(self) -> None:
        try:
            identity = _identity(self._place)  # before reading: a change in between is then seen at the next look
            if identity is None or identity != self._seen:
                found = read(self._place)
                if found != self.keys:
                    log.info("serve.keys: %d keys from now on", len(found))
                self.keys, self._seen = found, identity
            self._said = ""
        except Exception as e:  # whatever it is: those who hold a key must not be locked out by it
            if str(e) != self._said:
                self._said = str(e)
                log.error("serve.keys: %s. The %d keys known before go on to hold", e, len(self.keys))


def _identity(place: Place) -> tuple[int, ...] | None:
    """What changes with a local file; None for a remote one, and where there is none."""
    if not place.is_local:
        return None
    try:
        found = os.stat(place.uri)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
