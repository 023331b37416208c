"""Object stores: an S3 client with bounded patience, and what a store answers as one sentence.

``UserError`` where the request is wrong: no such bucket, no access, nothing listens there. ``WorkFailed`` where a
store that had answered this process stops doing so: then what is finished must be kept.
"""

from __future__ import annotations

import fnmatch
import functools
import io
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qsl

from pyarrow import fs

from pipeline.errors import UserError, WorkFailed

REMOTE = ("s3://", "gs://", "gcs://", "hf://")
# How often a request to S3 is tried, with growing pauses in between (about 7 s in all at most), and how many
# seconds a connection may take to come about: a store that does not answer is told of in half a minute.
S3_ATTEMPTS = 4
S3_CONNECT_SECONDS = 5
# Bytes asked for at once: each read is a request, and readers of text ask for a few kilobytes.
REMOTE_BUFFER = 4 << 20
# Options at the end of a URI. Any other question mark is a wildcard or belongs to the name.
_OPTIONS = re.compile(r"\?(?:endpoint_override|region|scheme)=[^?]*$")
_AWS_ERROR = re.compile(r"AWS Error (\w+)")
_DENIED = ("ACCESS_DENIED", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH", "INVALID_CLIENT_TOKEN_ID")
_TROUBLE = ("SLOW_DOWN", "INTERNAL_FAILURE", "SERVICE_UNAVAILABLE", "THROTTLING", "REQUEST_TIMEOUT")  # the store's own
_answered: set[tuple[str, str]] = set()  # endpoints and buckets that have answered this process


def is_remote(uri: str) -> bool:
    """Whether ``uri`` names an object store rather than a local path."""
    return uri.startswith(REMOTE)


def split(uri: str) -> tuple[str, str]:
    """A URI without its options, and these."""
    found = _OPTIONS.search(uri) if is_remote(uri) else None
    return (uri[: found.start()], found[0]) if found else (uri, "")


@functools.lru_cache(maxsize=16)
def s3(bucket: str, options: str, aws: tuple[tuple[str, str], ...]) -> fs.FileSystem:
    """The client for a bucket. ``aws`` are the AWS variables: other credentials mean another client.

    It is built here rather than by ``FileSystem.from_uri`` since that knows neither retries nor timeouts.
    """
    if "@" in bucket:
        raise UserError(
            "an s3:// URI with credentials in it ends up in logs and manifests: set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY instead, and write s3://bucket/folder"
        )
    environment, chosen = dict(aws), dict(parse_qsl(options[1:]))
    endpoint = _endpoint(options, environment)
    scheme, host = endpoint.split("://", 1) if "://" in endpoint else ("https", endpoint)
    region = chosen.get("region")
    default = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")
    if not region and endpoint:
        region = default or "us-east-1"  # named, lest the SDK asks the metadata service of a cloud machine
    elif not region:
        try:
            region = fs.resolve_s3_region(bucket)
        except OSError as e:
            if not default or "not found" in str(e):
                raise
            region = default  # a network that leads to that region's endpoint only
    return fs.S3FileSystem(
        region=region,
        scheme=chosen.get("scheme", scheme),
        endpoint_override=host.rstrip("/") or None,
        connect_timeout=S3_CONNECT_SECONDS,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=S3_ATTEMPTS),
        allow_delayed_open=True,  # small files become one PUT
    )


def _endpoint(options: str, environment: Mapping[str, str]) -> str:
    """Where S3 is spoken, '' for Amazon's own."""
    named = dict(parse_qsl(options[1:])).get("endpoint_override")
    return named or environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL") or ""


@contextmanager
def in_words(uri: str, contact: bool = True) -> Iterator[None]:
    """What an object store answers, as one sentence that names the URI and the way out.

    Args:
        uri: a place; of local ones the errors stay as they are.
        contact: whether what is done asks the store, so that its end shows that the store answers.
    """
    if not is_remote(uri):
        yield
        return
    path, options = split(uri)
    store = (_endpoint(options, os.environ), path.split("/")[2])
    try:
        yield
    except (OSError, ValueError) as e:
        raise _sentence(uri, store, e) from e
    if contact:
        _answered.add(store)


class Steady(io.RawIOBase):
    """A file in an object store, of which a piece is asked for again when the connection breaks in the middle of it.

    The retries of the S3 client do not cover that: what has arrived cannot be taken back from its buffer.
    """

    def __init__(self, uri: str, file: Any) -> None:
        self._uri, self._file = uri, file
        self._position, self._size = 0, int(file.size())

    def read(self, size: int | None = -1) -> bytes:
        """As of a file.

        Raises:
            WorkFailed: the store stopped working.
        """
        left = max(0, self._size - self._position)
        size = left if size is None or size < 0 else min(size, left)
        with in_words(self._uri):
            for attempt in range(S3_ATTEMPTS):
                try:
                    self._file.seek(self._position)
                    data: bytes = self._file.read(size) if size else b""
                    break
                except OSError:
                    if attempt == S3_ATTEMPTS - 1:
                        raise
                    time.sleep(0.2 * 2**attempt)
        self._position += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        """As of a raw file."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        """As of a raw file, but in one request."""
        return self.read()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As of a file."""
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        return self._position

    def tell(self) -> int:
        """As of a file."""
        return self._position

    def readable(self) -> bool:
        """As of a file."""
        return True

    def seekable(self) -> bool:
        """As of a file."""
        return True

    def close(self) -> None:
        """As of a file."""
        if not self.closed:
            self._file.close()
        super().close()


def _sentence(uri: str, store: tuple[str, str], error: Exception) -> UserError | WorkFailed:
    text = str(error).split(" (Request ID")[0].split("; Details")[0].replace("\n", " ")
    found = _AWS_ERROR.search(text)
    code = found[1] if found else ""
    at, bucket = store
    where = f" at {at}" if at and uri.startswith("s3://") else ""
    if isinstance(error, FileNotFoundError):
        return UserError(f"no such file: {uri}")
    if code == "NO_SUCH_BUCKET" or "InvalidBucketName" in text or re.search(r"[Bb]ucket '.*' not found", text):
        return UserError(f"{uri}: there is no bucket '{bucket}'{where}: correct the name, or make the bucket first")
    if code in _DENIED or "HTTP status 403" in text:
        return UserError(
            f"{uri}: the store{where} refuses access ({code}): check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY or "
            "AWS_PROFILE on every node, and what they may do in this bucket"
        )
    if store in _answered or code in _TROUBLE:
        return WorkFailed(
            f"{uri}: the store{where} stopped working ({text}). What is finished is kept: run the same command again"
        )
    if code and code != "NETWORK_CONNECTION":
        hint = "check the name, the region (?region=) and the credentials, which may have expired"
        return UserError(f"{uri}: cannot use this storage{where} ({text}): {hint}")
    hint = " and AWS_ENDPOINT_URL" if uri.startswith("s3://") else ""
    return UserError(f"{uri}: cannot reach this storage{where} ({text}): check the name, the network{hint}")


def matches(path: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether the parts of a name match those of a pattern as ``glob`` understands it: only ``**`` crosses folders."""
    if not pattern:
        return not path
    hidden = bool(path) and path[0].startswith(".")
    if pattern[0] == "**":
        return matches(path, pattern[1:]) or (bool(path) and not hidden and matches(path[1:], pattern))
    if not path or (hidden and not pattern[0].startswith(".")):
        return False
    return fnmatch.fnmatchcase(path[0], pattern[0]) and matches(path[1:], pattern[1:])
