"""HTML of the report page: one file that fetches nothing, readable on a telephone and in the dark. Knows no ladder.

Whatever is passed as text is escaped here; only what is called markup is not.
"""

import re
from collections.abc import Iterable, Sequence
from html import escape

STYLE = """
:root { color-scheme: light dark; --ink: #1c2321; --soft: #59635f; --line: #d9dfdc; --paper: #fbfcfb; --card: #ffffff;
  --accent: #0b6e4f; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6ebe8; --soft: #a0aca7; --line: #3a4440; --paper: #141917; --card: #1d2421; --accent: #6cc9a1; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main, header, footer { max-width: 62rem; margin: 0 auto; padding: 0 1rem; }
header { padding-top: 2rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .5rem; padding-top: .8rem; border-top: 1px solid var(--line); }
p, li { max-width: 46rem; }
a { color: var(--accent); }
nav ol { display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; padding: 0 0 0 1.2rem; font-size: .92rem; }
nav li { padding-right: .6rem; }
.note, figcaption { color: var(--soft); font-size: .88rem; max-width: 52rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(16rem, 1fr)); gap: .8rem;
  padding: 0; margin: 1rem 0; }
.cards > div { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .8rem 1rem; }
.cards dt { font-size: .85rem; color: var(--soft); }
.cards dd { margin: 0; }
.cards .number { font-size: 1.6rem; font-weight: 650; color: var(--accent); line-height: 1.3; }
.cards .said { font-size: .88rem; }
figure { margin: 1rem 0; }
.panel { background: #ffffff; border: 1px solid var(--line); border-radius: .5rem; padding: .5rem; overflow-x: auto; }
.panel svg { display: block; width: 100%; height: auto; max-width: 46rem; min-width: 20rem; margin: 0 auto; }
.small .panel svg { min-width: 0; max-width: 22rem; }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(17rem, 100%), 1fr)); gap: .8rem; }
.panels figure { margin: 0; }
svg * { stroke-linejoin: round; stroke-linecap: butt; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem .25rem 0; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
thead th { font-weight: 600; vertical-align: bottom; white-space: normal; }
th:first-child, .words td, .words th { text-align: left; }
tbody th { font-weight: 500; white-space: normal; min-width: 6.5rem; }
.words tbody th { overflow-wrap: anywhere; }
tr.marked > * { font-weight: 650; color: var(--accent); }
code { font-size: .9em; overflow-wrap: anywhere; }
footer { margin-top: 3rem; padding-bottom: 3rem; border-top: 1px solid var(--line); }
"""

Row = Sequence[str]

_ID = re.compile(r'\bid="([^"]+)"')
_REFERENCE = re.compile(r'(href="#|url\(#)([^")]+)')
_SIZE = re.compile(r'<svg\b[^>]*?viewBox="([^"]+)"[^>]*>', re.DOTALL)
_DROPPED = re.compile(r"<metadata>.*?</metadata>|<style\b.*?</style>|<!--.*?-->", re.DOTALL)


def inline_svg(svg: str, name: str, label: str) -> str:
    """A figure's SVG file as markup for the inside of a page.

    Args:
        svg: the file, as matplotlib writes it.
        name: put before every id, since those of several figures are the same.
        label: what a person who cannot see the figure should know.
    """
    body = _DROPPED.sub("", svg[svg.index("<svg") :])
    body = _ID.sub(rf'id="{name}-\1"', body)
    body = _REFERENCE.sub(rf"\1{name}-\2", body)
    head = f'<svg viewBox="{{}}" role="img" aria-label="{escape(label)}">'
    # A function, since the label may hold what a pattern would take for a reference.
    return re.sub(r"\n\s*", "\n", _SIZE.sub(lambda found: head.replace("{}", found[1]), body, count=1)).strip()


def figure(svg: str, name: str, label: str, caption: str = "", small: bool = False) -> str:
    """A figure on a white card; see `inline_svg`."""
    said = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    kind = ' class="small"' if small else ""
    return f'<figure{kind}><div class="panel" tabindex="0">{inline_svg(svg, name, label)}</div>{said}</figure>'


def table(caption: str, head: Row, rows: Iterable[Row], marked: Iterable[int] = (), words: bool = False) -> str:
    """A table whose first column names the rows and whose other columns are numbers.

    Args:
        caption: what it shows; outside of what scrolls sideways on a narrow screen.
        head: names of the columns.
        rows: cells.
        marked: rows to bring out.
        words: whether the other columns are words.
    """
    bold, kind = set(marked), ' class="words"' if words else ""
    parts = [f'<figure><figcaption>{escape(caption)}</figcaption><div class="scroll" tabindex="0"><table{kind}><thead><tr>']
    parts += [f'<th scope="col">{escape(cell)}</th>' for cell in head]
    parts.append("</tr></thead><tbody>")
    for index, row in enumerate(rows):
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        kind = ' class="marked"' if index in bold else ""
        parts.append(f'<tr{kind}><th scope="row">{escape(row[0])}</th>{cells}</tr>')
    return "".join([*parts, "</tbody></table></div></figure>"])


def cards(entries: Iterable[tuple[str, str, str]]) -> str:
    """Numbers to see first: what it is, the number, what it means."""
    parts = [
        f'<div><dt>{escape(term)}</dt><dd class="number">{escape(number)}</dd><dd class="said">{escape(said)}</dd></div>'
        for term, number, said in entries
    ]
    return f'<dl class="cards">{"".join(parts)}</dl>'


def heading(text: str) -> str:
    """The title of the page."""
    return f"<h1>{escape(text)}</h1>"


def paragraph(text: str, note: bool = False) -> str:
    """A paragraph."""
    kind = ' class="note"' if note else ""
    return f"<p{kind}>{escape(text)}</p>"


def section(anchor: str, title: str, *markup: str) -> str:
    """A section with a heading, to be linked to."""
    return f'<section id="{anchor}"><h2>{escape(title)}</h2>{"".join(markup)}</section>'


def contents(entries: Iterable[tuple[str, str]]) -> str:
    """Links to sections: anchor and title of each."""
    links = "".join(f'<li><a href="#{anchor}">{escape(title)}</a></li>' for anchor, title in entries)
    return f'<nav aria-label="Contents"><ol>{links}</ol></nav>'


def document(title: str, header: str, main: str, footer: str) -> str:
    """The page; header, main and footer are markup."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>\n"
        f"<header>{header}</header>\n<main>{main}</main>\n<footer>{footer}</footer>\n</body></html>\n"
    )
