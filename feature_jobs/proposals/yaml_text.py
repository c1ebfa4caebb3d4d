"""Writes a proposed scenario as YAML from a template, so that each choice has its reason beside it."""

from __future__ import annotations

import io
import math
import operator
import re
from collections.abc import Mapping
from pathlib import Path

from feature_jobs.proposals.days import Counts, usual_rows


def render(template: str, choices: Mapping[str, object]) -> str:
    """The scenario file or the summary for a person, from the choices that its template names."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=select_autoescape(),  # off for YAML: `flow` quotes
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    # A tab begins each comment until all comments are aligned; `flow` writes tabs as \t.
    environment.filters |= {"flow": flow, "note": lambda text: text and f"\t# {text}", "batch_size": batch_size}
    environment.filters["combine"] = operator.or_
    text = environment.get_template(template).render(choices)
    return re.sub(r"(?m)^([^\t\n]*)\t", lambda match: f"{match[1]:<48} ", text)


def flow(value: object) -> str:
    """A value in YAML's flow style, on one line."""
    from ruamel.yaml import YAML

    yaml, stream = YAML(), io.StringIO()
    yaml.default_flow_style, yaml.width = True, 1_000_000
    yaml.representer.ignore_aliases = lambda _: True  # a first day that is the last as well
    yaml.dump(value, stream)
    return stream.getvalue().removesuffix("...\n").strip()


def batch_size(counts: Counts) -> int:
    """About 64 steps a day: a day is learned in one pass, and with fewer steps the model hardly leaves its start."""
    return int(min(max(2 ** round(math.log2(usual_rows(counts) / 64)), 16), 512))
