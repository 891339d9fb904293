"""Replies held against the schemas of the OpenAPI document."""

import copy
from typing import Any

import jsonschema_rs

from trunkline.gateway.openapi import document


def exactly(name: str) -> jsonschema_rs.Draft202012Validator:
    """A validator of a schema of the document that allows no key besides the documented ones."""
    whole = copy.deepcopy(document())
    for schema in whole["components"]["schemas"].values():
        schema["additionalProperties"] = False
    return jsonschema_rs.Draft202012Validator(whole | {"$ref": f"#/components/schemas/{name}"})


def faults(name: str, value: Any) -> list[str]:
    """What is wrong with a value by a schema that allows no key besides the documented ones."""
    return [error.message for error in exactly(name).iter_errors(value)]
