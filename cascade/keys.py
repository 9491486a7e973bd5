"""The file of API keys: their hashes, and what each gives. Knows JSON and hashes; no server.

A key is 32 random bytes behind a prefix. The file holds its SHA-256 and never the key, so whoever reads the file cannot use
it. A fast hash is right here: slow ones (argon2, bcrypt) make guessing dear, which passwords need because they can be
guessed. Of 2^256 keys none can, and a slow hash on each request would be an invitation to keep the server busy with wrong
ones.
"""

import hashlib
import hmac
import os
import re
import secrets
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cascade.errors import ConfigError
from cascade.spec_errors import describe_errors
from cascade.wire.grant import Grant
from cascade.wire.http import MAX_TENANT_CHARS

PREFIX = "csk_"
"""By which a key is recognised, also by programs that look for secrets in what people publish."""
KEY_BYTES = 32
_KEY = re.compile(rb"csk_[A-Za-z0-9_-]{43}")
HINT_CHARS = 8
"""First characters of a key that the file keeps, to tell which one it was: the prefix and 24 of its 256 bits."""
_LOOKED_UP = 8
"""Bytes of a hash by which keys are looked up. How long that takes depends on the hash of what was presented, which nobody
can choose bit by bit; then all of it is compared in constant time."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.@-]{0,62}$")]
Tenant = Annotated[str, Field(max_length=MAX_TENANT_CHARS, pattern=r"^[ -~]*$")]


class ApiKey(BaseModel):
    """One key, without the key."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, hide_input_in_errors=True)

    name: Name
    """What it is called in lists, and by whom it is revoked."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Hash of the key, hexadecimal."""
    hint: Annotated[str, Field(max_length=HINT_CHARS)] = ""
    """Its first characters."""
    class_name: Annotated[str | None, Field(alias="class")] = None
    """Its class: requests cannot claim a more important one. By default the default class of the spec."""
    tenant: Tenant = ""
    """For whom its requests are."""
    admin: bool = False
    """Whether it opens what is for operators."""
    max_under_way: Annotated[int, Field(ge=1)] | None = None
    """Requests that may be under way at a time, in each router; by default the spec's limit for one client."""
    max_streams: Annotated[int, Field(ge=1)] | None = None
    """The same of streams."""
    created: date | None = None
    """When it was made."""


class KeyFile(BaseModel):
    """All keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, hide_input_in_errors=True)

    keys: tuple[ApiKey, ...] = ()
    """The keys."""

    @model_validator(mode="after")
    def _keys_differ(self) -> Self:
        for what in ("name", "sha256"):
            seen = [getattr(key, what) for key in self.keys]
            if len(set(seen)) < len(seen):
                raise ValueError(f"keys: two have the same {what}")
        return self

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file of keys.

        Raises:
            ConfigError: it cannot be read, or is no such file. What it holds is not shown.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise ConfigError(f"keys {path}: {error.strerror or error}; `cascade key new` makes the file") from error
        except ValidationError as error:
            lines = [line.partition(" (got ")[0] for line in describe_errors(error)]
            raise ConfigError(f"keys {path}: " + "\n".join(lines)) from None

    def write(self, path: Path) -> None:
        """Put the file in the place of the one before, at once, readable by its owner alone.

        Raises:
            ConfigError: it cannot be written.
        """
        fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(self.model_dump_json(indent=2, by_alias=True, exclude_none=True) + "\n")
            fresh.replace(path)
        except OSError as error:
            fresh.unlink(missing_ok=True)
            raise ConfigError(f"keys {path}: cannot be written: {error.strerror or error}") from error

    def with_key(self, key: ApiKey) -> Self:
        """The same with one key more.

        Raises:
            ConfigError: there is one of that name.
        """
        if any(each.name == key.name for each in self.keys):
            raise ConfigError(f"there is a key called {key.name!r} already; revoke it first, or choose another name")
        return self.model_copy(update={"keys": (*self.keys, key)})

    def without_key(self, name: str) -> Self:
        """The same without the key of this name.

        Raises:
            ConfigError: there is none.
        """
        left = tuple(key for key in self.keys if key.name != name)
        if len(left) == len(self.keys):
            raise ConfigError(f"there is no key called {name!r}, only {', '.join(key.name for key in self.keys) or 'none'}")
        return self.model_copy(update={"keys": left})


def new_key() -> str:
    """A key that nobody else has."""
    return PREFIX + urlsafe_b64encode(secrets.token_bytes(KEY_BYTES)).rstrip(b"=").decode()


def hash_of(key: str) -> str:
    """What the file keeps of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


class KeyRing:
    """The keys of a file, by their hashes.

    Args:
        keys: the file.
        classes: name of each class to its priority.
        default_priority: class of keys that name none.

    Raises:
        ConfigError: a key names a class that there is not.
    """

    def __init__(self, keys: KeyFile, classes: Mapping[str, int], default_priority: int) -> None:
        self._found: dict[bytes, tuple[bytes, Grant]] = {}
        for key in keys.keys:
            if key.class_name is not None and key.class_name not in classes:
                raise ConfigError(f"key {key.name!r}: there is no class {key.class_name!r}, only {', '.join(classes)}")
            priority = default_priority if key.class_name is None else classes[key.class_name]
            digest = bytes.fromhex(key.sha256)
            grant = Grant(key.name, key.tenant, priority, key.admin, key.max_under_way, key.max_streams)
            self._found[digest[:_LOOKED_UP]] = digest, grant

    def __len__(self) -> int:
        return len(self._found)

    def grant(self, presented: bytes) -> Grant | None:
        """What a key gives; None for one that is not known, or no key at all."""
        if _KEY.fullmatch(presented) is None:
            return None
        digest = hashlib.sha256(presented).digest()
        known, grant = self._found.get(digest[:_LOOKED_UP], (b"", None))
        return grant if hmac.compare_digest(digest, known) else None
