"""Archives and Parquet files that are damaged or break off, and disks that fail: what is whole is read."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import json
import random
import zlib
from functools import partialmethod
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reading import read_rows

from pipeline.config import load
from pipeline.data.read import Source, check, format_of, read
from pipeline.errors import UserError, WorkFailed
from pipeline.storage import Place


@pytest.mark.parametrize("suffix", ["gz", "zst", "bz2"])
def test_compressed_files(tmp_path: Path, suffix: str) -> None:
    kind = {"gz": "gzip", "zst": "zstd", "bz2": "bz2"}[suffix]
    generator = random.Random(1)
    rows = "".join(f"{generator.getrandbits(400):x},{i % 2}\n" for i in range(20_000))
    path = tmp_path / f"x.csv.{suffix}"
    with pa.output_stream(path, compression=kind) as f:
        f.write(f"text,label\n{rows}".encode())
    assert format_of(str(path), "auto") == "csv"
    whole = read_rows(path, "csv")
    assert len(whole) == 20_000
    archive = path.read_bytes()
    for damage in (archive[:-2000], archive[:-400_000] + b"\xff" * 50 + archive[-400_000:]):
        path.write_bytes(damage)
        got = read_rows(path, "csv")
        assert 2_000 < len(got) < 20_000
        assert (got[-1][3] or "").startswith("the file breaks off here")
        sure = min(len(got) - 1, 10_000)  # decompressors can take damage for text at first
        assert got[:sure] == whole[:sure]
        if kind != "zstd":
            lines = before_the_damage(damage, kind).count(b"\n")
            assert len(got) == lines, "every line that can be decompressed, and the one where it breaks off"
    path.write_bytes(b"text,label\na,b\n")
    with pytest.raises(UserError, match=f"is not a {kind} file"):
        read_rows(path, "csv")


def before_the_damage(archive: bytes, kind: str) -> bytes:
    """What the standard library can decompress of it: block by block, then byte by byte in the block that breaks."""
    content, at = bytearray(), 0
    for step in (4_096, 1):
        decompressor: Any = zlib.decompressobj(31) if kind == "gzip" else bz2.BZ2Decompressor()
        content = bytearray(decompressor.decompress(archive[:at]))
        with contextlib.suppress(OSError, zlib.error):
            while at < len(archive):
                content += decompressor.decompress(archive[at : at + step])
                at += step
    return bytes(content)


@pytest.mark.parametrize(("name", "first"), [("x.csv.gz", 2), ("x.jsonl.gz", 1), ("x.json.gz", 1)])
def test_a_small_archive_that_breaks_off_gives_its_first_rows(tmp_path: Path, name: str, first: int) -> None:
    generator = random.Random(2)
    rows = [{"text": f"{generator.getrandbits(200):x}", "label": "ab"[i % 2]} for i in range(50)]
    if name == "x.csv.gz":
        content = "text,label\n" + "".join(f'"{r["text"]}",{r["label"]}\n' for r in rows)
    else:
        content = json.dumps(rows) if name == "x.json.gz" else "".join(json.dumps(r) + "\n" for r in rows)
    path = tmp_path / name
    archive = gzip.compress(content.encode())
    format = format_of(str(path), "auto")
    for cut in (len(archive) - 1, len(archive) - 9, len(archive) // 2, 200):
        path.write_bytes(archive[:cut])
        got = read_rows(path, format)
        assert [r[1] for r in got[:-1]] == [r["text"] for r in rows[: len(got) - 1]]
        assert [r[0] for r in got] == list(range(first, first + len(got)))
        assert (got[-1][3] or "").startswith("the file breaks off here: ")
    assert len(got) > 1
    for cut in (12, 30):
        path.write_bytes(archive[:cut])
        with pytest.raises(UserError, match=r"x\.\w+\.gz.*(damaged|none of its first)"):
            read_rows(path, format)


def test_a_disk_that_fails_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell() > 80_000:
                raise OSError(5, "zlib: the disk says no")
            return super().read(size)

    generator = random.Random(2)
    text = "text,label\n" + "".join(f"{generator.getrandbits(400):x},{i % 2}\n" for i in range(3_000))
    (tmp_path / "x.csv.gz").write_bytes(gzip.compress(text.encode()))
    table = pa.table({"text": text.split("\n")[1:-1], "label": [1] * 3_000})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=500)
    for name, format in (("x.csv.gz", "csv"), ("x.parquet", "parquet")):
        content, config = (tmp_path / name).read_bytes(), load().data
        source = Source(str(tmp_path / name), name, "train", format, len(content))
        check(source, config)
        with monkeypatch.context() as patch:
            for opener in ("open_input", "open_random"):
                patch.setattr(Place, opener, lambda self, content=content: Failing(content))
            if format == "parquet":  # whose footer, read first, lies at the end
                patch.setattr(Failing, "read", partialmethod(fail_before, len(content) - 20_000))
            with pytest.raises(WorkFailed, match=r"x\.\w+.* cannot be read: .*the disk says no"):
                list(read(source, config))


def fail_before(file: io.BytesIO, limit: int, size: int | None = -1) -> bytes:
    if file.tell() < limit:
        raise OSError(5, "the disk says no")
    return io.BytesIO.read(file, size)


def test_a_damaged_row_group_costs_its_own_rows_and_each_is_accounted_for(tmp_path: Path) -> None:
    generator = random.Random(2)
    rows = [f"{generator.getrandbits(400):x}" for _ in range(3_000)]
    path = tmp_path / "x.parquet"
    for compression in ("zstd", "snappy"):
        table = pa.table({"text": rows, "label": ["ab"[i % 2] for i in range(3_000)]})
        pq.write_table(table, path, compression=compression, row_group_size=1_000, data_page_size=16_000)
        whole = read_rows(path, "parquet")
        content, metadata = bytearray(path.read_bytes()), pq.ParquetFile(path).metadata
        for group, share in ((1, 0.0), (1, 0.7), (2, 0.5)):
            column = metadata.row_group(group).column(0)
            start = column.dictionary_page_offset or column.data_page_offset
            at = int(start + share * column.total_compressed_size)
            path.write_bytes(content[:at] + b"\xff" * 200 + content[at + 200 :])
            got = read_rows(path, "parquet")
            assert [r[0] for r in got] == list(range(1, 3_001))
            bad = [r for r in got if r[3]]
            assert 0 < len(bad) <= 1_000
            assert all((r[3] or "").startswith(f"row group {group} is damaged: ") for r in bad)
            numbers = {r[0] for r in bad}
            assert {(n - 1) // 1_000 for n in numbers} == {group}
            assert [r for r in got if not r[3]] == [r for r in whole if r[0] not in numbers]
        path.write_bytes(content[:-8] + b"\xff\xff\x00\x00PAR1")
        with pytest.raises(UserError, match=r"x\.parquet is not a Parquet file, or its footer is damaged"):
            read_rows(path, "parquet")
