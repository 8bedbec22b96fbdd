"""The OpenAPI document of the JSON API, against which answers are validated."""

from __future__ import annotations

import json
import re
from functools import cache
from importlib.resources import files
from typing import Any

from jsonschema import Draft202012Validator
from twisted.trial.unittest import TestCase

from tests.process import Answer, Daemon


@cache
def document() -> dict[str, Any]:
    """The document as it is shipped."""
    content: dict[str, Any] = json.loads(
        files("artifactd.web").joinpath("openapi.json").read_text()
    )
    return content


def operations() -> set[tuple[str, str]]:
    """The methods and paths that it describes."""
    return {
        (method.upper(), path)
        for path, item in document()["paths"].items()
        for method in item
        if method != "parameters"
    }


def _resolved(value: dict[str, Any]) -> dict[str, Any]:
    """What a reference inside the document means."""
    if "$ref" not in value:
        return value
    found: Any = document()
    for part in value["$ref"].removeprefix("#/").split("/"):
        found = found[part]
    return _resolved(found)


def _operation(method: str, path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The operation for a request, and the item of its path."""
    for template, item in document()["paths"].items():
        # A name holds slashes; the last infix of the path is the endpoint's.
        pattern = re.sub(r"\\\{name\\\}", ".+", re.escape(template))
        if re.fullmatch(re.sub(r"\\\{\w+\\\}", "[^/]+", pattern), path) and method in item:
            return item[method], item
    raise AssertionError(f"{method} {path} is not described")


async def told(test: TestCase, daemon: Daemon, method: str, path: str) -> Any:
    """Ask for what is granted, below ``/api/v1``; the JSON of an answer as the document says."""
    answer = await daemon.request(method, f"/api/v1{path}")
    test.assertIn(answer.status, (200, 204), answer.body)
    test.assertEqual([], problems(method, f"/api/v1{path}", answer))
    return json.loads(answer.body) if answer.body else None


def problems(method: str, uri: str, answer: Answer) -> list[str]:
    """In what ``answer`` to a request differs from the document."""
    path, _, query = uri.partition("?")
    operation, item = _operation("get" if method == "HEAD" else method.lower(), path)
    found = []
    parameters = [
        _resolved(each)["name"]
        for each in [*item.get("parameters", []), *operation.get("parameters", [])]
    ]
    found += [
        f"the parameter {name} is not described"
        for name in re.findall(r"(?:^|&)(\w+)=", query)
        if name not in parameters and answer.status < 400
    ]
    response = operation["responses"].get(str(answer.status))
    if response is None:
        return [*found, f"the status {answer.status} is not described"]
    response = _resolved(response)
    for name in response.get("headers", {}):
        if name != "Link" and answer.header(name) is None:
            found.append(f"there is no {name}")
    if "content" not in response:
        return found + ([f"there is a body: {answer.body!r}"] if answer.body else [])
    ((media_type, content),) = response["content"].items()
    if answer.header("Content-Type") != media_type:
        found.append(f"its type is {answer.header('Content-Type')}")
    if method != "HEAD":
        validator = Draft202012Validator({**document(), **content["schema"]})
        found += [each.message for each in validator.iter_errors(json.loads(answer.body))]
    return found
