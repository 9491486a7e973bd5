"""The two ladders that are measured, derived from a shipped one: its two cheapest rungs, and the whole of it.

Knows specs, calibration and the forms of a request; starts nothing and runs no model. Both get a long deadline, so that no
answer is degraded by load: the servers must give the same answers for their speeds to be comparable.
"""

from base64 import b64encode
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from cascade.calibration.artefact import Calibration, ServiceProfile
from cascade.calibration.fitting import fit
from cascade.calibration.outcomes import OutcomeTable
from cascade.calibration.scores import confidence, log_probabilities
from cascade.policy.gain import Curve
from cascade.rows import read_rows
from cascade.spec import Ladder
from cascade.wire.client import encode_request

DEADLINE_S = 30.0
"""Far beyond any latency of any system."""
ESCALATED_SHARE = 0.2
"""Of the calibration rows, with two rungs; the shipped price of the second would send almost all of them on."""
MANY = 32
"""Rows of a request that holds many."""
PREDICT = "/predict"
"""Where the systems that have no protocol of their own take a row."""


@dataclass(frozen=True)
class Bench:
    """One ladder under measurement.

    Attributes:
        title: what to call it.
        spec: path of its spec.
        ladder: the ladder.
        labels: true labels of the rows that are sent, [rows].
        messages: whole HTTP messages, by form: ``protocol``, a request of each row as cascade takes it; ``many``, requests
            of `MANY` rows in the same form; ``raw``, bodies that are nothing but the pixels; ``base64``, JSON with a text.
    """

    title: str
    spec: Path
    ladder: Ladder
    labels: NDArray[np.int64]
    messages: dict[str, list[bytes]]


def derive(shipped: Path, folder: Path, rungs: int | None, rows: int, title: str) -> Bench:
    """Write the spec of a ladder, and its calibration where it is not the shipped one.

    Args:
        shipped: the shipped spec.
        folder: where to write, empty.
        rungs: how many of the cheapest rungs; all if None.
        rows: test rows to send.
        title: what to call it.
    """
    source = Ladder.read(shipped)
    document = yaml.safe_load(shipped.read_text(encoding="utf-8"))
    document["deadline"] = {"default_s": DEADLINE_S}
    document["calibration"] = str(source.path(source.spec.calibration))
    document["data"] = {name: str(source.path(path)) for name, path in source.spec.data.model_dump().items()}
    for stage, spec in zip(document["stages"], source.spec.stages, strict=True):
        stage["model"]["weights"] = str(source.weights(spec))
    if rungs is not None:
        document["stages"] = document["stages"][:rungs]
        document["calibration"] = "calibration"
    path = folder / "cascade.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    if rungs is not None:
        _recalibrate(source, path, document)
    ladder = Ladder.read(path)
    inputs, labels = read_rows(ladder, ladder.path(ladder.spec.data.test))
    images = inputs["image"][:rows]
    return Bench(title, path, ladder, labels[:rows], messages(ladder, images))


def messages(ladder: Ladder, images: NDArray[np.uint8]) -> dict[str, list[bytes]]:
    """Every form of request of these rows; see `Bench`."""
    tensor = ladder.spec.inputs[0].tensor
    target = f"/v2/models/{ladder.spec.name}/infer"

    def protocol(rows: int) -> list[bytes]:
        found = []
        for first in range(0, len(images) - rows + 1, rows):
            body, headers = encode_request([(tensor, images[first : first + rows])], outputs=["label"])
            found.append(_message(target, headers, body))
        return found

    octets, json = {"content-type": "application/octet-stream"}, {"content-type": "application/json"}
    return {
        "protocol": protocol(1),
        "many": protocol(MANY),
        "raw": [_message(PREDICT, octets, image.tobytes()) for image in images],
        "base64": [_message(PREDICT, json, b'{"images":["%s"]}' % b64encode(image.tobytes())) for image in images],
    }


def _recalibrate(source: Ladder, path: Path, document: dict[str, object]) -> None:
    """The shipped outcomes and service times of the rungs that are left, calibrated anew, and a price with a fair share."""
    ladder = Ladder.read(path)
    names = [stage.name for stage in ladder.spec.stages]
    with np.load(source.table_path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    keep = [list(arrays["stages"]).index(name) for name in names]
    arrays["stages"], arrays["cost"] = arrays["stages"][keep], arrays["cost"][keep]
    table = OutcomeTable.from_arrays(
        {key: array for key, array in arrays.items() if "/" not in key or key.split("/")[1] in names}
    )
    profile = ServiceProfile.read(source.service_path)
    kept = tuple(stage for stage in profile.stages if stage.name in names)
    ladder.calibration_path.parent.mkdir()
    profile.model_copy(update={"stages": kept}).write(ladder.service_path)

    def calibrated(price: float) -> Calibration:
        prices = [0.0] + [price] * (len(names) - 1)
        return fit(table, ladder.stage_digests(), ladder=ladder.spec.name, split="calibration", prices=prices)

    first = calibrated(0.0).stages[0]
    gain = next(iter(first.gains.values()))
    gains = Curve.of(gain.x, gain.y)(confidence(log_probabilities(table.probs(first.name)), first.temperature))
    price = round(float(np.quantile(gains, 1 - ESCALATED_SHARE)), 4)
    for stage in document["stages"][1:]:
        stage["base_price"] = price
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    calibrated(price).write(ladder.calibration_path)


def _message(target: str, headers: dict[str, str], body: bytes) -> bytes:
    fields = {"host": "127.0.0.1", **headers, "content-length": str(len(body))}
    head = f"POST {target} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return head.encode() + b"\r\n" + body
