"""What is asked of the model over the wire, and what it answers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt, field_validator

from serve.errors import Refused
from serve.requests import Text, check_text, kind, read_object, validated


class Label(BaseModel):
    """One label with its probability."""

    label: str
    score: float = Field(ge=0, le=1, description="Calibrated probability; over all labels they sum to 1.")


class ClassifyRequest(BaseModel):
    """Texts to classify."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"inputs": ["Oil prices fell for a third day"], "top_k": 1}]},
    )

    inputs: str | Annotated[list[str], Field(min_length=1)] = Field(
        description="One text, or a list of texts. Texts are cleaned as they were for training."
    )
    top_k: StrictInt | None = Field(
        None, ge=1, description="How many labels to return per text, best first; null returns all."
    )
    truncation: Literal["cut", "error"] = Field(
        "cut",
        description="What happens to a text that is longer than the model reads: its beginning is classified (cut), "
        "or the request is refused with 422 (error).",
    )

    @property
    def texts(self) -> list[str]:
        """The texts, whichever way they were sent."""
        return [self.inputs] if isinstance(self.inputs, str) else self.inputs

    @field_validator("inputs", mode="before")
    @classmethod
    def _texts(cls, value: Any) -> Any:
        if isinstance(value, str):
            check_text(value, "inputs")
            return value
        if not isinstance(value, list):
            raise ValueError(f"'inputs' must be a text or a list of texts, not {kind(value)}")
        if not value:
            raise ValueError("'inputs' is an empty list: send at least one text")
        for i, item in enumerate(value):
            if not isinstance(item, str):
                raise ValueError(f"inputs[{i}] must be a text, not {kind(item)}")
            check_text(item, f"inputs[{i}]")
        return value


class ExplainRequest(BaseModel):
    """One text to explain."""

    model_config = ConfigDict(extra="forbid")

    inputs: Text = Field(description="One text, cleaned as texts were for training.")


class Word(BaseModel):
    """A word of the cleaned text, or a group of neighbours in a long one."""

    word: str
    start: int = Field(description="First character, in Unicode code points of the cleaned text.")
    end: int = Field(description="Behind the last character.")
    effect: float = Field(description="How far the probability of the label falls without it, -1 to 1.")


class NearestRow(BaseModel):
    """A training row that the network treats like the text."""

    id: str
    label: str
    text: str = Field(description="The beginning of the row.")
    similarity: float = Field(description="Cosine of the network's states, -1 to 1.")


class Explanation(BaseModel):
    """A prediction, the words that it hangs on, and training rows near it."""

    label: str
    probability: float = Field(ge=0, le=1)
    text: str = Field(description="The text after cleaning; start and end count in it.")
    words: list[Word] = Field(description="In the order of the text; what is behind the last, the model did not read.")
    nearest: list[NearestRow] = Field(description="Nearest first; empty where the checkpoint has no index.")


def parse(body: bytes, *, max_texts: int, max_text_chars: int) -> ClassifyRequest:
    """Read and check the body of a request to classify.

    Raises:
        Refused: with the status and a sentence that says what is wrong and in which item.
    """
    tree = read_object(body, "inputs")
    inputs = tree.get("inputs")
    check_count(len(inputs) if isinstance(inputs, list) else 1, max_texts)
    request = validated(ClassifyRequest, tree)
    one = isinstance(request.inputs, str)
    check_lengths({"inputs" if one else f"inputs[{i}]": text for i, text in enumerate(request.texts)}, max_text_chars)
    return request


def check_top_k(request: ClassifyRequest, labels: int) -> None:
    """Refuse to return more labels than the model that answers has."""
    if request.top_k is not None and request.top_k > labels:
        raise Refused("invalid", f"'top_k' is {request.top_k}, but the model has {labels} labels")


def parse_explain(body: bytes, *, max_text_chars: int) -> str:
    """The text of a request to explain.

    Raises:
        Refused: as ``parse``.
    """
    tree = read_object(body, "inputs")
    if isinstance(tree.get("inputs"), list):
        raise Refused("invalid", "'inputs' must be one text: explanations are made one at a time")
    text = validated(ExplainRequest, tree).inputs
    check_lengths({"inputs": text}, max_text_chars)
    return text


def check_count(count: int, most: int) -> None:
    """Refuse more texts than a request may have."""
    if count > most:
        raise Refused("too_large", f"{count} texts in one request; at most {most} are allowed")


def check_lengths(texts: dict[str, str], most: int) -> None:
    """Refuse a text of more than ``most`` characters; ``texts`` are given by what to call them."""
    for where, text in texts.items():
        if len(text) > most:
            raise Refused("too_large", f"{where} has {len(text)} characters; at most {most} are allowed")
