"""Serve config files, read strictly: what Serve would pass over in silence is a mistake here. Knows Serve's own schema.

Serve 2.60 ignores keys that it does not know, at every level of the file: a misspelt ``max_surge_percent`` deploys without a
word and does nothing. So every key is looked for in the schema that Serve itself reads the file with.
"""

import types
from collections.abc import Iterator
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from ray.serve.schema import ServeDeploySchema

from cascade.errors import ConfigError
from cascade.serving.app import AppArgs
from cascade.serving.renewal import read_config
from cascade.spec import CascadeSpec
from cascade.spec_errors import describe_errors
from cascade.spec_exits import groups

BUILDER = "cascade.serving.app:build"
"""The import path by which a Serve file's application is a ladder."""
ROUTER = "router"
"""Name of the deployment of the routers."""


def check_document(document: dict[str, Any], source: str) -> None:
    """Refuse a Serve config that Serve would refuse, or of which it would pass over a part.

    Args:
        document: the config.
        source: what to call it in errors.

    Raises:
        ConfigError: one line for each wrong field.
    """
    unknown = [f"{where}: unknown field, which Serve would ignore" for where in unknown_keys(ServeDeploySchema, document)]
    if unknown:
        raise ConfigError(f"{source}: " + "\n".join(unknown))
    try:
        ServeDeploySchema.model_validate(document)
    except ValidationError as error:
        raise ConfigError(f"{source}: " + "\n".join(describe_errors(error))) from error


def unknown_keys(model: type[BaseModel], document: dict[str, Any], path: str = "") -> Iterator[str]:
    """Where a document has keys that a pydantic model does not know, however deep.

    Args:
        model: the model.
        document: what it would be read from.
        path: where the document stands.
    """
    fields = {field.alias or name: field.annotation for name, field in model.model_fields.items()}
    for key, value in document.items():
        where = f"{path}.{key}" if path else str(key)
        if key not in fields:
            yield where
            continue
        models = list(_models_in(fields[key]))
        for place, part in _mappings_in(value, where):
            if models:
                # A field of several kinds knows a key if any of them does.
                yield from min((list(unknown_keys(each, part, place)) for each in models), key=len)


def app_args(application: dict[str, Any], where: str) -> AppArgs:
    """The arguments of an application that is a ladder.

    Raises:
        ConfigError: one line for each wrong argument.
    """
    try:
        return AppArgs.model_validate(application.get("args") or {})
    except ValidationError as error:
        raise ConfigError(f"{where}.args: " + "\n".join(describe_errors(error))) from error


def check_deployments(application: dict[str, Any], spec: CascadeSpec, where: str) -> None:
    """Refuse settings of deployments that a ladder does not have, and a ``user_config`` that nobody reads.

    Args:
        application: the application, which passed `check_document`.
        spec: its ladder.
        where: what to call it in errors.

    Raises:
        ConfigError: naming the deployment.
    """
    starts = [spec.stages[group.start] for group in groups(spec.stages)]
    known = [ROUTER, *(stage.name for stage in starts if stage.placement != "router")]
    for entry in application.get("deployments") or ():
        if entry["name"] not in known:
            raise ConfigError(f"{where}.deployments: no deployment {entry['name']!r}; the ladder has {', '.join(known)}")
        if entry.get("user_config") is None:
            continue
        if entry["name"] != ROUTER:
            raise ConfigError(f"{where}.deployments.{entry['name']}.user_config: only {ROUTER} takes one")
        read_config(entry["user_config"])


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The pydantic models that an annotation names, also inside lists and unions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Union, types.UnionType, list):
        for each in get_args(annotation):
            yield from _models_in(each)


def _mappings_in(value: Any, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The mappings that a value is or holds in a list, and where they stand."""
    if isinstance(value, dict):
        yield where, value
    elif isinstance(value, list):
        for place, each in enumerate(value):
            name = each.get("name", place) if isinstance(each, dict) else place
            yield from _mappings_in(each, f"{where}.{name}")
