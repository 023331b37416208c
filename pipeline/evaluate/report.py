"""The page a run leaves behind: one self-contained HTML file, readable by day, by night and on a phone.

Curves and histograms are SVG pictures by matplotlib and carry no text from the data (its fonts lack most
scripts); everything with a label in it is HTML text from ``report.html``, escaped by jinja2.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import matplotlib
from jinja2 import ChainableUndefined, Environment, FileSystemLoader
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.console import seconds

TEMPLATE = Path(__file__).with_name("report.html")
COUNTS_UP_TO = 20  # classes; a larger confusion matrix shows shades only, and numbers its columns
PAIRS = 8  # most frequent confusions listed
SAMPLE_CHARACTERS = 240  # of a cleaning sample, around its first change
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


def write_html(report: Mapping[str, Any]) -> str:
    """Set the report of one run as a page.

    Args:
        report: ``title`` (str) is required. The rest may be missing or None, and the page leaves that section
            out: ``test`` and ``validation`` (``metrics.summary`` dicts), ``created`` (ISO time), ``version``,
            ``history`` (one dict per evaluation: step, epoch, samples, loss, validation_loss,
            validation_accuracy, validation_macro_f1, learning_rate, seconds), ``loss_curve`` (``[[step, loss],
            ...]``), ``ledger`` (read, kept by split, rejected by reason, duplicates, duplicates_by_reason,
            augmented; in rows), ``gates``, ``near_duplicates`` (rows of ``duplicates/`` with ``kept_text``),
            ``rules`` (name -> rows changed), ``samples`` (rule, before, after), ``profile`` (classes by split,
            tokens, token_histogram), ``words`` and ``tags`` (of ``data.words`` and ``data.tagger``),
            ``warnings`` (texts), ``data_line``, ``mistakes`` (text, truth, predicted, confidence), ``stages``
            (name -> seconds), ``config`` (YAML text), ``environment`` (name -> version), ``checkpoint`` (path),
            ``serve_command``.

    Returns:
        HTML that needs nothing outside itself; write it as UTF-8.

    Raises:
        KeyError: ``title`` is missing.
    """
    test, history, profile = report.get("test"), report.get("history") or [], report.get("profile") or {}
    page = {
        **report,
        "title": report["title"],
        "created": _date(report.get("created")),
        "counts_up_to": COUNTS_UP_TO,
        "pairs": _pairs(test) if test else [],
        "ledger": _ledger(report.get("ledger") or {}),
        "samples": [{"rule": s["rule"], **_compared(s["before"], s["after"])} for s in report.get("samples") or []],
        "near_duplicates": [
            {**row, "pieces": _compared(row["text"], row["kept_text"])} for row in report.get("near_duplicates") or []
        ],
        "curves": _curves(history, report.get("loss_curve") or []),
        "token_picture": _token_picture(profile.get("token_histogram") or {}),
    }
    loader = FileSystemLoader(TEMPLATE.parent)
    jinja = Environment(
        loader=loader, autoescape=True, undefined=ChainableUndefined, trim_blocks=True, lstrip_blocks=True
    )
    jinja.filters.update(n=_number, pct=_percent, seconds=seconds, visible=_visible)
    html = jinja.get_template(TEMPLATE.name).render(page)
    return html.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate must not keep the page from disk


def terminal_rows(summary: Mapping[str, Any]) -> list[list[str]]:
    """Lay out a summary for ``console.table`` under the header class, precision, recall, F1, rows.

    Args:
        summary: a ``metrics.summary`` or ``metrics.from_confusion`` dict.

    Returns:
        One row per class in id order, then ``accuracy`` (in the F1 column) and ``macro``; 4 decimals.
    """
    rows = [
        [name, *(f"{one[key]:.4f}" for key in ("precision", "recall", "f1")), f"{one['support']:,}"]
        for name, one in summary["per_class"].items()
    ]
    total = f"{summary['rows']:,}"
    macro = [f"{summary[key]:.4f}" for key in ("macro_precision", "macro_recall", "macro_f1")]
    return [*rows, ["accuracy", "", "", f"{summary['accuracy']:.4f}", total], ["macro", *macro, total]]


def _pairs(test: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The most frequent confusions, most rows first."""
    names = list(test["per_class"])
    found = [
        {"truth": names[i], "predicted": names[j], "count": count, "share": count / sum(row)}
        for i, row in enumerate(test["confusion"])
        for j, count in enumerate(row)
        if i != j and count
    ]
    return sorted(found, key=lambda pair: -pair["count"])[:PAIRS]


