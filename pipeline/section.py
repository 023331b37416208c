"""The base of every section of the configuration."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


class Section(BaseModel):
    """Base of all sections: frozen, no unknown keys, no yes or no where a number is wanted."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_yes_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML reads 'on' and 'yes' as true, which pydantic would take for 1."""
        kind = str(cls.model_fields[info.field_name or ""].annotation)
        if (
            re.search(r"\b(int|float)\b", kind)
            and "bool" not in kind
            and any(isinstance(v, bool) for v in _inside(value))
        ):
            raise ValueError("a number is wanted here, not yes or no")
        return value


def _inside(value: Any) -> Iterator[Any]:
    """A value, or those of a list or mapping."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for one in value:
            yield from _inside(one)
    else:
        yield value
