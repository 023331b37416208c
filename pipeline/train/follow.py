"""Show a person how training goes, by what rank 0 tells."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from pipeline import cluster, console, gauges
from pipeline.train.layout import Layout

SILENCE_SECONDS = 120.0  # without a word from the workers, and a person is told


def follow(queue: Any, layout: Layout, run: str) -> None:
    """Print and count events until the last one.

    Args:
        queue: of Ray, into which ``worker.fit`` tells.
        layout: as planned; there may be fewer workers for a while.
        run: its name, for the gauges.
    """
    from ray.util.queue import Empty

    progress: console.Bar | None = None
    first, last = 0.0, layout.workers
    while True:
        try:
            event = queue.get(timeout=SILENCE_SECONDS)
        except Empty:
            have, silence = cluster.resources().line(), console.seconds(SILENCE_SECONDS)
            console.warn("train", f"no word from the workers for {silence}: waiting; {layout.arithmetic()} are "
                         f"planned, the cluster has {have}")  # fmt: skip
            continue
        except Exception:  # the queue went away with its cluster: nothing left to show
            break
        if event["kind"] == "start":
            if progress is not None:
                progress.close()
                changed = f" with {event['workers']} of {layout.workers} workers" if event["workers"] != last else ""
                why = "there is room for more workers" if event["workers"] > last else "a worker was lost"
                console.warn("train", f"{why}: resuming{changed} from step {event['step']:,}")
            elif event["step"]:
                console.say("train", f"resuming an unfinished training from step {event['step']:,}")
            now = replace(layout, workers=event["workers"])
            console.say("train", f"{now.arithmetic()}, {event['device']}, {event['precision']}, "
                        f"{event['rows']:,} rows, {event['steps']:,} steps")  # fmt: skip
            progress = console.Bar("train", "steps", event["steps"])
            first, last = time.monotonic(), event["workers"]
        elif event["kind"] == "damaged":
            console.warn("train", f"{event['checkpoint']} is damaged ({event['why']}): taking the one before it")
        elif event["kind"] == "leaving":
            nodes = "a node" if event["nodes"] == 1 else f"{event['nodes']} nodes"
            console.warn("train", f"{nodes} will be taken away: step {event['step']:,} is kept as a checkpoint first")
        elif event["kind"] == "step" and progress is not None:
            rate = event["samples"] / max(1e-9, time.monotonic() - first)
            progress.update(event["step"], f"{rate:.0f} rows/s")
        elif event["kind"] == "evaluation":
            for figure in ("loss", "validation_loss", "validation_accuracy", "validation_macro_f1"):
                gauges.show(gauges.SCORE, event[figure], run=run, stage="train", figure=figure)
            console.say("train", f"step {event['step']:,} (epoch {event['epoch']:.2f}): loss {event['loss']:.4f}, "
                        f"validation accuracy {event['validation_accuracy']:.4f}, "
                        f"macro F1 {event['validation_macro_f1']:.4f}")  # fmt: skip
        elif event["kind"] == "end":
            break
    if progress is not None:
        progress.close()
