"""Dirty lines: what each costs, and that line numbers stay right."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import lines as module
from pipeline.data.lines import MAX_RECORD_LINES, NEVER_CLOSED, BreaksOff, delimited, line_blocks

Record = tuple[int, "list[str] | None", "str | None"]


def records(text: str, delimiter: str = ",", quoted: bool = True) -> list[Record]:
    got: list[Record] = []
    for block in delimited(line_blocks(io.StringIO(text, newline="")), delimiter, quoted):
        got += [(n, row, None) for n, row in zip(block.numbers, block.rows, strict=True)]
        got += [(n, None, reason) for n, reason in block.bad]
    return sorted(got, key=lambda r: r[0])


def test_quoted_fields_may_span_lines_and_blank_lines_are_no_records() -> None:
    assert records('a,b\r\n\r\n"one\ntwo","say ""hi"""\n\nc,d') == [
        (1, ["a", "b"], None),
        (3, ["one\ntwo", 'say "hi"'], None),
        (6, ["c", "d"], None),
    ]


@pytest.mark.parametrize("after", [["x,y", "p,q"], ['"x","y"', '"p","q"'], ['"x",y', "p,q"]])
def test_stray_quote_costs_its_own_line_only(after: list[str]) -> None:
    got = records("\n".join(["a,b", '1,"never closed', *after]))
    assert got[0] == (1, ["a", "b"], None)
    assert got[1][:2] == (2, None)
    assert got[1][2]
    assert got[2:] == [(3, ["x", "y"], None), (4, ["p", "q"], None)]


def test_text_after_a_closing_quote_costs_its_line_only() -> None:
    got = records('1,"a"b\n2,"c"\n')
    assert [(line, fields) for line, fields, _ in got] == [(1, None), (2, ["2", "c"])]


def test_a_quote_is_given_up_after_so_many_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_RECORD_LINES", 3)
    got = records('"open\n' + "a,b\n" * 10)
    assert got[0] == (1, None, NEVER_CLOSED)
    assert [line for line, fields, _ in got[1:] if fields == ["a", "b"]] == list(range(2, 12))


def test_a_long_record_that_is_closed_and_has_the_fields_of_the_first_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    letter = "Dear Sir\n" + "one, two\nthree\nfour\n" * MAX_RECORD_LINES
    text = f'text,label\n"{letter}",a\n'
    assert records(text) == [(1, ["text", "label"], None), (2, [letter, "a"], None)]
    assert records(text + "b,c\n")[-1] == (letter.count("\n") + 3, ["b", "c"], None)
    titled = f'label,title,text\n0,"a"x,b\na,"{letter}","{letter}"\n'  # a field ends and another one begins on a line
    assert [fields for _, fields, _ in records(titled)] == [["label", "title", "text"], None, ["a", letter, letter]]
    swallowed = "label,text\n1,Unclosed\n" + '1,"headline\n' + "1,one\n" * 2 * MAX_RECORD_LINES + '2,it measures 15"\n'
    assert len(records(swallowed)) == 4 + 2 * MAX_RECORD_LINES
    stray = f'text,label\n"{letter}"\nb,c\n'  # nothing says which of the two quotation marks belongs there
    assert records(stray)[1][2] == NEVER_CLOSED
    monkeypatch.setattr(module, "LONG_RECORD_CHARS", 1_000)
    assert records(text)[1][2] == NEVER_CLOSED


def test_unquoted_takes_quotation_marks_as_they_are() -> None:
    assert records('"a\tb"c\n', "\t", quoted=False) == [(1, ['"a', 'b"c'], None)]


def test_too_long_line_is_skipped_and_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LINE_CHARS", 5)
    got = records("a,b\n" + "x" * 23 + "\nc,d\nlong,long")
    assert [(line, fields) for line, fields, _ in got] == [(1, ["a", "b"]), (2, None), (3, ["c", "d"]), (4, None)]
    assert got[1][2] == "line longer than 5 characters"


