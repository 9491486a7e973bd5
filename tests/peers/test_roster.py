"""The systems of the serving benchmark: each can be started with every setting, and says what it is."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.ladders import MANY, Bench, derive, messages
from benchmarks.peers.environment import PEERS, Missing, interpreter, is_ready, requirements
from benchmarks.roster import ROSTER, Contender
from benchmarks.serving import NAMES, chosen
from cascade.spec import Ladder
from tests.server import ROOT

SHIPPED = ROOT / "deployments" / "fashion" / "cascade.yaml"


@pytest.fixture(scope="module")
def bench() -> Bench:
    ladder = Ladder.read(SHIPPED)
    return Bench("two", SHIPPED, ladder, np.zeros(0, np.int64), {})


@pytest.mark.parametrize("contender", ROSTER, ids=lambda each: each.name)
def test_every_setting_can_be_started_on_the_port_that_is_asked_for(contender: Contender, bench: Bench) -> None:
    for setting in contender.settings:
        start = contender.start("python", bench, 8123, setting)
        assert start.command[0] == "python"
        assert "8123" in [*start.command, *start.environ.values()]
        assert all(isinstance(value, str) for value in start.environ.values())


@pytest.mark.parametrize("contender", ROSTER, ids=lambda each: each.name)
def test_settings_have_names_of_their_own(contender: Contender) -> None:
    names = [setting.name for setting in contender.settings]
    assert len(set(names)) == len(names)


def test_starting_one_setting_leaves_the_roster_as_it_was(bench: Bench) -> None:
    for contender in ROSTER:
        first, second = (contender.start("python", bench, 8123, contender.settings[0]) for _ in range(2))
        assert first.environ.keys() == second.environ.keys()
        assert len(first.command) == len(second.command)


def test_a_message_of_every_form_holds_the_row(bench: Bench) -> None:
    images = np.arange(40 * 784, dtype=np.uint8).reshape(40, 28, 28)
    made = messages(bench.ladder, images)
    assert {contender.form for contender in ROSTER} <= made.keys()
    assert [len(made[form]) for form in ("protocol", "raw", "base64", "many")] == [40, 40, 40, 40 // MANY]
    assert made["raw"][3].endswith(images[3].tobytes())
    assert made["protocol"][3].endswith(images[3].tobytes())
    assert made["many"][0].endswith(images[:MANY].tobytes())


def test_names_that_do_not_exist_are_refused() -> None:
    assert chosen("") == set(NAMES)
    assert chosen("mosec, cascade") == {"mosec", "cascade"}
    with pytest.raises(Exception, match="mosek"):
        chosen("mosek")


def test_a_share_of_the_rows_escalates_on_two_rungs(tmp_path: Path) -> None:
    made = derive(SHIPPED, tmp_path, 2, 64, "two")
    price = made.ladder.spec.base_prices[1]
    assert 0 < price < 1
    assert len(made.ladder.spec.stages) == 2


@pytest.mark.parametrize("peer", PEERS)
def test_a_peers_networks_are_run_by_the_same_torch(peer: str) -> None:
    pinned = dict(each.split("==") for each in requirements(peer) if "==" in each)
    assert {"torch", "numpy", peer} <= pinned.keys()
    assert "+" not in pinned["torch"]


def test_an_environment_that_was_made_for_other_requirements_is_not_ready(tmp_path: Path) -> None:
    home = tmp_path / "mosec"
    home.mkdir()
    assert not is_ready(tmp_path, "mosec")
    (home / "requirements.txt").write_text("\n".join(requirements("mosec")) + "\n")
    assert is_ready(tmp_path, "mosec")
    (home / "requirements.txt").write_text("mosec==0.1\n")
    assert not is_ready(tmp_path, "mosec")


def test_an_environment_that_cannot_be_made_is_missing_with_a_reason(tmp_path: Path) -> None:
    folder = tmp_path / "file"
    folder.write_text("in the way")
    with pytest.raises(Missing, match=r"\w"):
        interpreter(folder, "mosec")
