"""``POST /v1/feedback``: texts with their right labels, kept as Parquet files that ``broadsheet prepare`` reads."""

from __future__ import annotations

import asyncio
import io
import logging
import uuid
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from pipeline.config import ServeConfig
from pipeline.errors import UserError, WorkFailed
from pipeline.storage import Place
from serve.errors import Refused
from serve.keys import need_admin
from serve.requests import A_TEXT, Text, kind, read_object, receive, validated
from serve.responses import documented, documented_body, json_response
from serve.roster import Roster
from serve.schema import check_count, check_lengths

log = logging.getLogger("ray.serve")

SCHEMA = pa.schema(
    {
        "text": pa.string(),
        "label": pa.string(),
        "predicted": pa.string(),
        "model_version": pa.string(),
        "note": pa.string(),
        "received": pa.timestamp("us", tz="UTC"),
    }
)
NAMED = 20  # labels named in an error
MOST_CHARS = 16_000_000  # of texts that wait for the disk; beyond that the answer is 429


class FeedbackItem(BaseModel):
    """A text, and what it really is."""

    model_config = ConfigDict(extra="forbid")

    text: Text = Field(description="The text as it was sent to be classified.")
    label: Text = Field(description="The right label, one of the model's.")
    predicted: Annotated[str, Field(max_length=1_000), A_TEXT] | None = Field(
        None, description="The label that was given."
    )
    model_version: Annotated[str, Field(max_length=100), A_TEXT] | None = Field(
        None, description="What x-model-version said with it."
    )
    note: Annotated[str, Field(max_length=2_000), A_TEXT] | None = Field(
        None, description="Anything else worth keeping."
    )


class FeedbackItems(BaseModel):
    """Several at once."""

    model_config = ConfigDict(extra="forbid")

    items: Annotated[list[FeedbackItem], Field(min_length=1)]


class Kept(BaseModel):
    """The rows are on disk."""

    kept: int = Field(description="How many rows were written.")


class FeedbackLog:
    """Rows appended to a folder, as small files that appear whole or not at all.

    One write runs at a time; what arrives meanwhile goes into the next file together. Replicas may share a folder.
    Made for one event loop.
    """

    def __init__(self, folder: Place) -> None:
        self._folder = folder
        self._waiting: list[tuple[list[dict[str, Any]], asyncio.Future[None]]] = []
        self._chars = 0
        self._writer: asyncio.Task[None] | None = None

    async def append(self, rows: list[dict[str, Any]]) -> None:
        """Return once the rows are on disk.

        Args:
            rows: dicts with the columns of ``SCHEMA``.

        Raises:
            Refused: too many are waiting, or they cannot be written.
        """
        chars = _chars(rows)
        if self._chars and self._chars + chars > MOST_CHARS:
            raise Refused("overloaded", "too much feedback waits to be written", {"retry-after": "1"})
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((rows, done))
        self._chars += chars
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write_all())
        await done

    async def close(self) -> None:
        """Wait for what is being written."""
        if self._writer is not None:
            await self._writer

    async def _write_all(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            rows = [row for part, _ in batch for row in part]
            failure: Refused | None = None
            try:
                await asyncio.to_thread(write, self._folder, rows)
            except Exception:  # whatever it is, somebody waits for an answer
                log.exception("feedback could not be written to serve.feedback=%s", self._folder)
                message = "the feedback could not be written and is not kept: the server's log says why"
                failure = Refused("unavailable", message)
            finally:
                self._chars -= _chars(rows)
            for _, done in batch:
                if done.done():  # the client hung up
                    continue
                if failure is None:
                    done.set_result(None)
                else:
                    done.set_exception(failure)


def _chars(rows: Sequence[dict[str, Any]]) -> int:
    return sum(len(value) for row in rows for value in row.values() if isinstance(value, str))


def write(folder: Place, rows: Sequence[dict[str, Any]]) -> Place:
    """Write rows as one file with a name of its own, and return it."""
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows), SCHEMA), sink, compression="zstd")
    file = folder / f"feedback-{datetime.now(timezone.utc):%Y%m%dT%H%M%S}-{uuid.uuid4().hex}.parquet"
    file.write_bytes(sink.getvalue())
    return file


