"""What is wrong with a spec, in words for the person who wrote it. Knows pydantic's errors and no field."""

from pydantic import ValidationError


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
