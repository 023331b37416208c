"""The prepared data as the later stages see it: a folder with a manifest, label names and Parquet shards."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import UserError
from pipeline.storage import Place

FORMAT = 3


@dataclass(frozen=True)
class Tokens:
    """One split in memory: ids of all rows end to end.

    Attributes:
        ids: [tokens] int32.
        offsets: [rows + 1] int64; row i is ``ids[offsets[i]:offsets[i + 1]]``.
        labels: [rows] int64.
    """

    ids: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each row, [rows]."""
        return np.diff(self.offsets)

    def take(self, rows: npt.NDArray[np.int64]) -> Tokens:
        """A copy of some rows, in this order."""
        lengths = self.lengths[rows]
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        at = np.arange(offsets[-1]) + np.repeat(self.offsets[rows] - offsets[:-1], lengths)
        return Tokens(self.ids[at], offsets, self.labels[rows])


@dataclass(frozen=True)
class Prepared:
    """Prepared data that is complete (it has a manifest)."""

    place: Place
    manifest: dict[str, Any]
    labels: list[str]
    profile: dict[str, Any]

    @classmethod
    def open(cls, where: str | Path | Place) -> Prepared:
        """Open a prepared folder.

        Raises:
            UserError: it is not one, or it was never finished.
        """
        place = Place.of(where)
        if not (place / "manifest.json").exists():
            raise UserError(f"{place} is not prepared data (no manifest.json): make it with 'broadsheet prepare'")
        manifest = json.loads((place / "manifest.json").read_text())
        if manifest.get("format") != FORMAT:
            raise UserError(f"{place} was written by another version of Broadsheet: run 'broadsheet prepare' again")
        labels = json.loads((place / "labels.json").read_text())
        profile = json.loads((place / "profile.json").read_text())
        return cls(place, manifest, labels, profile)

    @property
    def fingerprint(self) -> str:
        """The name of the folder's content."""
        return str(self.manifest["fingerprint"])

    @property
    def ledger(self) -> dict[str, Any]:
        """rows read = kept + rejected + duplicates."""
        return dict(self.manifest["ledger"])

    def rows(self, split: str) -> int:
        """Rows of a split, changed copies among them."""
        copies = sum(self.ledger["augmented"].values()) if split == "train" else 0
        return int(self.ledger["kept"][split]) + copies

    def shards(self, split: str) -> list[Place]:
        """The Parquet files of a split (or of 'rejected' or 'duplicates')."""
        return (self.place / split).files(".parquet")

    def table(self, split: str, columns: list[str] | None = None) -> pa.Table:
        """All rows of a split, shard after shard."""
        tables = []
        for shard in self.shards(split):
            with shard.open_random() as f:
                tables.append(pq.ParquetFile(f).read(columns=columns))
        if not tables:
            raise UserError(f"{self.place} has no {split} rows")
        return pa.concat_tables(tables)

    def tokens(self, split: str) -> Tokens:
        """Token ids and labels of a split in memory (4 bytes per token)."""
        table = self.table(split, ["label", "input_ids"])
        lists = table["input_ids"].cast(pa.large_list(pa.int32())).combine_chunks()
        if isinstance(lists, pa.ChunkedArray):
            lists = lists.chunk(0)
        offsets = lists.offsets.to_numpy()
        values = lists.values.to_numpy()
        return Tokens(values, offsets.astype(np.int64), table["label"].to_numpy().astype(np.int64))


@dataclass(frozen=True)
class Head(Prepared):
    """The same data, of each split only the first shards, as many as hold ``enough`` rows.

    Rows lie in shards by a hash of their text: the first ones are a fair sample.
    """

    enough: int = 0

    @classmethod
    def of(cls, prepared: Prepared, enough: int) -> Head:
        """A view of prepared data."""
        return cls(prepared.place, prepared.manifest, prepared.labels, prepared.profile, enough)

    def shards(self, split: str) -> list[Place]:
        """The first Parquet files of a split."""
        chosen: list[Place] = []
        rows = 0
        for shard in super().shards(split):
            if rows >= self.enough:
                break
            with shard.open_random() as f:
                rows += pq.ParquetFile(f).metadata.num_rows
            chosen.append(shard)
        return chosen


def digest(*parts: str) -> str:
    """A short hexadecimal fingerprint of strings, in order."""
    return hashlib.blake2b("\x1f".join(parts).encode(), digest_size=8).hexdigest()
