"""The page a run leaves behind: one self-contained HTML file, readable by day, by night and on a phone.

Curves and histograms are SVG pictures by matplotlib and carry no text from the data (its fonts lack most
scripts); everything with a label in it is HTML text from ``report.html``, escaped by jinja2.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from jinja2 import ChainableUndefined, Environment, FileSystemLoader

from pipeline.console import seconds
from pipeline.evaluate import pictures

TEMPLATE = Path(__file__).with_name("report.html")
COUNTS_UP_TO = 20  # classes; a larger confusion matrix shows shades only, and numbers its columns
MATRIX_UP_TO = 150  # classes; the cells of a larger one would be megabytes of page
PAIRS = 8, 40  # most frequent confusions listed; where there is no matrix
SAMPLE_CHARACTERS = 240  # of a cleaning sample, around its first change


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
            tokens, token_histogram), ``split`` (of ``test``),
            ``baseline`` (``Baseline.figures``), ``cascade`` (``cascade.Record.figures``),
            ``intervals`` (``intervals.of_confusion``), ``calibration`` (of the module), ``slices`` (``slices.judge``),
            ``suspects`` (counted, rows, file), ``energy`` (``energy.estimate``), ``words`` and ``tags`` (of
            ``data.words`` and ``data.tagger``), ``warnings`` (texts), ``data_line``, ``mistakes`` (text, truth,
            predicted, confidence, nearest),
            ``evidence`` (of ``evidence.examine``), ``explained`` (rows of ``explain.of_sample``), ``stages`` (name ->
            seconds), ``config`` (YAML text), ``environment`` (name -> version), ``checkpoint`` (path),
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
        "matrix_up_to": MATRIX_UP_TO,
        "pairs": _pairs(test) if test else [],
        "ledger": _ledger(report.get("ledger") or {}),
        "samples": [{"rule": s["rule"], **_compared(s["before"], s["after"])} for s in report.get("samples") or []],
        "near_duplicates": [
            {**row, "pieces": _compared(row["text"], row["kept_text"])} for row in report.get("near_duplicates") or []
        ],
        "curves": pictures.curves(history, report.get("loss_curve") or []),
        "reliability": pictures.reliability(report.get("calibration") or {}),
        "token_picture": pictures.token_histogram(profile.get("token_histogram") or {}),
    }
    return rendered(TEMPLATE, page)


def rendered(template: Path, page: Mapping[str, Any]) -> str:
    """A template filled in; it may include those of this folder, such as ``report_style.html``."""
    jinja = Environment(
        loader=FileSystemLoader([template.parent, TEMPLATE.parent]),
        autoescape=True, undefined=ChainableUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    jinja.filters.update(n=_number, pct=_percent, seconds=seconds, visible=_visible, date=_date)
    html = jinja.get_template(template.name).render(page)
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
    return sorted(found, key=lambda pair: -pair["count"])[: PAIRS[len(names) > MATRIX_UP_TO]]


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
