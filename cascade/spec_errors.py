"""What is wrong with a YAML file, in words for the person who wrote it. Knows YAML's and pydantic's errors and no field."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from cascade.errors import ConfigError


def read_mapping(path: Path, wrong: type[ConfigError] = ConfigError) -> dict[str, Any]:
    """A YAML file that holds a mapping.

    Args:
        path: the file.
        wrong: what is raised.

    Raises:
        ConfigError: it cannot be read, is no YAML, or holds something else.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise wrong(f"{path}: {error.strerror or error}") from error
    except (yaml.YAMLError, ValueError) as error:  # YAML's own dates raise a plain ValueError, as does bad UTF-8
        raise wrong(f"{path}: not valid YAML: {error}") from error
    if not isinstance(document, dict):
        raise wrong(f"{path}: expected a mapping at the top, got {type(document).__name__}")
    return document


def describe_errors(error: ValidationError) -> list[str]:
    """One line for each wrong field: where it is, what is allowed, what came."""
    lines = []
    for item in error.errors(include_url=False):
        where = ".".join(str(part) for part in item["loc"]) or "the whole file"
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = "unknown field"
        value = item.get("input")
        shown = "" if item["type"] == "missing" or isinstance(value, dict) else f" (got {value!r})"
        lines.append(f"{where}: {message}{shown}")
    return lines
