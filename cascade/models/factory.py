"""Calls a network's factory by its name. Knows no spec and no network, and needs no torch."""

import importlib
from collections.abc import Mapping
from typing import Any


def call_factory(factory: str, args: Mapping[str, Any]) -> Any:
    """Import a factory and call it.

    Args:
        factory: ``package.module:callable``; the callable may be an attribute of an attribute.
        args: its keyword arguments.

    Raises:
        Exception: whatever the import or the factory raises; it is the user's own code.
    """
    module_name, _, attribute = factory.partition(":")
    target: Any = importlib.import_module(module_name)
    for part in attribute.split("."):
        target = getattr(target, part)
    return target(**args)
