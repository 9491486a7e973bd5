"""What a router takes up while it runs, and from where. Knows the ladder's files; decides nothing about requests.

Serve hands every router replica its deployment's ``user_config``: the version that it shall decide by. The files are the
ladder's own, where its spec is; the version is their digest, so a router that finds others says so and stays as it is.
"""

from pydantic import BaseModel, ConfigDict, ValidationError

from cascade.assembly import Artefacts
from cascade.errors import ConfigError
from cascade.spec import Ladder
from cascade.spec_errors import describe_errors
from cascade.versions import check_same_build


class LiveConfig(BaseModel):
    """``user_config`` of the deployment ``router``."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    version: str
    """Digest of the spec and the artefacts to decide by, as ``cascade check`` prints it; see `cascade.versions`."""


def read_config(config: object) -> LiveConfig:
    """Validate a ``user_config``.

    Raises:
        ConfigError: naming the field.
    """
    try:
        return LiveConfig.model_validate(config)
    except ValidationError as error:
        raise ConfigError("user_config of router: " + "\n".join(describe_errors(error))) from error


def read_version(running: Ladder, artefacts: Artefacts, wanted: str) -> tuple[Ladder, Artefacts]:
    """Read the files of a running ladder again.

    Args:
        running: the ladder as it runs.
        artefacts: what its routers decide by now.
        wanted: the version to find.

    Raises:
        ConfigError: the files are of another version or cannot be read, or only new replicas can take the change up.
    """
    if running.source is None:
        raise ConfigError("the spec of this ladder was not read from a file, so it cannot be read again")
    ladder = Ladder.read(running.source)
    check_same_build(running, ladder)
    found = Artefacts.read(ladder)
    for before, after in zip(artefacts.calibration.stages, found.calibration.stages, strict=True):
        if before.digest != after.digest:
            raise ConfigError(
                f"the calibration belongs to other weights of stage {before.name!r} than are running; deploy the ladder "
                "with `cascade deploy`, which replaces its replicas one after the other"
            )
    if found.version != wanted:
        raise ConfigError(
            f"version {wanted} was asked for, the files beside {running.source} are version {found.version}; deploy them "
            "again"
        )
    return ladder, found
