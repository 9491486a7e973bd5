"""Files of recorded arrivals: the CSV of the public Azure LLM inference traces, and plain text with one instant a line.

Azure (https://github.com/Azure/AzurePublicDataset, CC-BY): header ``TIMESTAMP,ContextTokens,GeneratedTokens``, lines like
``2023-11-16 18:17:03.9799600,4808,10``; the traces of 2024 add a zone, which is always UTC. Only the instants are read.
Plain: seconds as decimal numbers, counted from anywhere; empty lines and lines that begin with ``#`` are passed over.
"""

from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cascade.errors import ConfigError

AZURE_COLUMN = "TIMESTAMP"
CHUNK_LINES = 1 << 20
"""Lines converted together: the longest public trace has 44 million, whose text would not fit in memory as objects."""


def read_instants(path: Path | str) -> NDArray[np.float64]:
    """Instants of a trace, seconds since its first arrival, ascending.

    Args:
        path: the file, of either format.

    Raises:
        ConfigError: it cannot be read, holds fewer than two instants, or a line is none; the message names the line.
    """
    chunks = []
    try:
        with Path(path).open(encoding="utf-8-sig") as file:
            first = file.readline()
            azure = first.split(",")[0].strip().strip('"') == AZURE_COLUMN
            if not azure:
                file.seek(0)
            number = 2 if azure else 1
            while lines := list(islice(file, CHUNK_LINES)):
                chunks.append(_azure(lines, number, path) if azure else _plain(lines, number, path))
                number += len(lines)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise ConfigError(f"{path}: cannot be read: {reason}") from error
    if sum(map(len, chunks)) < 2:
        raise ConfigError(f"{path}: a trace needs at least two instants, it has {sum(map(len, chunks))}")
    # Nanoseconds of a date do not fit a float, those since the first arrival do.
    instants = np.sort(np.concatenate(chunks))
    since = instants - instants[0]
    return since.astype("timedelta64[ns]").astype(np.int64) / 1e9 if azure else np.asarray(since, dtype=np.float64)


def _azure(lines: list[str], number: int, path: Path | str) -> NDArray[np.datetime64]:
    texts = [line.split(",", 1)[0].strip().strip('"').removesuffix("+00:00") for line in lines]
    try:
        return np.array([text for text in texts if text], dtype="datetime64[ns]")
    except ValueError:
        for offset, text in enumerate(texts):
            try:
                np.datetime64(text or "NaT", "ns")
            except ValueError:
                raise ConfigError(
                    f"{path}, line {number + offset}: expected a time like 2023-11-16 18:17:03.9799600, got {text[:40]!r}"
                ) from None
        raise


def _plain(lines: list[str], number: int, path: Path | str) -> NDArray[np.float64]:
    seconds = []
    for offset, line in enumerate(lines):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        try:
            value = float(text)
        except ValueError:
            value = np.nan
        if not np.isfinite(value):
            raise ConfigError(
                f"{path}, line {number + offset}: expected an instant in seconds, or the header "
                f"{AZURE_COLUMN},ContextTokens,GeneratedTokens in the first line, got {text[:40]!r}"
            )
        seconds.append(value)
    return np.array(seconds, dtype=np.float64)
