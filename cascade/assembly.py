"""From a ladder's files to the policy's own objects. Knows the spec and the artefacts; no Ray, no torch, no clock.

The server and the simulator both put their policy together here, so that they cannot come to differ.
"""

from cascade.calibration.artefact import Calibration, ServiceProfile
from cascade.policy.policy import Policy, StageConfig
from cascade.spec import CascadeSpec, Ladder


def read_artefacts(ladder: Ladder) -> tuple[Calibration, ServiceProfile]:
    """Read a ladder's calibration and service profile, and check that they belong to its weights and spec.

    Raises:
        ConfigError: a file is missing or malformed.
        CalibrationMismatch: made from other weights, other stages or another precision.
    """
    digests = ladder.stage_digests()
    names = list(digests)
    calibration = Calibration.read(ladder.calibration_path)
    calibration.check_belongs(names, digests)
    profile = ServiceProfile.read(ladder.service_path)
    profile.check_belongs(names, digests)
    return calibration, profile


def stage_configs(spec: CascadeSpec, profile: ServiceProfile) -> list[StageConfig]:
    """What the policy of one router must know of each stage."""
    configs = []
    for stage, base_price, measured in zip(spec.stages, spec.base_prices, profile.stages, strict=True):
        # Each router may use its share of the replicas' places, and at least one.
        places = 1 if stage.placement == "router" else stage.replicas * stage.calls_per_replica // spec.router.replicas
        configs.append(
            StageConfig(
                slots=max(1, places),
                max_batch_size=stage.max_batch_size,
                cost=stage.cost,
                base_price=base_price,
                a_s=measured.a_s,
                b_s=measured.b_s,
                timeout_floor_s=stage.timeout_floor_s,
            )
        )
    return configs


def build_policy(spec: CascadeSpec, profile: ServiceProfile, seed: int) -> Policy:
    """The policy of one router.

    Args:
        spec: the ladder.
        profile: how long its batches take.
        seed: of the jitter in ``Retry-After``.
    """
    return Policy(
        stage_configs(spec, profile),
        usual_deadline_s=spec.deadline.default_s,
        wait_share=spec.admission.wait_share,
        seed=seed,
    )
