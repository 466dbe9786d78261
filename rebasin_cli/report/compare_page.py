"""A comparison as one HTML page, in light and dark, for wide and narrow screens; no script, nothing from elsewhere.

The heat map has a cell for each module, in the order of the model, before alignment and after it: the stronger the
color, the larger the relative distance `|A - B| / |A|`, by its square root, so that small ones show; 1 is the end.
"""

from __future__ import annotations

from html import escape

from rebasin_cli.report.compare import HEADINGS, VERDICTS, equal_of, figures, name_of, reasons, summary
from rebasin_cli.report.text import counted, number, printable
from rebasin_cli.verbs.compare import ComparedModule, CompareResult

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2530; --soft: #566170; --page: #fff; --line: #d5dae1; --hot: #d9480f;
  --band: #f4f6f8; --top: 70%; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --soft: #a3adba; --page: #14181d; --line: #353d47;
  --hot: #ff8a4c; --band: #1c222a; --top: 45%; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 68rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
.verdict { border-left: .3rem solid var(--hot); background: var(--band); padding: .75rem 1rem; margin: 1rem 0; }
.verdict p { margin: .25rem 0 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.25rem; margin: 0; }
dt { color: var(--soft); } dd { margin: 0; }
.map { display: grid; grid-template-columns: max-content 1fr; gap: .3rem .75rem; align-items: center; }
.cells { display: flex; flex-wrap: wrap; gap: 2px; }
.cell { flex: 1 1 .5rem; min-width: .5rem; max-width: 2.5rem; height: 1.6rem; border: 1px solid var(--line); }
.cell, td.heat { background: color-mix(in srgb, var(--hot) calc(var(--h) * var(--top)), var(--page)); }
.none { background: repeating-linear-gradient(45deg, var(--page) 0 4px, var(--line) 4px 5px); }
.legend { color: var(--soft); font-size: .85rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; color: var(--soft); font-weight: 600; font-size: .85rem; vertical-align: bottom; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); }
td:not(:first-child), th:not(:first-child) { text-align: right; white-space: nowrap; }
tr.same td:first-child { color: var(--soft); }
@media (max-width: 40rem) {
  dl, .map { grid-template-columns: 1fr; } dd { margin-bottom: .4rem; }
  thead { display: none; } table, tbody { display: block; }
  tr { display: grid; grid-template-columns: 1fr 1fr; border-bottom: 1px solid var(--line); padding: .4rem 0; }
  td, td:not(:first-child) { border: 0; text-align: left; padding: .1rem .4rem; white-space: normal; }
  td:first-child { grid-column: 1 / -1; font-weight: 600; }
  td[data-label]::before { content: attr(data-label) ": "; color: var(--soft); }
  td.heat[data-label]::before { color: inherit; }
}
"""


def compare_page(result: CompareResult) -> str:
    """The page, as UTF-8 text."""
    title = f"{result.a.name} and {result.b.name}: {result.verdict}"
    sentences = "".join(f"<p>{_text(one)}</p>" for one in (VERDICTS[result.verdict], *reasons(result)))
    facts = "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in summary(result))
    warnings = "".join(f"<li>{_text(one)}</li>" for one in result.warnings)
    return "\n".join(
        (
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{_text(title)}</title>",
            f"<style>{_STYLE}</style></head><body>",
            "<h1>Comparison of two checkpoints</h1>",
            f'<div class="verdict"><strong>Verdict: {_text(result.verdict)}</strong>{sentences}</div>',
            f"<dl>{facts}</dl>",
            _heat_map(result),
            _table(result),
            f"<h2>Warnings</h2><ul>{warnings}</ul>" if warnings else "",
            "</body></html>",
            "",
        )
    )


def _text(value: object) -> str:
    return escape(printable(value))


def _heat_map(result: CompareResult) -> str:
    """One row of cells for B as it is, and one for B aligned."""
    lines = []
    for name, place in (("before alignment", 2), ("after alignment", 3)):
        if place == 3 and result.distance.after is None:
            continue
        cells = "".join(_cell(one, figures(one)[place]) for one in result.modules)
        lines.append(f'<span>{name}</span><div class="cells">{cells}</div>')
    legend = (
        f"{counted(len(result.modules), 'module')} in the order of the model. Color: square root of the relative "
        "distance |A - B| / |A|, from 0 (none) to 1 and above (strongest); hatched: no parameters."
    )
    return f'<h2>Where they differ</h2><div class="map">{"".join(lines)}</div><p class="legend">{legend}</p>'


def _cell(module: ComparedModule, value: float | None) -> str:
    name = f"{name_of(module)}: {number(value)}"
    if value is None:
        return f'<span class="cell none" title="{_text(name)}"></span>'
    return f'<span class="cell" style="--h:{_heat(value)}" title="{_text(name)}"></span>'


def _heat(value: float) -> str:
    return f"{min(1.0, max(0.0, value)) ** 0.5:.3f}"


def _table(result: CompareResult) -> str:
    aligned = result.distance.after is not None
    columns = [1, 2, 3, 4] if aligned else [1, 3]
    labels = ("", "cosine before", "cosine after", "relative distance before", "relative distance after")
    head = "".join(f"<th>{labels[column]}</th>" for column in columns)
    lines = []
    for module in result.modules:
        values = figures(module)
        cells = "".join(_figure(labels[column], values[column - 1], heat=column > 2) for column in columns)
        kind = "" if module.changed else ' class="same"'
        equal = f'<td data-label="{HEADINGS[-1]}">{equal_of(module)}</td>'
        lines.append(f"<tr{kind}><td>{_text(name_of(module))}</td>{cells}{equal}</tr>")
    return (
        f"<h2>Modules</h2><table><thead><tr><th>module</th>{head}<th>{HEADINGS[-1]}</th></tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table>"
    )


def _figure(label: str, value: float | None, *, heat: bool) -> str:
    style = f' class="heat" style="--h:{_heat(value)}"' if heat and value is not None else ""
    return f'<td data-label="{label}"{style}>{number(value)}</td>'
