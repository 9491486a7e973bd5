"""`cascade report` as a user types it: the page and its figures, what they say, and how it exits."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import typer
import yaml
from click.testing import Result
from ladders import write_ladder
from typer.testing import CliRunner

from cascade.calibration.artefact import ServiceProfile
from cascade.cli import calibrate, offline, report
from cascade.report import sections
from cascade.report.numbers import GAP
from cascade.report.page import SECTIONS
from cascade.spec import Ladder

DONE, USAGE = 0, 2
ROWS = 600
STAGES = ("rough", "fair", "fine")
UNIT, VERSION = "<b>MAC</b> & co", "<script>alert(1)</script>"
SMALL = ("--loads", "0.5,2,8", "--seconds", "0.5", "--max-loss", "0.05")
DRAWING = '<svg viewBox="0 0 1 1"></svg>'
VOID = {"meta", "br", "img", "link"}


def cascade(*arguments: object) -> Result:
    app = typer.Typer()
    for module in (offline, calibrate, report):
        module.register(app)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def done(*arguments: object) -> Result:
    result = cascade(*arguments)
    assert result.exit_code == DONE, result.output
    return result


class Page(HTMLParser):
    """What a browser would see: tags with their attributes, and the text of each section."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, str] = {}
        self.open: list[str] = []
        self._place = "header"
        self.feed(markup)
        self.close()

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "section":
            self._place = dict(attrs)["id"]
        if tag == "footer":
            self._place = "footer"

    def handle_startendtag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        if self.open and self.open[-1] != "style":
            self.text[self._place] = self.text.get(self._place, "") + " " + data.replace(GAP, " ")


@pytest.fixture(scope="module")
def ladder(tmp_path_factory) -> Path:
    """A ladder that was profiled on both splits and calibrated; its machines are slow, so that little fills them."""
    folder = tmp_path_factory.mktemp("report")
    spec = write_ladder(folder, ROWS)
    document = yaml.safe_load(spec.read_text())
    document |= {"version": VERSION, "cost_unit": UNIT, "deadline": {"default_s": 0.4}}
    spec.write_text(yaml.safe_dump(document))
    done("profile", spec)
    done("calibrate", spec)
    done("profile", spec, "--split", "test", "--out", folder / "calibration" / "test-outcomes.npz")
    path = Ladder.read(spec).service_path
    service = ServiceProfile.read(path)
    times = ((0.001, 0.0005), (0.003, 0.002), (0.008, 0.008))
    stages = [
        stage.model_copy(update={"a_s": a_s, "b_s": b_s}) for stage, (a_s, b_s) in zip(service.stages, times, strict=True)
    ]
    service.model_copy(update={"stages": tuple(stages)}).write(path)
    return folder


@pytest.fixture(scope="module")
def made(ladder) -> tuple[dict, Page, Path]:
    """The document for machines and the page of one run."""
    out = ladder / "first"
    document = json.loads(done("report", ladder, *SMALL, "--out", out, "--json").stdout)
    return document, Page((out / "index.html").read_text()), out


@pytest.fixture
def copy(ladder, tmp_path) -> Path:
    """The ladder, to be changed."""
    shutil.copytree(ladder, tmp_path / "copy")
    return tmp_path / "copy"


def test_the_page_has_its_sections_in_order(made) -> None:
    _, page, _ = made
    assert [attributes["id"] for tag, attributes in page.tags if tag == "section"] == list(SECTIONS)
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert links == [f"#{anchor}" for anchor in SECTIONS]
    assert [tag for tag, _ in page.tags if tag in ("h1", "h2")] == ["h1", *["h2"] * len(SECTIONS)]
    assert page.open == []


def test_the_page_says_on_which_rows_it_stands(made) -> None:
    document, page, _ = made
    assert (document["rows"], document["calibration_rows"]) == (ROWS, ROWS)
    assert f"on {ROWS} test rows" in page.text["header"]
    assert f"fitted on {ROWS} other rows" in page.text["header"]
    for source in document["sources"]:
        assert source["digest"][:16] in page.text["footer"]
        assert source["file"] in page.text["footer"]


