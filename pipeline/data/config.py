"""The ``data`` section of the configuration: where rows come from and how they are read, cleaned and split."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pipeline.section import Section


class DataConfig(Section):
    """Where the rows come from and how they are read, cleaned and split."""

    dataset: Literal["auto", "files", "ag_news", "reuters8", "reuters52", "newsgroups20"] = Field(
        "auto",
        description="Named data set; 'files' reads data.train; 'auto' takes ag_news if it can be had, else reuters8.",
    )
    train: tuple[str, ...] = Field((), description="Files, globs or URIs of labelled rows (flag --data).")
    validation: tuple[str, ...] = Field((), description="Validation files; empty: split off by a hash of the text.")
    test: tuple[str, ...] = Field((), description="Test files; empty: split off by a hash of the text.")
    format: Literal["auto", "csv", "tsv", "tab", "json", "jsonl", "parquet"] = Field(
        "auto", description="How the files are written; 'auto' goes by the file name."
    )
    encoding: str = Field("utf-8", description="Character encoding of text files, e.g. utf-8 or gb18030.")
    columns: tuple[str, ...] = Field((), description="Column names of csv/tsv files that have no header line.")
    text: tuple[str, ...] = Field(("text",), min_length=1, description="Text columns, joined in this order.")
    label: str = Field("label", description="The label column.")
    labels: tuple[str, ...] = Field((), description="Names for integer labels, the first for labels_start.")
    labels_start: int = Field(0, ge=0, description="The integer that the first entry of data.labels names.")
    validation_fraction: float = Field(
        0.1, gt=0, lt=0.5, description="Share of rows for validation when no file is given."
    )
    test_fraction: float = Field(0.1, gt=0, lt=0.5, description="Share of rows for the test when no file is given.")
    fill_from: str = Field("", description="Column whose text stands in where the text columns are blank; '': none.")
    placeholder: str = Field(
        "", description="Text that stands in where it is still missing; '': such rows are rejected."
    )
    extra_rules: tuple[
        Literal["width", "nfkc", "agencies", "emails", "mask_emails", "urls", "mask_urls", "ips", "mask_ips"], ...
    ] = Field((), description="Optional cleaning rules: width, nfkc, agencies, [mask_]emails, [mask_]urls, [mask_]ips.")
    corrections: str = Field(
        "", description="A csv of row ids and labels to use instead ('suggested'; empty: drop the row); '': none."
    )
    conflicts: Literal["keep", "majority", "drop"] = Field(
        "keep", description="Equal texts under several labels: keep the first, the majority's label, or none."
    )
    near_duplicates: Literal["drop", "leaks", "keep"] = Field(
        "drop", description="Nearly equal texts: drop all but one, those near a row of another split (leaks), or none."
    )
    near_threshold: float = Field(
        0.7, ge=0.3, le=0.95, description="Jaccard similarity of n-gram sets from which texts are nearly equal."
    )
    near_ngram: int = Field(2, ge=1, le=10, description="Units (words; Chinese characters) of an n-gram.")
    min_chars: int = Field(2, ge=1, description="Shorter texts (after cleaning) are rejected as too short.")
    max_chars: int = Field(
        200_000, ge=10, description="Longer texts are cut here before cleaning; the report counts them."
    )
    augment: tuple[Literal["delete", "swap", "typo", "neighbours"], ...] = Field(
        (), description="Changed copies of training rows by: delete, swap, typo, neighbours (for topics); empty: none."
    )
    augment_copies: float = Field(
        1.0,
        ge=0,
        le=10,
        description="Copies of each training row; 0.5: of half of them; 0 with balance: small classes.",
    )
    augment_share: float = Field(0.1, gt=0, le=1, description="Share of a text's words that a copy changes.")
    augment_balance: bool = Field(
        False, description="More copies for smaller classes, up to the largest's size, at most 10 of a row."
    )
    gate_reject_rate: tuple[float, float] = Field(
        (0.05, 0.5), description="Share of rejected rows above which training is warned of, and refused."
    )
    gate_class_rows: tuple[int, int] = Field(
        (20, 0), description="Training rows of the smallest class below which it is warned of, and refused."
    )
    gate_balance: tuple[float, float] = Field(
        (20.0, 10_000.0), description="Rows of the largest class per row of the smallest: warned of, and refused."
    )
    gate_leak_rate: tuple[float, float] = Field(
        (0.01, 1.0), description="Training rows found in held-out splits (they are dropped), per held-out row."
    )
    gate_conflict_rate: tuple[float, float] = Field(
        (0.01, 0.2),
        description="Share of rows equal or nearly equal under several labels: warned of, and refused.",
    )
    profile_rows: int = Field(
        10_000, ge=0, description="Training rows whose words and parts of speech are profiled, a sample; 0: none."
    )
    in_process_mb: int = Field(
        64, ge=0, description="Raw megabytes up to which rows are prepared in one process, without starting Ray."
    )
    shard_mb: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Raw megabytes per prepared shard; fixes how many shards there are. null: 16, and more where there "
        "would be over 1,024 of them.",
    )

    @model_validator(mode="after")
    def _names_of_integers(self) -> DataConfig:
        for i, name in enumerate(self.labels, self.labels_start):
            if name.lstrip("-").isdecimal() and int(name) != i:
                raise ValueError(
                    f"labels calls the integer {i} '{name}', which is the integer of another class: leave data.labels "
                    "out where integers are the labels, name classes in words, or set data.labels_start to the first"
                )
        return self
