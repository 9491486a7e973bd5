"""Reads a document that can be followed: its files, its shells, in order."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

FENCE = re.compile(r"^```(\w+) ?([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        kind: ``file``, or where it is typed: the reader's shell, a second one that keeps a server, one in the checkout.
        name: of the file.
        text: what is in it.
    """

    kind: Literal["file", "shell", "server", "checkout"]
    name: str
    text: str


def blocks(document: Path) -> list[Block]:
    """The blocks of a document; raises ValueError for one that says neither what it is nor where it goes."""
    found = []
    for language, info, text in FENCE.findall(document.read_text(encoding="utf-8")):
        if language == "sh" and info in ("", "server", "checkout"):
            found.append(Block(info or "shell", "", text))
        elif language != "sh" and re.fullmatch(r"[\w./-]+", info):
            found.append(Block("file", info, text))
        else:
            raise ValueError(f"a block of {language} {info!r} is neither a file nor a shell")
    return found
