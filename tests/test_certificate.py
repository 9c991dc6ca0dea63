"""The certificate of a built file, as text in its description."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hand_made import CERTIFICATE
from mutations import VALUES, changed, names_it, paths, without

from eomt_deploy.certificate import Certificate
from eomt_deploy.errors import ModelFileError


def test_round_trip_and_text():
    assert Certificate.from_json(CERTIFICATE.to_json()) == CERTIFICATE
    assert str(CERTIFICATE) == (
        "largest logit error 0.00015% of the largest logit (maximum 0.1%); equal classes 100.00%, "
        "mask signs 99.95%, "
        "labels 99.99% (minimum 99.9%)"
    )
    assert CERTIFICATE.place == "NVIDIA L4 with driver 580.65.06, tensorrt 10.13.0.35 in fp16"
    assert replace(CERTIFICATE, driver=None).place == "NVIDIA L4, tensorrt 10.13.0.35 in fp16"


DATA = json.loads(CERTIFICATE.to_json())


@pytest.mark.parametrize("path", list(paths(DATA)), ids=str)
def test_any_value_in_any_field_is_read_or_refused(path):
    for content in (without(DATA, path), *(changed(DATA, path, value) for value in VALUES)):
        try:
            found = Certificate.from_json(content)
        except ModelFileError as error:
            message = error.what
        else:
            assert Certificate.from_json(found.to_json()) == found
            continue
        assert names_it(message, path)