def test_the_page_holds_what_was_computed(made) -> None:
    document, page, _ = made
    own, certificate, loads = document["operating_point"], document["certificate"], document["degradation"]["loads"]
    saved = document["savings"]
    assert saved["cost_ratio"] == pytest.approx(own["cost"] / saved["cost_top"])
    assert saved["cost_saved_per_day"] == pytest.approx((saved["cost_top"] - own["cost"]) * saved["rate"] * 86_400)
    assert f"{100 * own['accuracy']:.2f} %" in page.text["summary"]
    assert f"at most {100 * own['certified_loss']:.2f} %" in page.text["summary"]
    for load in loads[1:]:
        assert f"{100 * load['accuracy']:.2f} %" in page.text["summary"]
    for load in loads:
        assert f"{100 * load['accuracy']:.2f} % ± {100 * load['accuracy_se']:.2f}" in page.text["degradation"]
        assert f"{load['efficiency']:.3f} ± {load['efficiency_se']:.3f}" in page.text["degradation"]
    for stage, share in zip(STAGES, own["exit_shares"], strict=True):
        assert stage in page.text["ladder"]
        assert f"{100 * share:.1f} %" in page.text["ladder"]
    for stage in document["reliability"]:
        assert f"{stage['rows']:,}" in page.text["reliability"]
        assert f"{100 * stage['ece']:.2f} %" in page.text["reliability"]
    for point in (certificate["path"][0], certificate["path"][certificate["chosen"]], certificate["path"][-1]):
        assert f"{100 * point['bound']:.2f} %" in page.text["risk"]
        assert f"{100 * point['bound_below']:.2f} %" in page.text["risk"]
    assert f"{100 * document['plan']['points'][-1]['accuracy']:.2f} %" in page.text["plan"]
    for rule in document["anytime"]["rules"]:
        for share in (*rule["falls"], rule["falls_walked"][1], rule["accuracy"][0], rule["accuracy"][-1]):
            assert f"{100 * share:.2f} %" in page.text["anytime"]


def test_the_page_asks_for_nothing(made) -> None:
    _, page, out = made
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "img", "iframe", "object", "image")
        assert "src" not in attributes
        for name, value in attributes.items():
            if name in ("href", "xlink:href"):
                assert value is not None
                assert value.startswith("#")
                assert value[1:] in ids
    markup = (out / "index.html").read_text()
    assert "@import" not in markup
    assert markup.count("url(") == markup.count("url(#")


def test_every_figure_says_what_it_shows_and_lies_beside_the_page(made) -> None:
    document, page, out = made
    drawings = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert all(drawing["role"] == "img" and drawing["aria-label"] for drawing in drawings)
    names = {f"reliability-{number}" for number in (1, 2, 3)} | {"frontier", "risk", "plan", "degradation", "latency"}
    names.add("anytime")
    assert len(drawings) == len(names)
    expected = {"index.html"} | {f"{name}.{suffix}" for name in names for suffix in ("svg", "png")}
    assert {path.name for path in out.iterdir()} == expected == {Path(path).name for path in document["files"]}


def test_what_comes_from_files_is_text_and_not_markup(made) -> None:
    _, page, out = made
    markup = (out / "index.html").read_text()
    assert "<script" not in markup
    assert "<b>" not in markup
    assert VERSION in page.text["header"]
    assert UNIT in page.text["ladder"]


def test_the_same_inputs_give_the_same_bytes(ladder, made) -> None:
    _, _, out = made
    people = done("report", ladder, *SMALL, "--out", ladder / "again")
    assert "test rows" in people.stdout
    assert "index.html and 18 figures" in people.stdout
    for path in out.iterdir():
        assert path.read_bytes() == (ladder / "again" / path.name).read_bytes(), path.name


