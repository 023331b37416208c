"""``broadsheet prepare``: the passes of ``steps`` laid out on Ray Data.

Read and clean stream through Ray Data into the exchange; then each bucket is finished by one task and written
as one shard per folder. How rows meet, split and order depends on the data alone, so the prepared folder is
the same bytes whatever the number of workers. ``manifest.json`` is written last: without it there is no
prepared data.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import cluster, console
from pipeline.config import Config
from pipeline.data import clean, dedup, exchange, profile, steps, tokenize
from pipeline.data.prepared import FORMAT, Prepared
from pipeline.data.read import Source, check, format_of, read
from pipeline.data.split import HashSketch
from pipeline.data.split import assign as split_rows
from pipeline.errors import UserError, WorkFailed
from pipeline.model.source import ModelSource
from pipeline.storage import Place, expand, identity, local_folder, put_folder

BLOCK_BYTES = 4 << 20  # small blocks: cleaning starts while reading goes on, and every core gets some
TOKENIZER_TEXTS = 200_000
TOKENIZER_CHARS = 200_000_000


def plan(config: Config) -> list[Source]:
    """The input files with their formats, looked at closely enough to refuse what cannot work.

    Raises:
        UserError: a file is missing, empty, binary, in an unknown format, or lacks a column.
    """
    found: list[tuple[str, str]] = []
    for split in ("train", "validation", "test"):
        for pattern in getattr(config.data, split):
            found += [(uri, split) for uri in expand(pattern)]
    names = [uri.rsplit("/", 1)[-1] for uri, _ in found]
    sources = []
    for (uri, split), name in zip(found, names, strict=True):
        unique = name if names.count(name) == 1 else uri
        size = Place.of(uri).info().size
        source = Source(uri, unique, split, format_of(uri, config.data.format), size)
        check(source, config.data)
        sources.append(source)
    twice = [uri for i, (uri, _) in enumerate(found) if uri in [u for u, _ in found[:i]]]
    if twice:
        raise UserError(f"{twice[0]} is named twice among data.train, data.validation and data.test")
    return sources


def fingerprint(config: Config, sources: list[Source], model: ModelSource) -> str:
    """What the prepared data depends on: the files' content, the data section, the tokenizer, the code version."""
    data = config.data.model_dump(mode="json", exclude={"train", "validation", "test", "dataset"})
    tokenizer = [model.kind, model.tokenizer_identity, str(config.model.max_tokens)]
    if model.folder is None:
        tokenizer.append(str(config.model.vocab_size))
    files = [f"{s.name}|{s.split}|{s.format}|{identity(s.uri)}" for s in sources]
    return steps.digest(str(FORMAT), str(clean.VERSION), json.dumps(data, sort_keys=True), *tokenizer, *files)


def prepare(config: Config, model: ModelSource, address: str | None = None) -> tuple[Prepared, bool]:
    """Make the prepared data, or find it already made.

    Args:
        config: with ``data.train`` resolved (see ``named.resolve``).
        model: whose tokenizer is used.
        address: the Ray cluster.

    Returns:
        The prepared data, and whether it was reused.

    Raises:
        UserError: the input cannot be prepared; nothing is left behind.
        WorkFailed: the work stopped half-way.
    """
    sources = plan(config)
    place = Place.of(config.storage) / "prepared" / fingerprint(config, sources, model)
    if (place / "manifest.json").exists():
        return Prepared.open(place), True
    cluster.connect(address)
    place.delete()  # an unfinished attempt
    try:
        _Job(config, sources, model, place).run()
    except BaseException as e:
        place.delete()
        ours = cluster.our_error(e)
        if ours is not None:
            raise ours from None
        raise
    return Prepared.open(place), False


