"""Folders of ``.txt`` files: one text each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa

from pipeline.data.config import DataConfig
from pipeline.data.parsers import CHUNK_BYTES, CHUNK_ROWS, MAX_OBJECT_CHARS, table, wanted_columns
from pipeline.data.unpack import open_text, undecodable
from pipeline.storage import Place


def read_txt_files(label: str, files: Sequence[str], config: DataConfig) -> Iterator[pa.Table]:
    """Each ``.txt`` file is one text, its folder's name the label; numbered in the order given.

    Raises:
        OSError: a file cannot be read: the text is there, and must not be lost.
    """
    first = 1
    left = iter(files)
    while first <= len(files):
        texts: list[str | None] = []
        errors: dict[int, str] = {}
        chars = 0
        while chars < CHUNK_BYTES and len(texts) < CHUNK_ROWS and (uri := next(left, None)) is not None:
            with open_text(uri, config.encoding) as stream:
                text = stream.read(MAX_OBJECT_CHARS + 1)
            wrong = undecodable(text, config.encoding)
            if len(text) > MAX_OBJECT_CHARS:
                wrong = f"longer than {MAX_OBJECT_CHARS:,} characters"
            if wrong:
                errors[len(texts)] = f"{Place.of(uri).name}: {wrong}"
            texts.append(None if wrong else text)
            chars += len(text)
        n = len(texts)
        columns = [pa.array(texts, pa.string())]
        columns += [pa.nulls(n, pa.string())] * (len(wanted_columns(config)) - 1)
        columns[len(config.text)] = pa.array([label] * n, pa.string())
        yield table(range(first, first + n), columns, errors, config)
        first += n
