"""The description is OpenAPI 3.1, and what the sidecar answers is what it describes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import openapi_spec_validator
import pytest

from tests.undoubt.sidecar.stage import Stage, staged, token
from undoubt.serve.sidecar.openapi import describe
from undoubt.serve.sidecar.operations import OPERATIONS


def test_it_is_valid(stage: Stage) -> None:
    """Generators of clients refuse what is not."""
    served = stage.unix().get("/openapi.json").json()
    assert served["openapi"] == "3.1.0"
    openapi_spec_validator.validate(served)
    assert served["paths"].keys() == describe(OPERATIONS)["paths"].keys()


def test_every_operation_has_a_name_of_its_own() -> None:
    names = [operation.name for operation in OPERATIONS]
    assert len(set(names)) == len(names)


@pytest.mark.slow
def test_generated_requests_find_nothing(shops: dict[str, str], tmp_path: Path) -> None:
    """schemathesis: no request that can be generated from the description, or breaks it, is answered with
    5xx, or otherwise than described. Of a sidecar of its own, which it fills with transactions."""
    with staged(tmp_path, shops, wait_max_s=1.0) as stage:
        done = subprocess.run(
            [
                str(Path(sys.executable).with_name("schemathesis")),
                "run",
                f"http://127.0.0.1:{stage.port}/openapi.json",
                "--header",
                f"Authorization: Bearer {token('shop')}",
                "--checks",
                "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance",
                "--max-examples",
                "60",
                "--seed",
                "1",
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=170,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
