"""Near-duplicates: how many planted ones ``broadsheet prepare`` finds, how many it finds wrongly, and how fast.

    BROADSHEET_DATA=... python benchmarks/dedup.py [--quick] [--out FILE]

AG News (English) and Chinese news titles, with lightly changed copies planted among them (``planted.py``). The base
texts are first thinned out with datasketch at a threshold of 0.4, so that they hold next to no near-duplicates of their
own. A copy is found if it or its original is listed as a duplicate of the other; whatever else is listed counts as
wrong. The peer is datasketch's MinHashLSH on the same n-grams at the same threshold, in one process; our side is the
whole command, start-up, cleaning and tokenizing included, on one core. It needs ``pip install datasketch``.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from measure import RESULTS, machine, run, write
from planted import planted

THRESHOLD = 0.7


def texts_of(data: Path) -> dict[str, tuple[list[str], str]]:
    """Distinct texts of both languages, and what stands between their words."""
    import pyarrow.parquet as pq

    english = pq.read_table(data / "ag_news/train.parquet", columns=["text"])["text"].to_pylist()
    lines = (data / "thucnews/train.txt").read_text(encoding="utf-8").splitlines()
    chinese = [line.rpartition("\t")[0] for line in lines]
    return {"english": (list(dict.fromkeys(english)), " "), "chinese": (list(dict.fromkeys(chinese)), "")}


def ours(texts: list[str], folder: Path) -> tuple[list[tuple[int, int]], float]:
    """Pairs of a text and the one it is listed as a duplicate of, and seconds of the whole command on one core."""
    import pyarrow as pa

    from pipeline.data.prepared import Prepared

    file = folder / "rows.csv"
    with file.open("w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f)
        writer.writerow(["text", "label"])
        writer.writerows((" ".join(text.split()), "ab"[i % 2]) for i, text in enumerate(texts))
    binary = str(Path(sys.executable).with_name("broadsheet"))
    command = ["taskset", "-c", str(min(os.sched_getaffinity(0))), binary, "prepare", "--data", str(file)]
    command += ["--storage", str(folder / "runs"), "--set", f"data.near_threshold={THRESHOLD}"]
    command += ["--set", "data.profile_rows=0"]
    done = run(command, folder / "log")
    prepared = Prepared.open(json.loads((folder / "runs/default/data.json").read_text())["prepared"])
    listed = prepared.table("duplicates", ["id", "kept_id"])
    ids = [
        pa.compute.cast(pa.compute.replace_substring(listed[n], "rows.csv:", ""), pa.int64())
        for n in listed.column_names
    ]
    return [(a - 2, b - 2) for a, b in zip(*(c.to_pylist() for c in ids), strict=True)], done.seconds  # line 2 is row 0


def peer(texts: list[str], apart: str, threshold: float = THRESHOLD) -> tuple[list[tuple[int, int]], float]:
    """The same of datasketch: a text is a duplicate of the first one that its index finds."""
    from datasketch import MinHash, MinHashLSH

    began = time.monotonic()
    index = MinHashLSH(threshold=threshold, num_perm=128)
    found = []
    grams = []
    for text in texts:
        units = re.findall(r"[^\W_]+" if apart else r"[a-z0-9]+|[^\W_]", text.lower())
        grams.append([" ".join(units[i : i + 2]).encode() for i in range(max(1, len(units) - 1))])
    for i, signature in enumerate(MinHash.generator(grams, num_perm=128)):
        before = index.query(signature)
        if before:
            found.append((i, before[0]))
        else:
            index.insert(i, signature)
    return found, time.monotonic() - began


def judge(found: list[tuple[int, int]], answer: dict[int, tuple[int, str]]) -> dict[str, Any]:
    """Recall, precision, and recall for each way of changing a text."""
    pairs = {frozenset((copy, original)): way for copy, (original, way) in answer.items()}
    right = Counter(pairs[p] for p in {frozenset(f) for f in found} if p in pairs)
    all_ways = Counter(pairs.values())
    return {
        "listed": len(found),
        "recall": round(sum(right.values()) / len(pairs), 4),
        "precision": round(sum(right.values()) / max(1, len(found)), 4),
        "recall_by_way": {way: round(right[way] / n, 4) for way, n in all_ways.items()},
    }


def measure(data: Path, root: Path, quick: bool) -> dict[str, Any]:
    """All runs, and the flat ratios."""
    runs: list[dict[str, Any]] = []
    for language, (base, apart) in texts_of(data).items():
        base = base[:4_000] if quick else base
        alike = {i for pair in peer(base, apart, 0.4)[0] for i in pair}  # news repeats itself without our help
        base = [text for i, text in enumerate(base) if i not in alike]
        texts, answer = planted(base, len(base) // 20, 1, apart)
        folder = root / f"dedup-{language}"
        folder.mkdir(parents=True)
        size = sum(len(t.encode()) for t in texts)
        sides = {"ours": ours(texts, folder), "peer": peer(texts, apart)}
        for side, (found, seconds) in sides.items():
            facts = {"side": side, "language": language, "texts": len(texts), "planted": len(answer)}
            speed = {"seconds": round(seconds, 2), "mb_per_s": round(size / seconds / 1e6, 2)}
            runs.append({**facts, **speed, **judge(found, answer)})
            print(runs[-1], flush=True)
    own, other = ([r for r in runs if r["side"] == side] for side in ("ours", "peer"))
    return {
        "runs": runs,
        "ratios": {
            "dedup_recall": min(r["recall"] for r in own),
            "dedup_precision": min(r["precision"] for r in own),
            "dedup_mb_per_s_per_core": own[0]["mb_per_s"],
            "dedup_vs_datasketch": round(other[0]["seconds"] / own[0]["seconds"], 2),
        },
    }


def main() -> None:
    """Run, print the ratios, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="4,000 texts of each language")
    parser.add_argument("--out", type=Path, default=RESULTS / "dedup.json")
    arguments = parser.parse_args()
    data = Path(
        os.environ.get("BROADSHEET_DATA") or sys.exit("set BROADSHEET_DATA to a folder with ag_news and thucnews")
    )
    import datasketch

    with tempfile.TemporaryDirectory(prefix="dedup-") as temporary:
        figures = measure(data, Path(temporary), arguments.quick)
    write(
        {**machine(), "peer": f"datasketch {datasketch.__version__}", "quick": arguments.quick, **figures},
        arguments.out,
    )


if __name__ == "__main__":
    main()
