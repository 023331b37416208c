"""The pictures of a report: SVG by matplotlib, as ``data:`` addresses. They carry no text from the data."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

CURVE_POINTS = 400  # a longer loss curve is drawn as means of equal stretches

INK, RULE, BLUE, RED, PAPER = "#26231d", "#d9d4c7", "#2c5572", "#96372b", "#fffdf8"
STYLE: dict[Any, Any] = (
    dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK)
    | dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False)
    | {"axes.grid": True, "axes.grid.axis": "y", "axes.axisbelow": True, "grid.color": RULE}
    | {"grid.linewidth": 0.5, "axes.linewidth": 0.6, "font.family": "DejaVu Sans", "font.size": 9}
    | {"svg.fonttype": "path", "svg.hashsalt": "broadsheet"}  # same input, same bytes
)

Points = list[tuple[float, float]]


def curves(history: Sequence[Mapping[str, Any]], loss_curve: Sequence[Sequence[float]]) -> list[dict[str, str]]:
    """Learning curves against the optimizer step: the loss, then what validation says."""

    def column(key: str) -> Points:
        return _finite((point.get("step"), point.get(key)) for point in history)

    stretch = math.ceil(len(loss_curve) / CURVE_POINTS) or 1
    note = f"; each training point is the mean of {stretch} records" if stretch > 1 else ""
    losses = {
        "training": (_means(_finite(loss_curve), stretch) or column("loss"), BLUE, ""),
        "validation": (column("validation_loss"), RED, "o"),
    }
    scores = {
        "macro F1": (column("validation_macro_f1"), RED, "o"),
        "accuracy": (column("validation_accuracy"), BLUE, "s"),
    }
    pictures = (
        ("loss", losses, f"Loss in nats against the step{note}."),
        ("share", scores, "Validation: macro F1 and accuracy against the step."),
    )
    return [
        {"source": _lines(label, lines), "caption": caption}
        for label, lines, caption in pictures
        if any(points for points, _, _ in lines.values())
    ]


def _lines(label: str, lines: Mapping[str, tuple[Points, str, str]]) -> str:
    with matplotlib.rc_context(STYLE):
        figure, axes = canvas("step", label)
        for name, (points, colour, marker) in lines.items():
            if points:
                marker = marker or ("o" if len(points) == 1 else "")
                axes.plot(*zip(*points, strict=True), color=colour, marker=marker, ms=3.5, lw=1.2, label=name)
        axes.legend(loc="best", handlelength=1.6)
        return svg(figure)


def token_histogram(histogram: Mapping[str, Sequence[float]]) -> str | None:
    edges, counts = histogram.get("edges") or [], histogram.get("counts") or []
    if not counts or len(edges) != len(counts) + 1:
        return None
    with matplotlib.rc_context(STYLE):
        figure, axes = canvas("tokens per text", "rows")
        axes.stairs(counts, edges, fill=True, color=BLUE, alpha=0.85)
        return svg(figure)


def reliability(calibration: Mapping[str, Any]) -> str | None:
    """Accuracy against confidence by bin, before and after temperature scaling; on the diagonal the two are equal.

    Args:
        calibration: of ``calibration.report``.
    """
    lines = {name: (calibration.get(name) or {}).get("bins") or [] for name in ("before", "after")}
    if not lines["after"]:
        return None
    with matplotlib.rc_context(STYLE):
        figure, axes = canvas("confidence", "accuracy", height=3.4)
        axes.plot([0, 1], [0, 1], color=INK, lw=0.7, ls=(0, (4, 3)), label="as it should be")
        scaled = calibration["before"]["temperature"] != calibration["after"]["temperature"]
        styles = {
            "before": ("before scaling", RED, "s"),
            "after": ("after scaling" if scaled else "as trained", BLUE, "o"),
        }
        for name, (label, colour, marker) in styles.items():
            if name == "after" or scaled:
                bins = lines[name]
                most = max(b["rows"] for b in bins)
                sizes = [10 + 50 * b["rows"] / most for b in bins]
                x, y = [b["confidence"] for b in bins], [b["accuracy"] for b in bins]
                axes.plot(x, y, color=colour, lw=1.0)
                axes.scatter(x, y, sizes, color=colour, marker=marker, label=label, zorder=3, alpha=0.85)
        axes.set(xlim=(0, 1.02), ylim=(0, 1.04))
        axes.legend(loc="upper left", handlelength=1.6, markerscale=0.7)
        return svg(figure)


def canvas(x: str, y: str, height: float = 2.8) -> tuple[Figure, Axes]:
    """An empty picture with the names of its axes; ``height`` in inches."""
    figure = Figure(figsize=(4.6, height), layout="constrained", facecolor=PAPER)  # inches
    axes = figure.add_subplot(facecolor=PAPER, xlabel=x, ylabel=y)
    return figure, axes


def svg(figure: Figure) -> str:
    """The figure as a ``data:`` address, so that ids of two pictures in one page cannot meet."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _finite(points: Iterable[Sequence[Any]]) -> Points:
    return [(x, y) for x, y in points if x is not None and y is not None and math.isfinite(y)]


def _means(points: Points, stretch: int) -> Points:
    """Means of ``stretch`` neighbours."""
    parts = [points[i : i + stretch] for i in range(0, len(points), stretch)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]
