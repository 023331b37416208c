"""The page a search leaves behind: what it found, what it cost, which keys mattered."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import matplotlib

from pipeline import config as configuration
from pipeline.config import Config
from pipeline.evaluate import pictures, report
from pipeline.storage import Place
from pipeline.train.store import SCORE
from tune.importance import importance, position
from tune.journal import Journal, Trial, best_of, shown
from tune.space import Space

TEMPLATE = Path(__file__).with_name("search.html")


def write(journal: Journal, space: Space, config: Config, folder: Place, whole: float) -> Place:
    """Write ``report/search.html`` of a search; returns it.

    Args:
        journal: of the search.
        space: its domains.
        config: as resolved.
        folder: of the search.
        whole: steps that all its trials would have taken to their ends.
    """
    search, finals = journal.of("search"), journal.of("final")
    best = best_of(search)
    spent = sum(t.steps for t in search)
    page = {
        "title": f"Search over {config.model.name}",
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "verdict": journal.facts.get("verdict"),
        "comparison": journal.facts.get("comparison"),
        "looked": journal.facts.get("looked_at_test", 0),
        "spent": journal.facts.get("spent"),
        "seconds": float(journal.facts.get("seconds", 0.0)),
        "steps": spent,
        "final_steps": sum(t.steps for t in finals),
        "share": spent / whole if whole else None,
        "best": best.row() if best else None,
        "keys": list(space),
        "trials": [_row(t, space) for t in sorted(search, key=lambda t: (t.best is None, -(t.best or 0), t.trial))],
        "finals": [_row(t, space) for t in finals],
        "importance": importance(search, space, config.seed),
        "curves": curves(search, best),
        "coordinates": coordinates(search, space, best),
        "domains": [{"key": k, "kind": d.kind, "values": [shown(v) for v in d.values]} for k, d in space.items()],
        "config": configuration.dump(config),
        "serve_command": f"broadsheet serve {folder}/best",
    }
    file = folder / "report" / "search.html"  # beside the page of an evaluation
    file.write_text(report.rendered(TEMPLATE, page))
    return file


def _row(trial: Trial, space: Space) -> dict[str, Any]:
    return {**trial.row(), "values": [shown(trial.point.get(key)) for key in space]}


def curves(trials: Sequence[Trial], best: Trial | None) -> str | None:
    """Validation macro F1 of each trial against its step; the best is drawn bold, the default recipe dashed."""
    drawn = [t for t in trials if t.history]
    if not drawn:
        return None
    with matplotlib.rc_context(pictures.STYLE):
        figure, axes = pictures.canvas("step", "validation macro F1", height=3.4)
        for trial in drawn:
            style: dict[str, Any] = {"color": pictures.INK, "lw": 0.7, "alpha": 0.45}
            if trial.trial == 1:
                style |= {"ls": (0, (4, 3)), "alpha": 1.0, "lw": 1.2, "label": "default recipe"}
            if best is not None and trial.trial == best.trial:
                style |= {"color": pictures.RED, "lw": 1.8, "alpha": 1.0, "label": f"best: trial {trial.trial}"}
            x, y = [e["step"] for e in trial.history], [e[SCORE] for e in trial.history]
            axes.plot(x, y, marker="o", ms=3, **style)
        axes.legend(loc="lower right", handlelength=2.2)
        return pictures.svg(figure)


def coordinates(trials: Sequence[Trial], space: Space, best: Trial | None) -> str | None:
    """Parallel coordinates: a line per trial through its values, each axis from one end of the domain to the other."""
    drawn = sorted((t for t in trials if t.best is not None), key=lambda t: t.best or 0.0)
    if len(drawn) < 2:
        return None
    scores = [float(t.best or 0.0) for t in drawn]
    low, high = min(scores), max(scores)
    names = [f"{i + 1}" for i in range(len(space))] + ["macro F1"]
    with matplotlib.rc_context({**pictures.STYLE, "axes.grid": False}):
        figure, axes = pictures.canvas("", "", height=3.4)
        for trial, score in zip(drawn, scores, strict=True):
            height = (score - low) / (high - low) if high > low else 0.5
            y = [position(trial.point.get(k), d) for k, d in space.items()] + [height]
            is_best = best is not None and trial.trial == best.trial
            colour, width, alpha = (pictures.RED, 2.0, 1.0) if is_best else (pictures.BLUE, 0.9, 0.2 + 0.6 * height)
            axes.plot(range(len(y)), y, color=colour, lw=width, alpha=alpha)
        for x in range(len(names)):
            axes.axvline(x, color=pictures.INK, lw=0.6)
        for x, domain in enumerate(space.values()):
            ends = (domain.values[0], domain.values[-1])
            for end, at, align in ((ends[0], -0.04, "top"), (ends[1], 1.04, "bottom")):
                if isinstance(end, (int, float)):  # other values may be of a script that the font lacks
                    axes.text(x, at, shown(end), ha="center", va=align, fontsize=7)
        axes.text(len(space), -0.04, f"{low:.4f}", ha="center", va="top", fontsize=7)
        axes.text(len(space), 1.04, f"{high:.4f}", ha="center", va="bottom", fontsize=7)
        axes.set(xticks=range(len(names)), xticklabels=names, yticks=[], ylim=(-0.16, 1.16))
        axes.tick_params(length=0)
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)
        return pictures.svg(figure)
