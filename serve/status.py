"""``broadsheet serve --status``: the models of an endpoint side by side."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

from pipeline import console
from serve.desk import Report, State
from serve.releases import TAGGED, Lineup, Release
from serve.tally import Tally

LABELS = 20


def show(state: State) -> None:
    """Print the models, their counts since the lineup last changed, and replicas that do not serve it."""
    lineup, reports = state.lineup, list(state.reports.values())
    serving = [r for r in reports if r.serving == lineup.generation]
    counted = f"{len(serving)} of {len(reports)} replicas serve change {lineup.generation}"
    console.say("serve", f"{counted}; counts since then:")
    parts = {"stable": lineup.stable, "candidate": lineup.candidate, "previous": lineup.previous}
    known = {part: release for part, release in parts.items() if release is not None}
    tallies = {part: total(serving, release) for part, release in known.items()}
    header = ["", *known]
    console.table("", header, rows(lineup, known, tallies, reports))
    if lineup.candidate is not None:
        console.table("share of texts by label", header[:3], labels(tallies["stable"], tallies["candidate"]))
    for report in reports:
        if report.state != "serving":
            console.warn("serve", f"replica {report.replica}: {report.state} {report.reason}".strip())


def total(reports: Sequence[Report], release: Release) -> Tally:
    """The counts of all replicas together."""
    return reduce(Tally.plus, (r.tallies[release] for r in reports if release in r.tallies), Tally())


def rows(
    lineup: Lineup, known: dict[str, Release], tallies: dict[str, Tally], reports: Sequence[Report]
) -> list[list[str]]:
    """The table, a row per figure and a column per model."""
    shares = {"candidate": "shadow" if lineup.shadow else f"{100 * lineup.share:g}%", "previous": "kept"}
    shares["stable"] = "100%" if lineup.shadow else f"{100 - 100 * lineup.share:g}%"
    versions = {release: version for r in reports for release, version in r.versions.items()}
    table = {
        "checkpoint": [release.checkpoint for release in known.values()],
        "version": [
            versions.get(
                release, "not loaded" if release.version.startswith(TAGGED) else release.version or "not loaded"
            )
            for release in known.values()
        ],
        "requests": [shares[part] for part in known],
        "asked": [f"{t.requests:,}" for t in tallies.values()],
        "failed": [f"{t.failed:,}" for t in tallies.values()],
        "texts": [f"{t.texts:,}" for t in tallies.values()],
        "p50, ms": [_ms(t, 0.5) for t in tallies.values()],
        "p99, ms": [_ms(t, 0.99) for t in tallies.values()],
        "confidence": [f"{t.confidence / t.texts:.3f}" if t.texts else "" for t in tallies.values()],
    }
    if lineup.shadow:
        shown = tallies["candidate"]
        agrees = f"{100 * shown.agreed / shown.compared:.2f}%" if shown.compared else ""
        empty = [""] * (len(known) - 2)
        table["agrees with stable"] = ["", f"{agrees} of {shown.compared:,} texts" if agrees else "", *empty]
        table["not copied"] = ["", f"{shown.skipped:,} requests", *empty]
    return [[name, *cells] for name, cells in table.items()]


def labels(stable: Tally, candidate: Tally) -> list[list[str]]:
    """Shares of the labels, most frequent first."""
    both = stable.plus(candidate).labels
    names = sorted(both, key=lambda label: (-both[label], label))[:LABELS]
    return [[n, *(f"{100 * t.labels.get(n, 0) / max(1, t.texts):.1f}%" for t in (stable, candidate))] for n in names]


def _ms(tally: Tally, q: float) -> str:
    seconds = tally.quantile(q)
    return "" if seconds is None else f"{1000 * seconds:.1f}"
