"""Notice that the raylet of a local Ray died, before Ray does.

Ray's health checks take some 15 seconds, and then its C++ side often ends this process without a word: the object
store died with the raylet, and whoever touches it next is terminated. So a thread waits for the process itself. Which
process that is, only a private API of Ray says (2.60); ``tests/data/test_killed_prepare.py`` kills one.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType

from pipeline.errors import WorkFailed

DIED = "Ray's own process on this machine, the raylet, died"
GO_ON = "What is finished is kept: run the same command to go on"


def watch() -> None:
    """Raise a WorkFailed in the main thread as soon as the raylet of the Ray that this process started ends.

    Called from another thread it does nothing: only the main thread can be interrupted. (By SIGUSR2; Ray Tune takes
    SIGUSR1 for itself.)
    """
    from ray._private import worker

    started = getattr(worker._global_node, "all_processes", {}).get("raylet")
    if not started or threading.current_thread() is not threading.main_thread():
        return
    process = started[0].process

    def wait() -> None:
        process.wait()
        if worker.is_initialized():  # else it was ended by ``ray.shutdown``, which disconnects first
            os.kill(os.getpid(), signal.SIGUSR2)

    def stop(number: int, frame: FrameType | None) -> None:
        _hush()
        raise WorkFailed(f"{DIED}. {GO_ON}")

    signal.signal(signal.SIGUSR2, stop)
    threading.Thread(target=wait, name="raylet-watch", daemon=True).start()


def _hush() -> None:
    """Let Python alone write to stderr: Ray's C++ side has nothing to add to the one sentence but its own symptoms."""
    try:
        keep, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)
        sys.stderr = open(keep, "w", buffering=1, encoding="utf-8", errors="replace")  # noqa: SIM115
    except OSError:  # stderr is closed: then nobody listens
        pass
