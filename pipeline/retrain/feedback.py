"""What ``POST /v1/feedback`` has kept, read for a retraining: every row of every file."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.config import Config
from pipeline.data import clean, dedup
from pipeline.errors import UserError, first_line
from pipeline.retrain import merge
from pipeline.storage import Place


def files_of(folder: Place) -> list[Place]:
    """The files of a feedback folder, oldest first."""
    return folder.files(".parquet")


def read(files: Sequence[Place]) -> pa.Table:
    """All rows of feedback: ``id`` (file:row), ``text``, ``label``, ``received`` and, where they are known,
    ``predicted`` and ``note``.

    Raises:
        UserError: a file is damaged, or has no texts and labels.
    """
    tables = []
    for file in files:
        try:
            with file.open_random() as f:
                table = pq.ParquetFile(f).read()
            columns = {name: table[name] for name in ("text", "label")}
            for name in ("predicted", "note"):
                columns[name] = table[name] if name in table.column_names else pa.nulls(table.num_rows)
            when = table["received"] if "received" in table.column_names else pa.nulls(table.num_rows)
            arrays = [pa.array([f"{file.name}:{i}" for i in range(1, table.num_rows + 1)], pa.string())]
            arrays += [c.cast(pa.string()) for c in columns.values()]
            arrays.append(when.cast(pa.timestamp("us", tz="UTC")))
            tables.append(pa.table(arrays, names=["id", *columns, "received"]))
        except (KeyError, OSError, pa.ArrowException) as e:
            reason = str(e.args[0]) if isinstance(e, KeyError) else first_line(e)
            raise UserError(
                f"{file} is no feedback, or damaged ({reason}): mend it, or move it out of the folder"
            ) from e
    return pa.concat_tables(tables)


def cleaned(table: pa.Table, config: Config) -> tuple[list[str], list[merge.Said]]:
    """The texts of feedback, cleaned as training rows are, and the rows as the rules of ``merge`` see them."""
    raw = pc.utf8_slice_codeunits(pc.fill_null(table["text"], ""), 0, config.data.max_chars)
    rules = clean.chosen(config.data.extra_rules)
    texts: list[str] = []
    for chunk in raw.chunks:  # file by file: all in one would not fit into Arrow's 2 GiB at some point
        texts += clean.clean_column(chunk, rules).to_pylist()
    when = pc.fill_null(table["received"].cast(pa.int64()), -1).to_pylist()
    labels = [(label or "").strip() for label in table["label"].to_pylist()]
    usable = [len(text) >= config.data.min_chars and bool(label) for text, label in zip(texts, labels, strict=True)]
    keys = map(dedup.text_key, texts)
    return texts, [merge.Said(*row) for row in zip(keys, labels, when, usable, strict=True)]
