"""HTML from text: everything is escaped, figures keep their references apart, numbers read well."""

import pytest

from cascade.report import markup
from cascade.report.numbers import GAP, duration, percent, price, quantity, times

HOSTILE = '<img src="http://example.org/x" onerror=alert(1)> & "quoted"'
SVG = """<?xml version="1.0"?>
<!-- made by hand -->
<svg xmlns:xlink="http://www.w3.org/1999/xlink" width="10pt" height="5pt" viewBox="0 0 10 5" version="1.1">
 <metadata><a href="http://example.org"/></metadata>
 <defs><style type="text/css">*{color:red}</style><path id="p1" d="M0 0"/></defs>
 <g id="axes_1" clip-path="url(#p1)"><use xlink:href="#p1"/></g>
</svg>"""


@pytest.mark.parametrize(
    "made",
    [
        markup.table(HOSTILE, (HOSTILE, HOSTILE), [(HOSTILE, HOSTILE)]),
        markup.cards([(HOSTILE, HOSTILE, HOSTILE)]),
        markup.paragraph(HOSTILE),
        markup.heading(HOSTILE),
        markup.section("a", HOSTILE),
        markup.contents([("a", HOSTILE)]),
        markup.figure(SVG, "a", HOSTILE, HOSTILE),
        markup.document(HOSTILE, "", "", ""),
    ],
)
def test_text_is_never_markup(made) -> None:
    assert "&lt;img" in made
    assert "<img" not in made
    assert '"quoted"' not in made


def test_figures_do_not_share_ids() -> None:
    one, two = (markup.inline_svg(SVG, name, "what it shows") for name in ("one", "two"))
    assert 'id="one-p1"' in one
    assert 'href="#one-p1"' in one
    assert "url(#one-p1)" in one
    assert two == one.replace("one-", "two-")


def test_an_inline_figure_scales_says_what_it_shows_and_asks_for_nothing() -> None:
    made = markup.inline_svg(SVG, "a", "what it shows")
    assert made.startswith('<svg viewBox="0 0 10 5" role="img" aria-label="what it shows">')
    for gone in ("http", "metadata", "<style", "<?xml", "<!--", "10pt"):
        assert gone not in made


def test_marked_rows_stand_out() -> None:
    made = markup.table("", ("a", "b"), [("x", "1"), ("y", "2")], marked=[1])
    assert made.count('class="marked"') == 1
    assert '<tr class="marked"><th scope="row">y' in made


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (percent(0.12345, 2), "12.35 %"),
        (percent(None, 2), ""),
        (quantity(5_397_390.0), "5.4 M"),
        (quantity(2.5e9), "2.5 G"),
        (quantity(36_528.0), "36,528"),
        (quantity(1.25), "1.25"),
        (duration(0.0183), "18.3 ms"),
        (duration(1.0), "1 s"),
        (duration(None), ""),
        (times(13.854), "13.9 x"),
        (times(3330.2), "3,330 x"),
        (price(0.0748), "0.075"),
        (price(2051.0), "1 or more"),
    ],
)
def test_numbers_read_well(shown, expected) -> None:
    assert shown.replace(GAP, " ") == expected
