"""Files on disk to tokenized Parquet on disk: ``broadsheet prepare`` against ``datasets.map``, in turn, in one run.

    BROADSHEET_DATA=... python benchmarks/prepare.py [--quick] [--out FILE]

The rows are AG News, repeated and made distinct by a number of its own at the end of each text (the worst case
for a cache of words: every row brings a new one). The peer loads the same csv files with ``load_dataset``, maps
ftfy and the same tokenizer over them (``batched=True, num_proc=2``) and writes Parquet; it does not reject,
deduplicate or split. Ours leaves out what the peer has nothing like: near-duplicates and the profile of words. Both are
commands of their own, so that start-up counts. Near-duplicates are measured by ``dedup.py``, whose figures are taken
in. It needs ``pip install datasets datasketch``.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import dedup
from measure import RESULTS, Run, machine, run, write

PEER = """
import sys
import ftfy
from datasets import load_dataset
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])

def prepare(batch):
    text = [ftfy.fix_text(t) for t in batch["text"]]
    return {"text": text, "input_ids": tokenizer(text, truncation=True, max_length=128)["input_ids"]}

if __name__ == "__main__":
    rows = load_dataset("csv", data_files=sys.argv[3:], split="train", cache_dir=sys.argv[2] + "/cache")
    rows.map(prepare, batched=True, num_proc=2).to_parquet(sys.argv[2] + "/out.parquet")
"""


def write_rows(texts: list[str], labels: list[str], count: int, folder: Path) -> list[Path]:
    """``count`` distinct rows in csv files of 120,000."""
    folder.mkdir()
    files = []
    for start in range(0, count, 120_000):
        files.append(folder / f"rows-{start // 120_000:02d}.csv")
        with files[-1].open("w", newline="", encoding="utf-8") as f:
            writer = csv.writer(f)
            writer.writerow(["text", "label"])
            for i in range(start, min(count, start + 120_000)):
                writer.writerow([f"{texts[i % len(texts)]} {i}", labels[i % len(texts)]])
    return files


def ours(files: list[Path], out: Path, cpus: int | None = None, on_ray: bool = False) -> Run:
    """``broadsheet prepare``, on the first ``cpus`` cores if given, on Ray whatever the size if told."""
    binary = str(Path(sys.executable).with_name("broadsheet"))
    command = [binary, "prepare", "--data", str(files[0].parent), "--storage", str(out / "runs")]
    command += ["--set", "data.near_duplicates=keep", "--set", "data.profile_rows=0"]
    if on_ray:
        command += ["--set", "data.in_process_mb=0"]
    if cpus is not None:
        command = ["taskset", "-c", ",".join(map(str, sorted(os.sched_getaffinity(0))[:cpus])), *command]
    done = run(command, out / "ours.log", every=2.0)
    ledger = json.loads((out / "runs" / "default" / "data.json").read_text())["ledger"]
    assert sum(ledger["kept"].values()) == ledger["read"], ledger  # every row did the whole way
    return done


def peer(files: list[Path], tokenizer: Path, out: Path) -> Run:
    """``datasets.map`` over the same files."""
    script = out / "peer.py"
    script.write_text(PEER)
    quiet = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    return run([sys.executable, str(script), str(tokenizer), str(out), *map(str, files)], out / "peer.log", quiet, 2.0)


def differing_rows(tokenizer: Path, data: Path) -> tuple[int, int]:
    """Rows of AG News and Chinese news whose ids differ from the Hugging Face tokenizer's, and rows compared."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from transformers import AutoTokenizer

    from pipeline.data.clean import clean_column
    from pipeline.data.tokenize import TextTokenizer

    texts = [
        t for name in ("train", "test") for t in pq.read_table(data / f"ag_news/{name}.parquet")["text"].to_pylist()
    ]
    for name in ("train", "dev", "test"):
        lines = (data / f"thucnews/{name}.txt").read_text(encoding="utf-8").splitlines()
        texts += [line.rpartition("\t")[0] for line in lines]
    both = pa.concat_arrays([pa.array(texts), clean_column(pa.array(texts))])
    ids, _ = TextTokenizer(tokenizer, 128).encode_arrow(both)
    reference = AutoTokenizer.from_pretrained(tokenizer)(both.to_pylist(), truncation=True, max_length=128)["input_ids"]
    return sum(a != b for a, b in zip(ids.to_pylist(), reference, strict=True)), len(both)


