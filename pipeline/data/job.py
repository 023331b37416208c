"""The passes of a job of ``prepare``, one after the other on a ``layout``; each leaves a mark, and is not done again.

What is needed to go on after a kill lies in ``<fingerprint>.work``; ``manifest.json`` is written last.
"""

from __future__ import annotations

import functools
import io
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import console
from pipeline.config import Config
from pipeline.data import (
    augment,
    corrections,
    dedup,
    exchange,
    first_pass,
    manifest,
    near_pass,
    profile,
    second_pass,
    tagger,
    tokenize,
    words,
)
from pipeline.data.columns import one
from pipeline.data.layout import Layout, raw_bytes
from pipeline.data.neighbours import Neighbours
from pipeline.data.rank import Ranked, rank
from pipeline.data.read import Source
from pipeline.data.shards import read_parquet, shard_name, write_parquet
from pipeline.data.split import HashSketch
from pipeline.errors import UserError
from pipeline.folders import local_folder, put_folder
from pipeline.model import source as model_source
from pipeline.model.source import ModelSource
from pipeline.storage import Place

TOKENIZER_TEXTS = 200_000
TOKENIZER_CHARS = 200_000_000
SHARD_MB = 16
MOST_SHARDS = 1024
LARGEST_SHARD = 512 << 20


