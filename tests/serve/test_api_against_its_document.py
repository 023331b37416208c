"""The API against its own OpenAPI document: whatever fits the document, and whatever does not, is answered as it says.

schemathesis makes the requests; no answer may be a 5xx or of a status, type or shape that the document does not name.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from serve_fakes import FakeEngine

from pipeline.config import ServeConfig
from serve.api import build_api

EXAMPLES = 40
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
DOCUMENT = schemathesis.openapi.from_dict(build_api(FakeEngine(), ServeConfig(feedback="feedback")).openapi())
OPERATIONS = {operation.label: operation for operation in (found.ok() for found in DOCUMENT.get_all_operations())}


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder = tmp_path_factory.mktemp("feedback") / "feedback"
    app = build_api(FakeEngine(), ServeConfig(feedback=str(folder)))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def test_the_document_is_the_one_that_is_served(http: TestClient) -> None:
    served = http.get("/openapi.json").json()
    assert {f"{method.upper()} {path}" for path, methods in served["paths"].items() for method in methods} == set(
        OPERATIONS
    )


def may_be_wrong(label: str) -> bool:
    """Whether something can be wrong with such a request."""
    operation = OPERATIONS[label]
    return bool(operation.body) or bool(operation.path_parameters)


@pytest.mark.parametrize(
    ("label", "mode"),
    [(label, mode) for label in OPERATIONS for mode in GenerationMode if mode.is_positive or may_be_wrong(label)],
)
def test_every_answer_is_documented(label: str, mode: GenerationMode, http: TestClient) -> None:
    @given(case=OPERATIONS[label].as_strategy(generation_mode=mode))
    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    def answers(case: schemathesis.Case) -> None:
        request = case.as_transport_kwargs(base_url="http://testserver")
        request.pop("cookies", None)
        if isinstance(request.get("data"), bytes):
            request["content"] = request.pop("data")
        case.validate_response(http.request(**request), checks=CHECKS)

    answers()