def main() -> None:
    """Run, print the ratios, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="12,000 and 60,000 rows, once")
    parser.add_argument("--repeats", type=int, default=2, help="times each side runs, in turn")
    parser.add_argument("--out", type=Path, default=RESULTS / "prepare.json")
    arguments = parser.parse_args()
    import pyarrow.parquet as pq

    from pipeline.model.source import resolve

    data = Path(
        os.environ.get("BROADSHEET_DATA") or sys.exit("set BROADSHEET_DATA to a folder with ag_news and thucnews")
    )
    rows = pq.read_table(data / "ag_news/train.parquet", columns=["text", "label"]).to_pydict()
    tokenizer = resolve("minilm").folder
    assert tokenizer is not None
    small, large = (12_000, 60_000) if arguments.quick else (120_000, 1_200_000)
    raw: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="prepare-") as temporary:
        root = Path(temporary)

        def measure(side: str, count: int, cpus: int | None = None, on_ray: bool = False) -> Run:
            out = root / f"out-{len(raw)}"
            out.mkdir()
            done = peer(files[count], tokenizer, out) if side == "peer" else ours(files[count], out, cpus, on_ray)
            raw.append(
                {
                    "side": side, "rows": count, "cpus": cpus, "on_ray": on_ray or count == large,
                    "seconds": round(done.seconds, 2), "rows_per_s": round(count / done.seconds),
                    "peak_one_mb": round(done.peak_one / 1e6), "peak_all_mb": round(done.peak_all / 1e6),
                }
            )  # fmt: skip
            print(raw[-1], flush=True)
            return done

        files = {n: write_rows(rows["text"], [str(x) for x in rows["label"]], n, root / str(n)) for n in (small, large)}
        for _ in range(1 if arguments.quick else arguments.repeats):
            for count in (small, large):
                for side in ("peer", "ours"):
                    measure(side, count)
        measure("ours", large, cpus=1)
        same_layout = measure("ours", small, on_ray=True)
        near = dedup.measure(data, root, arguments.quick)
    differing, compared = differing_rows(tokenizer, data)

    def middle(side: str, count: int, what: str) -> float:
        return statistics.median(
            r[what]
            for r in raw
            if (r["side"], r["rows"], r["cpus"], r["on_ray"]) == (side, count, None, count == large)
        )

    def ratio(count: int) -> float:
        return round(middle("peer", count, "seconds") / middle("ours", count, "seconds"), 2)

    one = next(r["seconds"] for r in raw if r["cpus"] == 1)
    import datasets
    import datasketch

    result = {
        **machine(),
        "peer": f"datasets {datasets.__version__}, map(batched=True, num_proc=2)",
        "quick": arguments.quick,
        "rows_compared": compared,
        "runs": raw,
        "dedup_peer": f"datasketch {datasketch.__version__}",
        "dedup_runs": near["runs"],
        "ratios": {
            "vs_datasets_map_1200k": ratio(large),
            "vs_datasets_map_120k": ratio(small),
            "cpu_scaling_2": round(one / middle("ours", large, "seconds"), 2),
            "memory_growth": round(middle("ours", large, "peak_one_mb") * 1e6 / same_layout.peak_one, 3),
            "tokens_identical": 1.0 - differing / compared,
            **near["ratios"],
        },
    }
    write(result, arguments.out)


if __name__ == "__main__":
    main()