def test_a_spec_will_do_for_its_folder_and_the_page_goes_beside_it(copy) -> None:
    done("report", copy / "cascade.yaml", "--loads", "1", "--seconds", "0.2", "--max-loss", "0.05")
    page = Page((copy / "report" / "index.html").read_text())
    assert "Simulated at 1 times that rate" in page.text["summary"]


def test_what_is_out_of_the_ordinary_is_said(ladder) -> None:
    found = report.make_report(
        Ladder.read(ladder / "cascade.yaml"),
        ladder / "calibration" / "test-outcomes.npz",
        command="",
        multiples=[0.5],
        seconds=0.2,
        max_loss=0.05,
        confidence=0.9,
        seed=0,
        told=lambda what, share: None,
    )
    figures = {"degradation": DRAWING, "latency": DRAWING}
    plain = sections.degradation(found, figures)
    assert "routers" not in plain
    (load,) = found.degradation.loads
    lucky = replace(found.degradation, loads=(replace(load, efficiency=1.1, efficiency_se=0.04),))
    unsure = replace(found.degradation, loads=(replace(load, efficiency=1.1, efficiency_se=0.06),))
    assert "E is above 1" in sections.degradation(replace(found, degradation=lucky), figures)
    assert "E is above 1" not in sections.degradation(replace(found, degradation=unsure), figures)
    assert "3 routers" in sections.degradation(replace(found, routers=3), figures)
    none = found.certificate.model_copy(update={"chosen": None, "price_cap": None})
    assert "Nothing can be certified" not in sections.risk(found, DRAWING)
    assert "Nothing can be certified" in sections.risk(replace(found, certificate=none), DRAWING)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--loads", "1,many"), "--loads: expected numbers"),
        (("--loads", "0"), "above 0"),
        (("--seconds", "-1"), "seconds: expected"),
        (("--max-loss", "0.001"), "at least 2302 are needed"),
        (("--confidence", "1"), "confidence must lie"),
        (("--table", "calibration/outcomes.npz"), "fitted on these very rows"),
    ],
)
def test_what_cannot_be_reported_exits_with_2(ladder, arguments, named) -> None:
    arguments = [ladder / word if word.endswith(".npz") else word for word in arguments]
    result = cascade("report", ladder, "--out", ladder / "never", *arguments)
    assert result.exit_code == USAGE, result.output
    assert named in result.stderr
    assert not (ladder / "never").exists()


def test_without_test_rows_it_says_which_command_makes_them(copy) -> None:
    (copy / "calibration" / "test-outcomes.npz").unlink()
    result = cascade("report", copy)
    assert result.exit_code == USAGE
    table = copy / "calibration" / "test-outcomes.npz"
    assert f"cascade profile {copy / 'cascade.yaml'} --split test --out {table}" in " ".join(result.stderr.split())


def test_a_calibration_of_another_table_is_refused(copy) -> None:
    shutil.copy(copy / "calibration" / "test-outcomes.npz", copy / "calibration" / "outcomes.npz")
    result = cascade("report", copy)
    assert result.exit_code == USAGE
    assert "cascade calibrate" in result.stderr


def test_a_folder_without_a_ladder_exits_with_2(tmp_path) -> None:
    result = cascade("report", tmp_path)
    assert result.exit_code == USAGE
    assert "cascade.yaml" in result.stderr


def test_without_matplotlib_it_says_what_to_install_before_any_work(tmp_path) -> None:
    program = (
        "import sys; sys.modules['matplotlib'] = None\n"  # what Python itself does for a module that must not be found
        "import typer; from cascade.cli import report\n"
        "app = typer.Typer(); report.register(app); app()"
    )
    result = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False)
    assert result.returncode == USAGE
    assert "pip install 'cascade-serve[plots]'" in " ".join(result.stderr.split())
