"""What /openapi.json says is what the gateway does: its paths, its fields, and its answers to anything at all."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.serve.conftest import NAME, Served, end, start
from tunerun.config.schema import ServeConfig
from tunerun.serve import openapi
from tunerun.serve.gateway import ROUTES
from tunerun.serve.requests import TOKENIZE_FIELDS, chat_fields, completion_fields

schemathesis = pytest.importorskip("schemathesis")
_SECONDS = 10


@pytest.fixture(scope="module")
def short(run_dir: Path) -> Iterator[Served]:
    """A server whose answers are short, whatever is asked for."""
    found = start(run_dir, engine="llamacpp", context=64)
    yield found
    end(found)


def test_the_document_has_the_paths_and_the_fields_that_are_served():
    chat, completion = chat_fields(4), completion_fields(4)
    document = openapi.document(chat, completion)
    described = {(path, method.upper()) for path, methods in document["paths"].items() for method in methods}
    assert described == {(path, method) for path, method, _ in ROUTES}
    for path, fields in (
        ("/v1/chat/completions", chat),
        ("/v1/completions", completion),
        ("/tokenize", TOKENIZE_FIELDS),
    ):
        body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert set(body["properties"]) == set(fields)
        assert body["additionalProperties"] is False


def test_the_limits_of_the_document_are_the_servers_own(short):
    with short.client() as client:
        paths = client.get("/openapi.json").json()["paths"]
    body = paths["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["properties"]["n"]["anyOf"][0] == {"type": "integer", "minimum": 1, "maximum": ServeConfig().max_n}


N = ServeConfig().max_n
API = schemathesis.openapi.from_dict(dict(openapi.document(chat_fields(N), completion_fields(N))))
SUPPRESSED = list(HealthCheck)


def made_answerable(case: Any) -> None:
    """Lets every second good request say little to the served model, for random ones hardly ever fit its context."""
    body = case.body
    good = case.meta.generation.mode.is_positive and isinstance(body, dict)
    if not good or len(json.dumps(body)) % 2:
        return
    if "model" in body:
        body["model"] = NAME
    if "messages" in body:
        body["messages"] = [{"role": "user", "content": "fox"}]
    for field in {"tools", "tool_choice", "response_format"} & body.keys():
        del body[field]
    for limit in {"max_tokens", "max_completion_tokens"} & body.keys():
        body[limit] = 2


def check(case: Any, url: str) -> None:
    """Positive and negative data alike: no fault of the server, no hang, and answers as the document has them."""
    checks = schemathesis.checks
    made_answerable(case)
    case.call_and_validate(
        base_url=url,
        timeout=_SECONDS,
        checks=[
            checks.not_a_server_error,
            checks.status_code_conformance,
            checks.content_type_conformance,
            checks.response_schema_conformance,
            checks.negative_data_rejection,
        ],
    )


@API.parametrize()
@settings(max_examples=100, deadline=None, suppress_health_check=SUPPRESSED)
def test_a_hundred_requests_to_each_operation(case, short):
    check(case, short.url)


def test_good_and_bad_requests_were_among_them(short):
    with short.client() as client:
        counted = client.get("/metrics").text
    for path in ("/v1/chat/completions", "/v1/completions", "/tokenize"):
        for status in (200, 400):
            found = re.search(rf'requests_total{{path="{path}",status="{status}"}} (\d+)', counted)
            assert found, (path, status)
            assert int(found[1]) >= 1, (path, status)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@API.parametrize()
@settings(max_examples=2000, deadline=None, suppress_health_check=SUPPRESSED)
def test_two_thousand_requests_to_each_operation(case, short):
    check(case, short.url)
