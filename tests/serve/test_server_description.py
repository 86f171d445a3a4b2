"""Requests that the server's description (/openapi.json) allows, and some that it does not, made by schemathesis."""

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

from tests.generate.tiny import tiny_model
from tests.serve.served import listening, tiny_app

CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance]
OPERATIONS = {
    "GET /v1/models", "GET /v1/models/{name}", "POST /v1/chat/completions", "POST /v1/completions",
    "POST /v1/embeddings", "POST /tokenize", "GET /health", "GET /metrics",
}  # fmt: skip


@pytest.fixture(scope="module")
def operations():
    with listening(tiny_app(tiny_model(context=60))) as address:
        schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
        yield {found.ok().label: found.ok() for found in schema.get_all_operations()}


def test_every_operation_is_tried(operations):
    assert set(operations) == OPERATIONS


@pytest.mark.parametrize(
    ("label", "mode"),
    [(label, mode) for label in sorted(OPERATIONS) for mode in GenerationMode if mode.is_positive or "POST" in label],
)
def test_no_request_is_a_mistake_of_the_servers(operations, label, mode):
    statuses = set()

    @settings(max_examples=10, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(operations[label].as_strategy(generation_mode=mode))
    def ask(case):
        response = case.call()
        case.validate_response(response, checks=CHECKS)
        statuses.add(response.status_code)
        if response.status_code >= 400:
            assert set(response.json()["error"]) == {"message", "type", "param", "code"}

    ask()
    assert statuses