def _ledger(ledger: Mapping[str, Any]) -> dict[str, Any] | None:
    """The ledger with its sums; ``gap`` is rows read less rows accounted for, zero when the books balance."""
    if not ledger:
        return None
    kept, rejected = ledger.get("kept") or {}, ledger.get("rejected") or {}
    sums = {"kept": sum(kept.values()), "rejected": sum(rejected.values())}
    sums["duplicates"] = ledger.get("duplicates") or 0
    read = ledger.get("read", sum(sums.values()))
    return {
        "read": read, "kept": kept, "rejected": rejected, "duplicates": ledger.get("duplicates_by_reason") or {},
        "augmented": ledger.get("augmented") or {}, "sums": sums, "gap": read - sum(sums.values()),
    }  # fmt: skip


def _compared(before: str, after: str) -> dict[str, Any]:
    """Two texts as ``(changed, text)`` pieces, cut to a window around the first change."""
    texts = before, after
    shorter, longer = sorted(map(len, texts))
    start = 0
    if longer > SAMPLE_CHARACTERS:
        same = next((i for i, (b, a) in enumerate(zip(*texts, strict=False)) if a != b), shorter)
        start = max(0, same - SAMPLE_CHARACTERS // 4)
    before, after = (_clip(text, start) for text in texts)
    steps = SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    return {
        "before": [(op != "equal", before[i:j]) for op, i, j, _, _ in steps if i < j],
        "after": [(op != "equal", after[i:j]) for op, _, _, i, j in steps if i < j],
    }


def _clip(text: str, start: int) -> str:
    end = start + SAMPLE_CHARACTERS
    return ("…" if start else "") + text[start:end] + ("…" if len(text) > end else "")


def _curves(history: Sequence[Mapping[str, Any]], loss_curve: Sequence[Sequence[float]]) -> list[dict[str, str]]:
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
        figure, axes = _canvas("step", label)
        for name, (points, colour, marker) in lines.items():
            if points:
                marker = marker or ("o" if len(points) == 1 else "")
                axes.plot(*zip(*points, strict=True), color=colour, marker=marker, ms=3.5, lw=1.2, label=name)
        axes.legend(loc="best", handlelength=1.6)
        return _svg(figure)


def _token_picture(histogram: Mapping[str, Sequence[float]]) -> str | None:
    edges, counts = histogram.get("edges") or [], histogram.get("counts") or []
    if not counts or len(edges) != len(counts) + 1:
        return None
    with matplotlib.rc_context(STYLE):
        figure, axes = _canvas("tokens per text", "rows")
        axes.stairs(counts, edges, fill=True, color=BLUE, alpha=0.85)
        return _svg(figure)


def _canvas(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.6, 2.8), layout="constrained", facecolor=PAPER)  # inches
    axes = figure.add_subplot(facecolor=PAPER, xlabel=x, ylabel=y)
    return figure, axes


def _svg(figure: Figure) -> str:
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


def _visible(text: str) -> str:
    """Control characters as their pictures (NUL -> ␀), since a browser would drop them."""
    return "".join(chr(0x2400 + ord(c)) if ord(c) < 32 and c not in "\n\t" else c for c in text)


def _date(created: str | None) -> str | None:
    try:
        at = datetime.fromisoformat(created or "")
    except ValueError:
        return created
    return f"{at.day} {at:%B %Y, %H:%M %Z}".strip()


def _number(value: Any, form: str = ",.0f") -> str:
    return format(value, form) if isinstance(value, (int, float)) else "–"


def _percent(value: Any, decimals: int = 1) -> str:
    return f"{100 * value:.{decimals}f}\u00a0%" if isinstance(value, (int, float)) else "–"
