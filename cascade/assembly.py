"""From a ladder's files to the policy's own objects. Knows the spec and the artefacts; no Ray, no torch, no clock.

The server and the simulator both put their policy together here, so that they cannot come to differ.
"""

from dataclasses import dataclass, replace

from cascade.calibration.artefact import Calibration, ServiceProfile
from cascade.calibration.certificate import Certificate
from cascade.calibration.judging import judge_table, market_of
from cascade.calibration.outcomes import OutcomeTable
from cascade.calibration.watching import fit_product
from cascade.errors import ConfigError
from cascade.policy.anytime import Product, Rule, best_so_far, plain, steady
from cascade.policy.classes import ClassConfig
from cascade.policy.gain import Curve
from cascade.policy.market import Market
from cascade.policy.policy import Policy, StageConfig
from cascade.spec import CascadeSpec, Ladder, StageSpec
from cascade.spec_exits import owners_of
from cascade.versions import version_digest

HOP_S = 0.002
"""Seconds of a call to a replica and back beside its work, until a router has learned its own: what Serve's handles take on
a machine that has something to do. For a stage of microseconds it is all that counts."""


def read_artefacts(ladder: Ladder) -> tuple[Calibration, ServiceProfile]:
    """Read a ladder's calibration and service profile, and check that they belong to its weights and spec.

    From then on the ladder holds the digests, and no other weights are loaded for it.

    Raises:
        ConfigError: a file is missing or malformed.
        CalibrationMismatch: made from other weights, other stages or another precision.
    """
    digests = ladder.stage_digests()
    names = list(digests)
    calibration = Calibration.read(ladder.calibration_path)
    calibration.check_belongs(names, digests)
    if ladder.spec.routing == "direct":
        calibration.check_looks_back_nowhere()
    profile = ServiceProfile.read(ladder.service_path)
    profile.check_belongs(names, digests)
    ladder.digests = digests
    return calibration, profile


def read_certificate(ladder: Ladder, calibration: Calibration) -> Certificate | None:
    """Read a ladder's certificate, and check that it was made with its calibration; None if it has none.

    Raises:
        ConfigError: the file is malformed.
        CalibrationMismatch: made with another calibration.
    """
    if not ladder.certificate_path.is_file():
        return None
    certificate = Certificate.read(ladder.certificate_path)
    certificate.check_belongs(calibration, ladder.spec.routing)
    return certificate


@dataclass(frozen=True)
class Artefacts:
    """Everything that was made for a ladder before it is served, checked to belong to it.

    Attributes:
        calibration: how evidence is read.
        profile: how long batches take.
        certificate: what may be lost at which prices; None if there is none.
        market: demand by price; None without the outcome table that it is made of, and then prices never change.
        product: how sure products of answers are, where clients are shown such; see `fit_product`.
        version: digest of all of these and the ladder, see `cascade.versions`; empty where nobody asked.
    """

    calibration: Calibration
    profile: ServiceProfile
    certificate: Certificate | None
    market: Market | None
    product: tuple[Curve, ...] | None = None
    version: str = ""

    @property
    def digests(self) -> dict[str, str]:
        """Digest of each stage by name, cheapest first: of the files, to which all of this belongs."""
        return {stage.name: stage.digest for stage in self.calibration.stages}

    @classmethod
    def read(cls, ladder: Ladder) -> "Artefacts":
        """Read them all.

        Raises:
            ConfigError: a file is missing or malformed.
            CalibrationMismatch: made for another ladder.
        """
        calibration, profile = read_artefacts(ladder)
        certificate = read_certificate(ladder, calibration)
        class_configs(ladder.spec, certificate)  # a floor that nothing certifies is found out here, not in a replica
        market = product = None
        wants_product = ladder.spec.anytime.answers == "product"
        if ladder.table_path.is_file():
            table = OutcomeTable.read(ladder.table_path)
            judged = judge_table(table, calibration, ladder.spec.routing)
            market = market_of(judged, ladder.spec.base_prices, pools=owners_of(ladder.spec.stages))
            if wants_product:
                product = fit_product(table, judged.exits(ladder.spec.base_prices))
        elif wants_product:
            raise ConfigError(
                f"anytime.answers product: how sure products are is fitted on {ladder.table_path}, which is not there; run "
                "`cascade profile`"
            )
        found = cls(calibration, profile, certificate, market, product)
        return replace(found, version=version_digest(ladder, found.digests))