def prepare(folder: str) -> Place:
    """The folder of ``serve.feedback``, made and tried.

    Raises:
        UserError: nothing can be written there.
    """
    try:
        place = Place.of(folder)
        place.mkdir()
        trial = place / f".trial-{uuid.uuid4().hex}"
        trial.write_bytes(b"")
        trial.delete()
    except (OSError, UserError, WorkFailed) as e:
        raise UserError(f"serve.feedback: cannot write to {folder} ({e}): choose another folder") from e
    return place


def parse(body: bytes, *, labels: Sequence[str], max_texts: int, max_text_chars: int) -> list[FeedbackItem]:
    """The items of a request, one or several.

    Raises:
        Refused: with the status and a sentence that says what is wrong and in which item.
    """
    tree = read_object(body, "text")
    given: list[Any] = [tree]
    if several := "items" in tree:
        given = tree["items"]
        if not isinstance(given, list):
            raise Refused("invalid", f"'items' must be a list of objects, not {kind(given)}")
        if len(tree) > 1:
            raise Refused("invalid", "send either 'items' or the fields of one item, not both")
        if not given:
            raise Refused("invalid", "'items' is an empty list: send at least one item")
        check_count(len(given), max_texts)
    items = []
    for i, one in enumerate(given):
        where = f"items[{i}]" if several else ""
        prefix = f"{where}: " if several else ""
        if not isinstance(one, dict):
            raise Refused("invalid", f"{where} must be an object, not {kind(one)}")
        item = validated(FeedbackItem, one, where)
        check_lengths({f"{prefix}'text'": item.text}, max_text_chars)
        if not item.text.strip():
            raise Refused("invalid", f"{prefix}'text' is empty")
        if item.label not in labels:
            named = ", ".join(f"'{label}'" for label in labels[:NAMED])
            more = f" and {len(labels) - NAMED} more" if len(labels) > NAMED else ""
            shown = item.label if len(item.label) <= 80 else item.label[:80] + "…"
            raise Refused("invalid", f"{prefix}'label' is '{shown}', which the model does not have: {named}{more}")
        items.append(item)
    return items


def add_route(app: FastAPI, roster: Roster, config: ServeConfig, max_texts: int) -> FeedbackLog | None:
    """``POST /v1/feedback``; returns the log, if one is kept."""
    kept = FeedbackLog(Place.of(config.feedback)) if config.feedback else None

    def read(body: bytes) -> list[FeedbackItem]:
        labels = list(dict.fromkeys(label for model in roster.loaded for label in model.engine.labels))
        return parse(body, labels=labels, max_texts=max_texts, max_text_chars=config.max_text_chars)

    @app.post(
        "/v1/feedback",
        summary="Say what a text really is",
        response_model=Kept,
        responses=documented("forbidden")
        | documented(
            "bad_request", "not_found", "timeout", "too_large", "invalid", "overloaded", "internal", "unavailable"
        ),
        openapi_extra=documented_body(
            {"anyOf": [_schema(FeedbackItem), _schema(FeedbackItems)]},
            f"One item, or up to {max_texts} below 'items'. The content type must be application/json.",
        ),
    )
    async def feedback(request: Request) -> Response:
        if kept is None:
            raise Refused("not_found", "no feedback is kept here: start the server with --set serve.feedback=FOLDER")
        need_admin(request)
        # A page of another site can make a browser post a form or plain text here, but not JSON.
        if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
            raise Refused("bad_request", "send the header 'content-type: application/json'")
        items = await receive(request, config, read)
        received = datetime.now(timezone.utc)
        await kept.append([item.model_dump() | {"received": received} for item in items])
        roster.metrics.feedback(len(items))
        return json_response({"kept": len(items)})

    return kept


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    """A schema that stands alone: references into its own definitions would point nowhere inside the document."""
    tree = model.model_json_schema()
    definitions = tree.pop("$defs", {})
    if definitions:
        tree["properties"]["items"]["items"] = definitions["FeedbackItem"]
    return tree
