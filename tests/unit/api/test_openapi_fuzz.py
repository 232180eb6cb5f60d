"""schemathesis over the whole OpenAPI page: no answer, whatever is asked, is a 5xx or one that the page leaves out."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import content_type_conformance, status_code_conformance

from mhs_ray.domain.models import Role
from tests.unit.api.conftest import Lab
from tests.unit.api.test_platform import PAGE, _own

SCHEMA = schemathesis.openapi.from_dict(PAGE)
OPERATIONS = [result.ok() for result in SCHEMA.get_all_operations()]
CHECKS = (not_a_server_error, status_code_conformance, content_type_conformance)
_OF_THE_SERVER = {"/readyz"}  # 503 is its answer where a part is missing; test_platform asks it
EXAMPLES = 12


@pytest.fixture
def own(lab: Lab) -> dict[str, str]:
    return _own(lab)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda o: f"{o.method.upper()} {o.path}")
def test_no_request_is_answered_with_5xx_or_with_what_the_page_does_not_say(
    lab: Lab, own: dict[str, str], operation: Any
) -> None:
    base = {"base_url": lab.server.url, "timeout": 20}
    with lab.server.user(lab.id, Role.OPERATOR, "Olga") as signed_in:
        bearer = {"Authorization": signed_in.headers["authorization"]}

    def strategy(mode: GenerationMode) -> Any:
        return operation.as_strategy(generation_mode=mode)

    @settings(
        max_examples=EXAMPLES, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=st.one_of(strategy(GenerationMode.POSITIVE), strategy(GenerationMode.NEGATIVE)), mine=st.booleans())
    def ask(case: Any, mine: bool) -> None:
        if mine:  # what is there: most invented ids lead to a 404
            case.path_parameters = {**case.path_parameters, **{k: own[k] for k in case.path_parameters if k in own}}
        case.query.pop("follow", None)  # a stream without an end; test_logs reads those
        response = case.call(headers={**bearer, **(case.headers or {})} if case.headers else bearer, **base)
        case.validate_response(response, checks=CHECKS)

    ask()


def test_the_whole_page_is_asked_and_a_missing_status_would_be_found(lab: Lab) -> None:
    assert {(o.method.upper(), o.path) for o in OPERATIONS} == {
        (method.upper(), path) for path, item in PAGE["paths"].items() for method in item
    }
    case = SCHEMA["/v1/me"]["GET"].Case()
    response = case.call(base_url=lab.server.url, headers={"Authorization": "Bearer x"})
    case.validate_response(response, checks=CHECKS)
    response.status_code = 418
    with pytest.raises(FailureGroup, match="Undocumented status code"):
        case.validate_response(response, checks=(status_code_conformance,))