@given(st.text(alphabet='a,"\n\r\x00 ', max_size=60), st.integers(1, 20), st.sampled_from([2, 5_000]))
@settings(max_examples=500, deadline=None)
def test_block_ends_change_nothing(text: str, size: int, most: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MAX_RECORD_LINES", most)
        whole = records(text)
        patch.setattr(module, "BLOCK_CHARS", size)
        assert records(text) == whole


@given(st.text(alphabet="a,\n\r", max_size=60), st.integers(1, 20))
@settings(max_examples=300, deadline=None)
def test_long_lines_are_the_same_ones_in_any_blocks(text: str, size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MAX_LINE_CHARS", 6)
        whole = records(text)
        patch.setattr(module, "BLOCK_CHARS", size)
        assert records(text) == whole


@given(st.text(alphabet='a,"\n\r\x00 ', max_size=60))
@settings(deadline=None)
def test_any_text_is_parsed_in_rising_lines(text: str) -> None:
    numbers = [line for line, _, _ in records(text)]
    assert numbers == sorted(set(numbers))


@given(st.lists(st.lists(st.text(alphabet="ab, 好", min_size=1), min_size=2, max_size=3), max_size=8))
@settings(deadline=None)
def test_well_formed_rows_survive(rows: list[list[str]]) -> None:
    text = "".join(",".join(f'"{v}"' for v in row) + "\n" for row in rows)
    assert [fields for _, fields, _ in records(text)] == rows


def alone(line: str, width: int) -> bool:
    """Whether a line is a record by itself."""
    try:
        return len(next(csv.reader([line], strict=True))) == width
    except csv.Error:
        return False


def one_by_one(text: str, most: int) -> list[Record]:
    """What records are, without regard to time: each begins where the one before ended, and is as short as can be."""
    lines = io.StringIO(text, newline="").readlines()
    got: list[Record] = []
    at = 0
    while at < len(lines):
        parser = csv.reader(lines[at:], strict=True)
        try:
            fields, wrong = next(parser), None
        except csv.Error as e:
            fields, wrong = [], str(e)
        width = next((len(row) for _, row, _ in got if row), None)
        many = parser.line_num > most and not wrong
        if many and len(fields) == width:
            many = 2 * sum(alone(line, width) for line in lines[at + 1 : at + parser.line_num]) >= parser.line_num
        if many or (wrong and "unexpected end of data" in wrong):
            wrong = NEVER_CLOSED
        if wrong or fields:
            got.append((at + 1, None if wrong else fields, wrong))
        at += 1 if wrong else parser.line_num
    return got


@given(st.text(alphabet='a,"\n\r ', max_size=80), st.sampled_from([1, 2, 3, 1_000]))
@settings(max_examples=500, deadline=None)
def test_broken_records_are_those_of_a_reader_that_takes_its_time(text: str, most: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MAX_RECORD_LINES", most)
        assert records(text) == one_by_one(text, most)


@pytest.mark.parametrize("line", ['k",p,"m\n', '"x,y\n', 'a"b,"\n', '"\n', '"" "\n'])
def test_quotation_marks_that_stay_open_do_not_make_lines_be_read_again_and_again(
    line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    n, reader, read = 4 * MAX_RECORD_LINES, csv.reader, 0

    def counting(lines: Iterable[str], **options: Any) -> Any:
        def each() -> Iterator[str]:
            nonlocal read
            for text in lines:
                read += 1
                yield text

        return reader(each(), **options)

    monkeypatch.setattr(module.csv, "reader", counting)
    got = records(line * n)
    assert len(got) >= n // 2
    assert read < 12 * n


def test_a_break_takes_the_open_record_with_it() -> None:
    class Damaged(io.StringIO):
        broken = "the rest is lost"

    for text, rows, number in (
        ("a,b\nc,d\ne", [["a", "b"], ["c", "d"]], 3),
        ("a,b\nc,d\n", [["a", "b"], ["c", "d"]], 3),
        ('a,b\nc,"d\ne,f\ng,h\n', [["a", "b"]], 2),
        ("", [], 1),
    ):
        got: list[list[str]] = []
        blocks = delimited(line_blocks(Damaged(text, newline="")), ",", True)
        with pytest.raises(BreaksOff, match="the file breaks off here: the rest is lost") as caught:
            got.extend(row for block in blocks for row in block.rows)
        assert (got, caught.value.row) == (rows, number)
