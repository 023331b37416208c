"""What the report says of the data, and the page of its own that ``broadsheet prepare`` leaves behind."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from pipeline.data import gates
from pipeline.data.config import DataConfig
from pipeline.data.prepared import Prepared
from pipeline.storage import Place


def facts(prepared: Prepared, limits: DataConfig) -> dict[str, Any]:
    """The part of ``report.write_html``'s report that is about the data.

    Args:
        prepared: the data.
        limits: holds the limits of the gates.
    """
    ledger, profile = prepared.ledger, prepared.profile
    return {
        "ledger": ledger,
        "gates": gates.judge(limits, ledger, profile["classes"]),
        "rules": profile["rules"],
        "samples": profile["samples"],
        "near_duplicates": profile["near_duplicates"],
        "words": profile["words"],
        "tags": profile["tags"],
        "profile": {
            "classes": profile["classes"],
            "tokens": profile["tokens"]["train"],
            "token_histogram": profile["tokens"]["train"]["histogram"],
        },
        "warnings": gates.concerns(limits, ledger, profile["classes"]) + profile["warnings"],
    }


def write(prepared: Prepared, limits: DataConfig, name: str, data_line: str, out: Place) -> Place:
    """Write ``index.html``, a page about the data alone.

    Args:
        prepared: the data.
        limits: holds the limits of the gates.
        name: of the data.
        data_line: which data is used and why.
        out: the folder.
    """
    from pipeline.evaluate import report  # brings matplotlib along

    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    page = {"title": f"Data: {name}", "created": now, "data_line": data_line, **facts(prepared, limits)}
    file = out / "index.html"
    file.write_text(report.write_html(page))
    return file