def anytime_rule(spec: CascadeSpec, artefacts: Artefacts) -> Rule:
    """What clients that watch are shown of a row as its answers come."""
    match spec.anytime.answers:
        case "plain":
            return plain
        case "product":
            assert artefacts.product is not None, "read with the ladder"
            return Product(artefacts.product)
        case "best_so_far":
            return best_so_far
        case "steady":
            return steady


def class_configs(spec: CascadeSpec, certificate: Certificate | None) -> list[ClassConfig]:
    """What the policy must know of each class; a floor becomes the prices that keep it.

    Args:
        spec: the ladder.
        certificate: needed where a class has a ``max_loss``.

    Raises:
        ConfigError: there is no certificate for a floor, or it certifies no such one at the base prices.
    """
    configs = []
    for place, each in enumerate(spec.admission.all_classes):
        cap = None
        if each.max_loss is not None:
            where = f"admission.classes.{place}.max_loss {each.max_loss:g}"
            if certificate is None:
                raise ConfigError(
                    f"{where}: a floor needs a certificate; run `cascade certify` and put its certificate.json "
                    "beside the calibration"
                )
            cap = certificate.cap_for(each.max_loss)
            if cap is None or any(base > limit for base, limit in zip(spec.base_prices[1:], cap[1:], strict=True)):
                smallest = certificate.bound_at(spec.base_prices)
                raise ConfigError(f"{where}: the smallest that is certified at the base prices is {smallest:g}")
        configs.append(ClassConfig(each.weight, cap, each.beyond_floor))
    return configs


def router_rows(stage: StageSpec, routers: int) -> int:
    """Rows that one router may put into a call, at most: its part of a full pass, which the replica puts together again.

    If each sent whole batches, a replica would run them one after the other, and rows that are worth little to one router
    would go before rows that are worth much to the next.
    """
    return stage.max_batch_size if stage.placement == "router" else -(-stage.max_batch_size // routers)


def router_slots(stage: StageSpec, routers: int, replicas: int) -> int:
    """Calls that one router may have with a stage at a time.

    A replica's ``calls_per_replica`` are shared by the routers, but each of them may always have one call a replica: with
    fewer, its rows would wait for whole passes that hold none of them. Only where there are more routers than rows in a pass
    they have fewer, so many that together they fill every replica once: else passes would pile up in the replicas.

    Args:
        stage: the stage.
        routers: routers beside each other.
        replicas: healthy replicas of the stage.
    """
    if stage.placement == "router":
        return 1
    if routers > stage.max_batch_size:
        return max(1, -(-replicas * stage.max_batch_size // routers))
    return replicas * max(1, stage.calls_per_replica // routers)


def stage_configs(spec: CascadeSpec, profile: ServiceProfile) -> list[StageConfig]:
    """What the policy of one router must know of each stage."""
    configs = []
    for stage, base_price, measured in zip(spec.placed, spec.base_prices, profile.stages, strict=True):
        configs.append(
            StageConfig(
                slots=router_slots(stage, spec.router.replicas, stage.replicas),
                max_batch_size=router_rows(stage, spec.router.replicas),
                cost=stage.cost,
                base_price=base_price,
                a_s=measured.a_s,
                b_s=measured.b_s,
                timeout_floor_s=stage.timeout_floor_s,
                hop_s=0.0 if stage.placement == "router" else HOP_S,
                resumes=stage.resumes,
                thinks=stage.execution.thinks,
            )
        )
    return configs


def build_policy(spec: CascadeSpec, profile: ServiceProfile, seed: int, certificate: Certificate | None = None) -> Policy:
    """The policy of one router.

    Args:
        spec: the ladder.
        profile: how long its batches take.
        seed: of the jitter in ``Retry-After``.
        certificate: what may be lost at which prices; needed where a class has a floor.

    Raises:
        ConfigError: a class has a floor that cannot be kept, see `class_configs`.
    """
    return Policy(
        stage_configs(spec, profile),
        usual_deadline_s=spec.deadline.default_s,
        wait_share=spec.admission.wait_share,
        classes=class_configs(spec, certificate),
        routing=spec.routing,
        seed=seed,
    )
