"""Requests that the server's own description (/openapi.json) allows, and some that it does not, made by schemathesis."""

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

from tests.generate.tiny import tiny_model
from tests.serve.served import listening, tiny_app

CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def description():
    with listening(tiny_app(tiny_model(context=60))) as address:
        yield schemathesis.openapi.from_url(f"{address}/openapi.json")


schema = schemathesis.pytest.from_fixture("description")


@schema.parametrize()
@settings(max_examples=12, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_no_request_is_a_mistake_of_the_servers(case):
    response = case.call()
    case.validate_response(response, checks=CHECKS)
    if response.status_code >= 400 and "json" in response.headers["content-type"][0]:
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