@dataclass
class _Job:
    config: Config
    sources: list[Source]
    model: ModelSource
    place: Place

    def run(self) -> None:
        total = sum(s.size for s in self.sources)
        shards = max(2, -(-total // (self.config.data.shard_mb << 20)))
        sketch, first = self._first_pass(shards)
        labels = sorted(sketch.smallest)
        if len(labels) < 2:
            what = f"only one label, '{labels[0]}'," if labels else "no usable row"
            where = ", ".join(s.uri for s in self.sources if s.split == "train")
            reasons = ", ".join(f"{n:,} {r}" for r, n in first["rejected"].items())
            detail = f" (rejected: {reasons})" if reasons else ""
            raise UserError(f"{where} has {what} in column '{self.config.data.label}'{detail}: a classifier needs two")
        bounds = sketch.bounds(
            0.0 if self.config.data.test else self.config.data.test_fraction,
            0.0 if self.config.data.validation else self.config.data.validation_fraction,
        )
        tokenizer = self._tokenizer(shards, bounds)
        second = self._second_pass(shards, labels, bounds, first["read"])
        (self.place / "work").delete()
        self._finish(labels, tokenizer, shards, first, second)

    def _first_pass(self, shards: int) -> tuple[HashSketch, dict[str, Any]]:
        ray_data = cluster.data()
        sources, data, work = self.sources, self.config.data, self.place / "work"
        work.mkdir()

        def read_file(batch: pa.Table) -> Iterator[pa.Table]:
            for i in batch["item"].to_pylist():
                for chunk in read(sources[i], data):
                    yield chunk.add_column(0, "source", pa.array([i] * chunk.num_rows, pa.int32()))

        def clean_block(block: pa.Table) -> pa.Table:
            rows, facts = steps.clean_rows(block, sources, data)
            first = block.slice(0, 1).to_pylist()[0]
            exchange.write_part(rows, shards, work / f"part-{first['source']:05d}-{first['row']:012d}.arrow")
            reasons = pc.value_counts(rows["reason"].drop_null()).to_pylist()
            facts |= {"read": rows.num_rows, "rejected": {r["values"]: r["counts"] for r in reasons}}
            hashes = {label: h.tolist() for label, h in steps.class_hashes(rows).items()}
            return pa.table({"facts": [json.dumps(facts)], "hashes": [json.dumps(hashes)]})

        files = ray_data.from_items(list(range(len(sources))), override_num_blocks=len(sources))
        files.context.target_max_block_size = BLOCK_BYTES
        # A CPU share of its own keeps Ray Data from fusing the reader with the cleaner: one large file
        # is then read by one task and cleaned by all cores.
        chunks = files.map_batches(read_file, batch_format="pyarrow", batch_size=1, num_cpus=0.5)
        parts = chunks.map_batches(clean_block, batch_format="pyarrow", batch_size=None, num_cpus=1)
        sketch = HashSketch()
        facts: list[dict[str, Any]] = []
        with console.bar("prepare", "rows read and cleaned") as progress:
            done = 0
            for row in parts.iter_rows():
                facts.append(json.loads(row["facts"]))
                done += facts[-1]["read"]
                for label, hashes in json.loads(row["hashes"]).items():
                    sketch.add(label, _uint64(hashes))
                progress.update(done)
        total = profile.merged(facts)
        return sketch, {"read": 0, "rejected": {}, "rules": {}, "samples": [], "cut": 0, **total}

    def _tokenizer(self, shards: int, bounds: dict[str, tuple[int, int]]) -> dict[str, Any]:
        """Put the tokenizer into the prepared folder; train it first for a model from scratch."""
        with tempfile.TemporaryDirectory(prefix="broadsheet-") as temporary:
            folder = Path(temporary)
            facts: dict[str, Any] = {"kind": "pretrained", "identity": self.model.tokenizer_identity}
            if self.model.folder is None:
                console.say(
                    "prepare",
                    f"training a WordPiece tokenizer of up to {self.config.model.vocab_size:,} entries",
                )
                texts = self._train_texts(shards, bounds)
                facts = {
                    "kind": "trained",
                    **tokenize.train_wordpiece(texts, self.config.model.vocab_size, folder),
                }
            else:
                for name in (
                    "tokenizer.json",
                    "tokenizer_config.json",
                    "special_tokens_map.json",
                    "vocab.txt",
                ):
                    if (self.model.folder / name).is_file():
                        shutil.copy(self.model.folder / name, folder / name)
            put_folder(folder, self.place / "tokenizer")
            return {**facts, "max_tokens": self.config.model.max_tokens, "pad_id": tokenize.pad_id(folder)}

    def _train_texts(self, shards: int, bounds: dict[str, tuple[int, int]]) -> list[str]:
        """Texts of the train split, bounded in number and size, in an order fixed by the data alone."""
        texts: list[str] = []
        chars = 0
        for bucket in range(shards):
            rows = exchange.read_bucket(self.place / "work", bucket)
            rows = rows.filter(pc.and_(pc.is_null(rows["reason"]), pc.equal(rows["hint"], "train")))
            keys = rows["key"].to_pylist()
            if not keys:
                continue
            hashes = dedup.halves(keys)[:, 1]
            labels = rows["label"].to_pylist()
            splits = split_rows(labels, hashes, rows["hint"].to_pylist(), bounds)
            seen: set[bytes] = set()
            for key, text, split in zip(keys, rows["text"].to_pylist(), splits, strict=True):
                if split != "train" or key in seen:
                    continue
                seen.add(key)
                texts.append(text)
                chars += len(text)
                if len(texts) >= TOKENIZER_TEXTS or chars >= TOKENIZER_CHARS:
                    return texts
        return texts

    def _second_pass(
        self, shards: int, labels: list[str], bounds: dict[str, tuple[int, int]], rows: int
    ) -> dict[str, Any]:
        ray_data = cluster.data()
        sources, place, max_tokens = self.sources, self.place, self.config.model.max_tokens

        def finish_bucket(batch: pa.Table) -> Iterator[pa.Table]:
            with local_folder(place / "tokenizer") as folder:
                tokenizer = tokenize.TextTokenizer(folder, max_tokens)
            for bucket in batch["item"].to_pylist():
                table = exchange.read_bucket(place / "work", bucket)
                done = steps.finish_rows(table, sources, labels, bounds, tokenizer)
                for folder_name, content in done.tables.items():
                    if content.num_rows:
                        write_parquet(content, place / folder_name / f"shard-{bucket:05d}.parquet")
                yield pa.table({"facts": [json.dumps(done.facts)]})

        buckets = ray_data.from_items(list(range(shards)), override_num_blocks=shards)
        finished = buckets.map_batches(finish_bucket, batch_format="pyarrow", batch_size=1, num_cpus=1)
        facts = []
        with console.bar("prepare", "rows split and tokenized", rows) as progress:
            done = 0
            for row in finished.iter_rows():
                facts.append(json.loads(row["facts"]))
                done += facts[-1]["read"]
                progress.update(done)
        return profile.merged(facts)

    def _finish(
        self,
        labels: list[str],
        tokenizer: dict[str, Any],
        shards: int,
        first: dict[str, Any],
        second: dict[str, Any],
    ) -> None:
        duplicates = sum(second["duplicates"].values())
        kept, rejected = sum(second["kept"].values()), sum(second["rejected"].values())
        if not first["read"] == second["read"] == kept + rejected + duplicates:
            raise WorkFailed(
                f"the ledger does not add up: {first['read']:,} rows read, {kept:,} kept + {rejected:,} rejected + "
                f"{duplicates:,} duplicates. This is a bug in Broadsheet; no prepared data was written"
            )
        if not second["kept"]["train"]:
            raise UserError("no row is left for training: see the reasons above and data.min_chars")
        classes = {s: {n: second["classes"][s].get(n, 0) for n in labels} for s in profile.SPLITS}
        lengths = {s: {int(n): c for n, c in second["lengths"][s].items()} for s in profile.SPLITS}
        facts = {
            "classes": classes,
            "tokens": {s: profile.token_profile(lengths[s], second["truncated"][s]) for s in profile.SPLITS},
            "rules": {rule.name: first["rules"].get(rule.name, 0) for rule in clean.RULES},
            "samples": _few(first["samples"]),
            "cut": first["cut"],
            "warnings": profile.warnings(classes, second["unlearnable"]),
        }
        ledger = {
            "read": second["read"],
            "kept": second["kept"],
            "rejected": dict(sorted(second["rejected"].items())),
            "duplicates": duplicates,
            "duplicates_by_reason": dict(sorted(second["duplicates"].items())),
        }
        manifest = {
            "format": FORMAT,
            "fingerprint": self.place.name,
            "cleaning": {"version": clean.VERSION, "rules": list(clean.RULE_NAMES)},
            "data": self.config.data.model_dump(mode="json"),
            "sources": [{"name": s.name, "split": s.split, "format": s.format, "bytes": s.size} for s in self.sources],
            "tokenizer": tokenizer,
            "shards": shards,
            "ledger": ledger,
        }
        (self.place / "labels.json").write_text(_json(labels))
        (self.place / "profile.json").write_text(_json(facts))
        (self.place / "manifest.json").write_text(_json(manifest))


def write_parquet(table: pa.Table, place: Place) -> None:
    """Write one Parquet file; a reader sees all of it or none."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    place.write_bytes(sink.getvalue())


def _uint64(values: list[int]) -> Any:
    import numpy as np

    return np.array(values, dtype=np.uint64)


def _few(samples: list[dict[str, str]], per_rule: int = 3) -> list[dict[str, str]]:
    """The same few samples whatever order the blocks came in."""
    chosen = []
    for name in clean.RULE_NAMES:
        mine = sorted((s for s in samples if s["rule"] == name), key=lambda s: (s["before"], s["after"]))
        chosen += mine[:per_rule]
    return chosen


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1, sort_keys=False) + "\n"
