"""docs/outcome-table.md: its example runs as printed."""

import contextlib
import re
from pathlib import Path

from cascade.calibration.artefact import Calibration
from cascade.calibration.outcomes import OutcomeTable

DOCUMENT = Path(__file__).parents[2] / "docs" / "outcome-table.md"


def test_the_example_of_the_document_runs(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, object] = {}
    printed = (tmp_path / "printed").open("w+", encoding="utf-8")
    with contextlib.chdir(tmp_path), contextlib.closing(printed), contextlib.redirect_stdout(printed):
        for block in blocks:
            exec(compile(block, str(DOCUMENT), "exec"), names)
        printed.seek(0)
        assert [line.split(":")[0] for line in printed] == ["small", "medium", "large", "temperature of small"]
    table = OutcomeTable.read(tmp_path / "outcomes.npz")
    calibration = Calibration.read(tmp_path / "calibration.json")
    assert calibration.table.digest == table.digest()
    assert calibration.table.rows == 1500


def test_the_document_names_every_array_of_the_format() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for name in ("stages", "cost", "cost_unit", "labels", "group", "split"):
        assert f"| `{name}` |" in text
    for form in ("probs", "prediction", "score", "correct"):
        assert f"`{form}/<stage>`" in text
