"""What a search leaves behind: one row per trial, printed as a table and written as JSON lines."""

from __future__ import annotations

import json
from typing import Any

from pipeline import console
from pipeline.storage import Place

METRIC = "validation_macro_f1"


def best_of(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The trial with the highest validation macro F1; the earlier one of equals (the default recipe is first)."""
    good = [r for r in rows if r["best"] is not None]
    return max(good, key=lambda r: (r["best"], -r["trial"])) if good else None


def table(rows: list[dict[str, Any]]) -> tuple[tuple[str, ...], list[tuple[object, ...]]]:
    """Header and rows for a terminal, best trial first."""
    keys = [k.removeprefix("train.") for k in rows[0]["point"]] if rows else []
    ordered = sorted(rows, key=lambda r: (r["best"] is None, -(r["best"] or 0.0), r["trial"]))
    lines = [
        (
            f"{r['trial']}{' (default)' if r['trial'] == 1 else ''}",
            *(f"{v:g}" for v in r["point"].values()),
            len(r["history"]),
            "-" if r["best"] is None else f"{r['best']:.4f}",
            r["status"] if not r.get("error") else f"failed: {r['error'][:60]}",
        )
        for r in ordered
    ]
    return ("trial", *keys, "reports", "macro F1", "status"), lines


class Recorder:
    """Follows the trials of a search, on the driver.

    Args:
        points: the point of each trial.
        folder: the search's folder; ``trials.jsonl`` is written there.
        reports: how often a trial that is not stopped reports.
    """

    def __init__(self, points: list[dict[str, float]], folder: Place, reports: int) -> None:
        self._folder = folder
        self._reports = reports
        self.rows: list[dict[str, Any]] = [
            {"trial": i + 1, "point": p, "status": "not started", "best": None, "checkpoint": None, "history": [],
             "seconds": 0.0, "error": None}
            for i, p in enumerate(points)
        ]  # fmt: skip

    def reported(self, trial: int, result: dict[str, Any]) -> None:
        """Take in one report of a trial (0-based)."""
        row = self.rows[trial]
        names = ("step", "epoch", "loss", "validation_loss", "validation_accuracy", METRIC, "seconds")
        row["history"].append({k: result[k] for k in names if k in result})
        row["status"] = "running"
        row["seconds"] = float(result.get("seconds", 0.0))
        score = float(result[METRIC])
        if row["best"] is None or score > row["best"]:
            row["best"], row["checkpoint"] = score, result.get("checkpoint_path") or row["checkpoint"]
        best = best_of(self.rows)
        assert best is not None
        console.say("tune", f"trial {trial + 1}, report {len(row['history'])}: macro F1 {score:.4f} "
                    f"(best so far {best['best']:.4f}, trial {best['trial']})")  # fmt: skip

    def ended(self, trial: int, error: str | None = None) -> None:
        """Note how a trial ended, and free its disk unless it is the best so far."""
        row = self.rows[trial]
        row["error"] = error
        if error:
            row["status"] = "failed"
            console.warn("tune", f"trial {trial + 1} failed: {error}")
        else:
            row["status"] = "finished" if len(row["history"]) >= self._reports else "stopped early"
        self.write()
        best = best_of(self.rows)
        for other in self.rows:
            over = other["status"] in ("finished", "stopped early", "failed")
            if over and best is not None and other["trial"] != best["trial"]:
                (self._folder / "trials" / f"trial-{other['trial']:04d}").delete()

    def write(self) -> None:
        """Write ``trials.jsonl`` as it stands."""
        lines = [json.dumps(r, ensure_ascii=False) for r in self.rows]
        (self._folder / "trials.jsonl").write_text("\n".join(lines) + "\n")

    def finish(self) -> list[dict[str, Any]]:
        """All rows, written for the last time."""
        self.write()
        return self.rows

    def callback(self) -> Any:
        """The Tune callback that feeds this recorder."""
        from ray.tune import Callback

        recorder = self

        class Follow(Callback):
            def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **_: Any) -> None:
                if METRIC in result:
                    recorder.reported(int(trial.config["trial"]), result)

            def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
                recorder.ended(int(trial.config["trial"]))

            def on_trial_error(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
                text = str(trial.get_pickled_error() or "no reason given")
                lines = [line.strip() for line in text.splitlines() if line.strip()]
                recorder.ended(int(trial.config["trial"]), lines[-1][:300] if lines else "unknown")

        return Follow()
