"""What is in the data sets that everybody trains on: duplicates, near-duplicates across splits, conflicts, debris.

    BROADSHEET_DATA=... python benchmarks/audit.py [--out FILE]

AG News (63,036 of the 120,000 training rows, already thinned out while they were gathered, and the official test set),
THUCNews titles (a quarter of the usual training split), reuters8 and newsgroups20, each through ``broadsheet prepare``
at several thresholds. Debris is counted in the raw texts of AG News. There is no peer: it is a finding, not a race.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from measure import RESULTS, machine, write

THRESHOLDS = (0.9, 0.8, 0.7, 0.6, 0.5)
DEBRIS = {
    "entity without its ampersand (' #39;s', 'quot;')": r"(?<![&\w])(?:#\d{2,5}|quot|amp|lt|gt|nbsp);",
    "whole entity ('&lt;', '&amp;')": r"&(?:#\d+|[A-Za-z]\w+);",
    "HTML tag, plain or escaped": r"(?:<|&lt;)/?[A-Za-z][^<>&]*(?:>|&gt;)",
    "backslash where a line ended": r"\\",
    "agency in parentheses ('(Reuters)')": r"\((?:Reuters|AP|AFP|USATODAY\.com|SPACE\.com|washingtonpost\.com)\)",
    "ticker link ('Quote, Profile, Research')": r"Quote, Profile, Research",
    "web address": r"https?://|www\.",
    "two spaces or more": r"  ",
    "control character": r"[\x00-\x08\x0b-\x1f\x7f-\x9f]",
    "not ASCII": r"[^\x00-\x7f]",
}


def prepared(folder: Path, flags: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Ledger and profile of one ``broadsheet prepare``."""
    binary = str(Path(sys.executable).with_name("broadsheet"))
    quick = ["--set", "data.profile_rows=0", "--storage", str(folder)]
    subprocess.run([binary, "prepare", *flags, *quick], check=True, stdout=subprocess.DEVNULL)
    pointer = json.loads((folder / "default/data.json").read_text())
    return pointer["ledger"], json.loads((Path(pointer["prepared"]) / "profile.json").read_text())


def data_sets(data: Path) -> dict[str, list[str]]:
    """The flags that name each data set."""
    thuc = data / "thucnews"
    names = ",".join((thuc / "class.txt").read_text(encoding="utf-8").split())
    chinese = [
        "--data",
        str(thuc / "train.txt"),
        "--validation",
        str(thuc / "dev.txt"),
        "--test",
        str(thuc / "test.txt"),
    ]
    chinese += ["--format", "tsv", "--text", "title", "--label", "label", "--set", "data.columns=title,label"]
    chinese += ["--set", f"data.labels=[{names}]", "--set", "data.extra_rules=width"]
    named = {name: ["--dataset", name] for name in ("ag_news", "reuters8", "newsgroups20")}
    return {**named, "thucnews": chinese}


def debris(data: Path) -> dict[str, Any]:
    """Rows of AG News that hold each kind of debris, in the raw texts."""
    import pyarrow.parquet as pq

    texts = [t for n in ("train", "test") for t in pq.read_table(data / f"ag_news/{n}.parquet")["text"].to_pylist()]
    counts = {kind: sum(re.search(pattern, t) is not None for t in texts) for kind, pattern in DEBRIS.items()}
    return {"rows": len(texts), "kinds": counts}


def main() -> None:
    """Run, print the ratios, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=RESULTS / "audit.json")
    arguments = parser.parse_args()
    data = Path(
        os.environ.get("BROADSHEET_DATA") or sys.exit("set BROADSHEET_DATA to a folder with ag_news and thucnews")
    )
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="audit-") as temporary:
        for name, flags in data_sets(data).items():
            found[name] = {"thresholds": {}}
            for threshold in THRESHOLDS:
                folder = Path(temporary) / f"{name}-{threshold}"
                ledger, profile = prepared(folder, [*flags, "--set", f"data.near_threshold={threshold}"])
                found[name]["thresholds"][str(threshold)] = {
                    "pairs": profile["near_pairs"],
                    **{reason: n for reason, n in ledger["duplicates_by_reason"].items() if reason.startswith("near")},
                }
            ledger, profile = prepared(Path(temporary) / name, [*flags, "--set", "data.near_duplicates=keep"])
            exact = ledger["duplicates_by_reason"]
            rules = {rule: n for rule, n in profile["rules"].items() if n}
            found[name] |= {"read": ledger["read"], "rejected": ledger["rejected"], "exact": exact, "rules": rules}
            print(name, json.dumps(found[name], ensure_ascii=False), flush=True)
    shares = {
        f"near_{name}": round(sum(n for k, n in f["thresholds"]["0.7"].items() if k != "pairs") / f["read"], 5)
        for name, f in found.items()
    }
    write({**machine(), "data": found, "debris": debris(data), "ratios": shares}, arguments.out)


if __name__ == "__main__":
    main()