def shard_count(raw: int, text: int, shard_mb: int | None) -> int:
    """How many shards there are.

    Each task of a later pass reads a bucket out of every part that the first pass wrote, so the pieces to read are
    parts times shards. Unless the user says how large shards are, from 1,024 on they grow with the data, up to half a
    gigabyte of text.

    Args:
        raw: bytes of all sources as they lie there.
        text: about as many once unpacked.
        shard_mb: megabytes (2^20 bytes) of the sources per shard, if the user has said so.
    """
    least = max(2, -(-raw // ((shard_mb or SHARD_MB) << 20)))
    return least if shard_mb else max(min(least, MOST_SHARDS), -(-text // LARGEST_SHARD))


@functools.lru_cache(maxsize=2)
def _tokenizer(folder: str, max_tokens: int) -> tokenize.TextTokenizer:
    """The tokenizer of this worker process, with the words it has seen in earlier tasks."""
    with local_folder(folder) as local:
        return tokenize.TextTokenizer(local, max_tokens)


@functools.lru_cache(maxsize=1)
def _neighbours(file: str) -> Neighbours:
    """The words of like embedding, once per worker process."""
    with Place.of(file).open_random() as f:
        return Neighbours.load(f)


def neighbours_model(model: ModelSource) -> ModelSource:
    """The model whose embeddings say which words are alike: the one to be trained, or MiniLM for one from scratch."""
    return model if model.folder is not None else model_source.resolve("minilm")


@dataclass
class Job:
    """One job from its sources to its manifest."""

    config: Config
    sources: list[Source]
    model: ModelSource
    place: Place
    work: Place
    layout: Layout
    shards: int = 0
    labels: list[str] = field(default_factory=list)
    bounds: dict[str, tuple[int, int]] = field(default_factory=dict)

    def run(self) -> None:
        """Do what is not done yet.

        Raises:
            UserError: the input cannot be prepared.
        """
        lying = sum(s.size for s in self.sources)
        self.shards = shard_count(lying, raw_bytes(self.sources), self.config.data.shard_mb)
        neighbours = self._find_neighbours()
        sketch, first = self._first_pass()
        changes = corrections.load(self.config.data)
        if changes is not None:
            corrections.check_labels(changes, first["corrections"]["labels"])
            first["corrections"] = corrections.summary(changes, first["corrections"])
        self.labels = sorted(sketch.smallest)
        if len(self.labels) < 2:
            what = f"only one label, '{self.labels[0]}'," if self.labels else "no usable row"
            where = ", ".join(s.uri for s in self.sources if s.split == "train")
            reasons = ", ".join(f"{n:,} {r}" for r, n in first["rejected"].items())
            detail = f" (rejected: {reasons})" if reasons else ""
            raise UserError(f"{where} has {what} in column '{self.config.data.label}'{detail}: a classifier needs two")
        self.bounds = sketch.bounds(
            0.0 if self.config.data.test else self.config.data.test_fraction,
            0.0 if self.config.data.validation else self.config.data.validation_fraction,
        )
        found = self._near_pass()
        tokenizer = self._tokenizer()
        second = self._second_pass(first["read"], self._augmentation(sketch.counts(), neighbours))
        found |= {**self._words(), "examples": self._examples()}
        self.place.sweep()
        manifest.write(
            self.place, self.config, sources=self.sources, labels=self.labels, tokenizer=tokenizer,
            shards=self.shards, first=first, found=found, second=second,
        )  # fmt: skip

    def _first_pass(self) -> tuple[HashSketch, dict[str, Any]]:
        """Read and clean everything into the exchange, or find that done."""
        marker, kept = self.work / "first.json", self.work / "sketch.parquet"
        if marker.exists():
            saved = read_parquet(kept).to_pydict()
            hashes = {k: np.array(v, np.uint64) for k, v in zip(saved["label"], saved["hashes"], strict=True)}
            console.say("prepare", "going on with an attempt that was cut off: all rows are read and cleaned")
            return HashSketch(smallest=hashes), json.loads(marker.read_text())
        self.place.delete()
        self.work.delete()
        sketch, facts = self._read_and_clean()
        table = {"label": list(sketch.smallest), "hashes": list(sketch.smallest.values())}
        write_parquet(pa.table(table, pa.schema({"label": pa.string(), "hashes": pa.list_(pa.uint64())})), kept)
        marker.write_text(json.dumps(facts))
        return sketch, facts

    def _read_and_clean(self) -> tuple[HashSketch, dict[str, Any]]:
        sources, data, work, shards = self.sources, self.config.data, self.work, self.shards
        (work / "parts").mkdir()
        changes = corrections.load(data)

        def clean_block(block: pa.Table) -> pa.Table:
            rows, facts = first_pass.clean_rows(block, sources, data, changes)
            name = f"part-{rows['source'][0].as_py():05d}-{rows['row'][0].as_py():012d}.arrow"
            keys = dedup.halves_of(one(rows["key"]))[:, 0]
            exchange.write_part(rows, exchange.bucket_of(keys, shards), shards, work / "parts" / name)
            hashes = first_pass.class_hashes(rows, sources)
            raw = pa.array([[h.tobytes() for h in hashes.values()]], pa.list_(pa.binary()))
            labels = pa.array([list(hashes)], pa.list_(pa.string()))
            return pa.table({"facts": [json.dumps(facts)], "labels": labels, "hashes": raw})

        sketch = HashSketch()
        total: dict[str, Any] = {"read": 0, "rejected": {}, "rules": {}, "samples": {}, "cut": 0, "filled": {}}
        if changes is not None:
            total["corrections"] = {"relabelled": 0, "dropped": 0, "met": [], "stale": [], "labels": {}}
        with console.bar("prepare", "rows read and cleaned") as progress:
            for row in self.layout.clean(sources, data, clean_block):
                total = profile.merged([total, json.loads(row["facts"])])
                for label, raw in zip(row["labels"], row["hashes"], strict=True):
                    sketch.add(label, np.frombuffer(raw, np.uint64))
                progress.update(total["read"])
        return sketch, total

    def _near_pass(self) -> dict[str, Any]:
        """Find the texts that fall as near-duplicates, and leave them in the work folder by bucket."""
        marker, work = self.work / "near.json", self.work
        if self.config.data.near_duplicates == "keep":
            return {"pairs": 0}
        if marker.exists():
            return dict(json.loads(marker.read_text()))
        shards, ranking, data, sources = self.shards, self._ranking(), self.config.data, self.sources

        def code(bucket: int) -> None:
            rows = exchange.read_bucket(work / "parts", bucket)
            near_pass.write_codes(rows, ranking(rows), data, shards, work / "codes" / f"part-{bucket:05d}.arrow")

        def meet(bucket: int) -> None:
            codes, name = exchange.read_bucket(work / "codes", bucket, near_pass.CODES), f"part-{bucket:05d}.arrow"
            near_pass.meet(codes, shards, work / "pairs-of-texts" / name, work / "pairs" / name)

        def gather(bucket: int) -> None:
            pairs = exchange.read_bucket(work / "pairs-of-texts", bucket, near_pass.PAIRS)
            rows = exchange.read_bucket(work / "parts", bucket)
            place = work / "sets" / f"part-{bucket:05d}.arrow"
            near_pass.gather(rows, ranking(rows), pairs, data.near_ngram, shards, place)

        def compare(bucket: int) -> None:
            pairs = exchange.read_bucket(work / "pairs", bucket, near_pass.PAIRS)
            sets = exchange.read_bucket(work / "sets", bucket, near_pass.SETS)
            alike = near_pass.compare(pairs, sets, data.near_threshold)
            write_parquet(alike, work / "alike" / f"part-{bucket:05d}.parquet")

        with console.bar("prepare", "steps to near-duplicates", 4 * shards) as progress:
            for i, step in enumerate((code, meet, gather, compare)):
                for k, _ in enumerate(self.layout.each(range(shards), step)):
                    progress.update(i * shards + k + 1)
        alike = pa.concat_tables(map(read_parquet, (work / "alike").files(".parquet")))
        fallen = near_pass.decide(alike, sources, data.near_duplicates)
        home = exchange.bucket_of(fallen["key"].to_numpy(), shards)
        exchange.write_part(fallen, home, shards, work / "fallen" / "all.arrow")
        facts = {"pairs": alike.num_rows}
        marker.write_text(json.dumps(facts))
        return facts

    def _ranking(self) -> Callable[[pa.Table], Ranked]:
        """What settles equal texts, with all it needs to know but the rows."""
        sources, labels, bounds, conflicts = self.sources, self.labels, self.bounds, self.config.data.conflicts
        return lambda rows: rank(rows, sources, labels, bounds, conflicts)

    def _tokenizer(self) -> dict[str, Any]:
        """Put the tokenizer into the prepared folder; train it first for a model from scratch."""
        marker = self.work / "tokenizer.json"
        if marker.exists():
            return dict(json.loads(marker.read_text()))
        with tempfile.TemporaryDirectory(prefix="broadsheet-") as temporary:
            folder = Path(temporary)
            facts: dict[str, Any] = {"kind": "pretrained", "identity": self.model.tokenizer_identity}
            if self.model.folder is None:
                size = self.config.model.vocab_size
                words = self.model.kind == "linear"
                console.say(
                    "prepare", f"training a {'word' if words else 'WordPiece'} tokenizer of up to {size:,} entries"
                )
                facts = {"kind": "trained", **tokenize.train_wordpiece(self._train_texts(), size, folder, words)}
            else:
                for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
                    if (self.model.folder / name).is_file():
                        shutil.copy(self.model.folder / name, folder / name)
            put_folder(folder, self.place / "tokenizer")
            facts |= {"max_tokens": self.config.model.max_tokens, "pad_id": tokenize.pad_id(folder)}
        marker.write_text(json.dumps(facts))
        return facts

    def _train_texts(self) -> list[str]:
        """Texts of the train split, bounded in number and size, in an order fixed by the data alone."""
        texts: list[str] = []
        chars = 0
        ranking = self._ranking()
        for bucket in range(self.shards):
            rows = exchange.read_bucket(self.work / "parts", bucket)
            fallen = exchange.read_bucket(self.work / "fallen", bucket, near_pass.FALLEN)
            for text in second_pass.train_texts(rows, ranking(rows), fallen):
                texts.append(text)
                chars += len(text)
                if len(texts) >= TOKENIZER_TEXTS or chars >= TOKENIZER_CHARS:
                    return texts
        return texts

    def _find_neighbours(self) -> Neighbours | None:
        """Words of like embedding, where copies are to be made with them: before any work that it could cost."""
        if "neighbours" not in self.config.data.augment or (self.work / "neighbours.parquet").exists():
            return None
        folder = neighbours_model(self.model).folder
        assert folder is not None
        console.say("prepare", f"looking for words of like embedding in {folder.name}")
        return Neighbours.of_model(folder)

    def _augmentation(self, rows: dict[str, int], found: Neighbours | None) -> second_pass.Augmentation | None:
        """What copies to make, if any; words of like embedding are left in the work folder for the workers."""
        data = self.config.data
        if not data.augment:
            return None
        if found is not None:
            sink = io.BytesIO()
            found.save(sink)
            (self.work / "neighbours.parquet").write_bytes(sink.getvalue())
        rates = augment.copy_rates(rows, data.augment_copies, data.augment_balance)
        per_label = [rates[label] for label in self.labels]
        return second_pass.Augmentation(data.augment, per_label, data.augment_share, self.config.seed)

    def _examples(self) -> list[dict[str, Any]]:
        """Near-duplicates for a person to look at."""
        parts = (self.work / "fallen").files(".arrow")
        every = [exchange.read_bucket(self.work / "fallen", b, near_pass.FALLEN) for b in range(self.shards) if parts]
        return near_pass.examples(self.place, pa.concat_tables(every), self.sources, self.shards) if every else []

    def _words(self) -> dict[str, Any]:
        """What words and parts of speech the classes are made of, in a sample of training rows."""
        limit = self.config.data.profile_rows
        if not limit:
            return {}
        tables: list[pa.Table] = []
        for shard in (self.place / "train").files(".parquet"):  # rows lie in shards by a hash: a few are a fair sample
            rows = read_parquet(shard)
            tables.append(rows.filter(pc.is_null(rows["augmentation"])).select(["text", "label"]))
            if sum(t.num_rows for t in tables) >= limit:
                break
        if not tables:
            return {}
        sample = pa.concat_tables(tables)
        if sample.num_rows > limit:
            sample = sample.take(pa.array(np.linspace(0, sample.num_rows - 1, limit).astype(np.int64)))
        texts, labels = one(sample["text"]), sample["label"].to_numpy()
        return {"words": words.profile(texts, labels, self.labels), "tags": tagger.profile(texts, labels, self.labels)}

    def _second_pass(self, rows: int, augmentation: second_pass.Augmentation | None) -> dict[str, Any]:
        """Finish every bucket that is not finished yet; its facts are written after its shard."""
        sources, labels, place, work, ranking = self.sources, self.labels, self.place, self.work, self._ranking()
        max_tokens, shards = self.config.model.max_tokens, self.shards

        def finish_bucket(bucket: int) -> None:
            tokenizer = _tokenizer(str(place / "tokenizer"), max_tokens)
            table = exchange.read_bucket(work / "parts", bucket)
            fallen = exchange.read_bucket(work / "fallen", bucket, near_pass.FALLEN)
            copies = augmentation
            if copies is not None and "neighbours" in copies.operations:
                copies = replace(copies, neighbours=_neighbours(str(work / "neighbours.parquet")))
            done = second_pass.finish_rows(table, sources, labels, ranking(table), tokenizer, fallen, copies)
            for folder, rows_of in done.tables.items():
                if rows_of.num_rows:
                    write_parquet(rows_of, place / folder / shard_name(bucket))
            (work / f"done-{bucket:05d}.json").write_text(json.dumps(done.facts))

        finished = {f.name for f in self.work.files(".json")}
        todo = [bucket for bucket in range(shards) if f"done-{bucket:05d}.json" not in finished]
        if len(todo) < shards:
            console.say("prepare", f"{shards - len(todo)} of {shards} shards are finished already")
        facts: dict[str, Any] = {}
        for bucket in sorted(set(range(shards)) - set(todo)):
            facts = profile.merged([facts, json.loads((work / f"done-{bucket:05d}.json").read_text())])
        with console.bar("prepare", "rows split and tokenized", rows) as progress:
            for bucket in self.layout.each(todo, finish_bucket) if todo else ():
                facts = profile.merged([facts, json.loads((work / f"done-{bucket:05d}.json").read_text())])
                progress.update(facts["read"])
        return facts
