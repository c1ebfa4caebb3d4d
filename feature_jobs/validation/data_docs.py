"""Great Expectations' Data Docs as pages that open without a network, with the same bytes for the same result.

GX renders the sections. Its page around them loads styles and scripts from seven public CDNs, draws the index with
those scripts, and contains the time of rendering and random element ids; the templates here replace those parts.
They are text in this module, not files beside it, so that the step's code digest covers them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ page_title }}</title>
<link rel="stylesheet" href="{{ root }}style.css">
</head>
<body>
<header><a href="{{ root }}index.html">Data Docs</a> {{ page_title }}</header>
<div class="page">
<nav>
{% for section in sections %}<a href="#section-{{ loop.index }}">{{ section["section_name"] }}</a>{% endfor %}
</nav>
<main>
{% for section in sections %}{% set section_loop = loop -%}{% include "section.j2" %}{% endfor %}
</main>
</div>
</body>
</html>
"""
COLLAPSE = """<details>
<summary>{{ content_block.get("collapse_toggle_link", "Show more") | render_content_block }}</summary>
{% for block in content_block["collapse"] %}
{{ block | render_content_block(content_block_id=content_block_id ~ "-item-" ~ loop.index) }}
{% endfor %}</details>
"""
GRAPH = """<p>(a chart; its numbers are in the result)</p>
"""
INDEX = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Data Docs: {{ suite }} {{ ds }}</title>
<link rel="stylesheet" href="style.css">
</head>
<body>
<header><a href="index.html">Data Docs</a> {{ suite }}, {{ ds }}</header>
<div class="page"><main>
<h1>Expectations of the day</h1>
<table class="table">
<thead><tr><th>Day</th><th>Result</th><th>Expectations</th><th>Met</th><th>Not met</th><th>Pages</th></tr></thead>
<tbody><tr>
<td>{{ ds }}</td>
<td class="{{ 'text-success' if success else 'text-danger' }}">{{ "all met" if success else "not all met" }}</td>
<td>{{ total }}</td><td>{{ met }}</td><td>{{ total - met }}</td>
<td><a href="{{ validation }}">validation</a>, <a href="{{ expectations }}">expectations</a></td>
</tr></tbody>
</table>
{% if note %}<p>{{ note }}</p>{% endif %}
<p>This page shows the expectations alone. The verdict, with leaks and drift, is in verdict.json beside this folder.</p>
</main></div>
</body>
</html>
"""
STYLE = """:root { color-scheme: light dark; }
body { margin: 0; font: 15px/1.5 system-ui, sans-serif; }
header { padding: .8rem 1.5rem; border-bottom: 1px solid #8886; font-weight: 600; }
header a { margin-right: 1rem; }
a { color: light-dark(#0b57d0, #8ab4f8); }
.page { display: flex; gap: 2rem; padding: 1rem 1.5rem; align-items: flex-start; }
nav { position: sticky; top: 1rem; flex: 0 0 13rem; max-height: 90vh; overflow: auto; }
nav a { display: block; padding: .15rem 0; overflow-wrap: anywhere; text-decoration: none; }
main { flex: 1; min-width: 0; }
h1, h2, h3, h4, h5, h6, .h6 { margin: .6rem 0 .3rem; font-size: 1rem; font-weight: 600; }
h1 { font-size: 1.3rem; }
.alert { padding: .5rem .8rem; border-radius: .3rem; background: #8882; }
.table-responsive { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; margin: .5rem 0 1.2rem; }
th, td { padding: .35rem .6rem; text-align: left; vertical-align: top; border-bottom: 1px solid #8885; }
td > div { overflow: auto; max-height: 60vh; }
ul { padding-left: 1.2rem; margin: .2rem 0; }
.list-group { list-style: none; padding: 0; }
.badge { padding: 0 .35rem; border-radius: .3rem; background: #8884; font-family: ui-monospace, monospace; }
.text-success { color: light-dark(#137333, #81c995); }
.text-danger { color: light-dark(#b3261e, #f28b82); }
.text-warning { color: light-dark(#8a5a00, #fdd663); }
.fas { font-style: normal; font-weight: 700; }
.fa-check-circle::before { content: "\\2713"; }
.fa-times::before { content: "\\2717"; }
.fa-exclamation-triangle::before { content: "\\26A0"; }
.cooltip .top { display: none; }
details { margin: .5rem 0; }
"""
_TO_ROOT = "../../../../"  # GX's result page links to its suite with this many steps up


def write_docs(results: Sequence[Any], suite: Any, ds: str, folder: Path, note: str = "") -> None:
    """Writes `folder`/index.html, the page of these results (of all expectations), and that of their suite.

    `note` stands below the table of the index.
    """
    import great_expectations as gx
    from great_expectations.core import ExpectationSuiteValidationResult
    from great_expectations.render.renderer.page_renderer import (
        ExpectationSuitePageRenderer,
        ValidationResultsPageRenderer,
    )

    for one in results:
        one.result = _plain(one.result)
    met = sum(bool(one.success) for one in results)
    numbers = {
        "evaluated_expectations": len(results),
        "successful_expectations": met,
        "unsuccessful_expectations": len(results) - met,
        "success_percent": 100 * met / len(results) if results else None,
    }
    # GX's own result has the times of validation and of loading, which differ between equal runs.
    result = ExpectationSuiteValidationResult(
        success=met == len(results),
        results=list(results),
        suite_name=suite.name,
        statistics=numbers,
        meta={
            "great_expectations_version": gx.__version__,
            "run_id": {"run_name": ds, "run_time": f"{ds}T00:00:00Z"},
        },
    )
    validation, expectations = f"validations/{suite.name}/{ds}/samples/index.html", f"expectations/{suite.name}.html"
    _write(folder / validation, _page(ValidationResultsPageRenderer().render(result), _TO_ROOT))
    _write(folder / expectations, _page(ExpectationSuitePageRenderer().render(suite), "../"))
    facts = {"suite": suite.name, "ds": ds, "success": result.success, "total": len(results), "met": met}
    _write(folder / "index.html", _index(**facts, note=note, validation=validation, expectations=expectations))
    _write(folder / "style.css", STYLE)


def _plain(value: Any) -> Any:
    """Numbers of Python for those of numpy: GX renders (and serialises) only these."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value.item() if isinstance(value, np.generic) else value


def _page(content: Any, root: str) -> str:
    """A page of GX's sections in our frame; `root` leads from it to the index."""
    from great_expectations.render.view import DefaultJinjaPageView
    from jinja2 import ChoiceLoader, DictLoader

    # Numbers instead of random ids in the page: equal results must give equal bytes.
    view, numbers = DefaultJinjaPageView(), itertools.count(1)
    # Our frame first: Great Expectations' own loads styles and scripts from the internet.
    ours = DictLoader({"page.j2": PAGE, "collapse.j2": COLLAPSE, "graph.j2": GRAPH})
    view.env.loader = ChoiceLoader([ours, view.env.loader])
    view.env.filters["generate_html_element_uuid"] = lambda prefix: f"{prefix}{next(numbers)}"
    return str(view.render(content, root=root))


def _index(**facts: Any) -> str:
    from jinja2 import Environment

    # The suite's name is a user's text.
    return Environment(autoescape=True).from_string(INDEX).render(**facts)


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
