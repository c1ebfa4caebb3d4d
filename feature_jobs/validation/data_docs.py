"""Great Expectations' Data Docs with the same bytes for the same result.

GX stamps pages with the time of rendering, random element ids, the time a batch was loaded and the machine's time zone.
Here the views are GX's own but for those. Importing this module imports Great Expectations: do it inside a function.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from great_expectations.core.expectation_validation_result import ExpectationSuiteValidationResult
from great_expectations.data_context.types.resource_identifiers import (
    ExpectationSuiteIdentifier,
    ValidationResultIdentifier,
)
from great_expectations.render.view import DefaultJinjaIndexPageView, DefaultJinjaPageView
from jinja2 import pass_context

BATCH = "samples"


class _SameBytes:
    """Overrides the two filters that GX's views register in their environment."""

    _num_ids = 0

    @pass_context
    def add_data_context_id_to_url(self, _jinja_context: Any, url: str, _add_datetime: bool = True) -> str:
        return url

    def generate_html_element_uuid(self, prefix: str | None = None) -> str:
        self._num_ids += 1
        return f"{prefix or ''}{self._num_ids}"


class PageView(_SameBytes, DefaultJinjaPageView):  # type: ignore[misc]
    """A page of one suite or one validation."""


class IndexView(_SameBytes, DefaultJinjaIndexPageView):  # type: ignore[misc]
    """The page that links to them."""


def build_docs(context: Any, result: ExpectationSuiteValidationResult, run_id: Any, folder: Path) -> None:
    """Builds `folder`/index.html and the pages of the context's suite and of this result.

    GX copies 4 MB of pictures and fonts that the pages don't use (they load style and scripts from public CDNs);
    these are left out.
    """
    with _utc():
        for name in ("batch_markers", "validation_time"):
            result.meta.pop(name, None)
        result.meta["run_id"] = run_id
        suite = ExpectationSuiteIdentifier(result.suite_name)
        key = ValidationResultIdentifier(expectation_suite_identifier=suite, run_id=run_id, batch_identifier=BATCH)
        context.validation_results_store.store_validation_results(result, key, suite)
        page = {"view": {"module_name": __name__, "class_name": PageView.__name__}}
        site = {
            "class_name": "SiteBuilder",
            "show_how_to_buttons": False,
            "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(folder)},
            "site_section_builders": {"expectations": page, "validations": page, "profiling": "none"},
            "site_index_builder": {
                "class_name": "DefaultSiteIndexBuilder",
                "view": {"module_name": __name__, "class_name": IndexView.__name__},
            },
        }
        context.add_data_docs_site("day", site)
        context.build_data_docs(site_names=["day"])
    shutil.rmtree(folder / "static", ignore_errors=True)


@contextmanager
def _utc() -> Iterator[None]:
    """GX writes the run's time, our `ds`, in the zone of the process."""
    before = os.environ.get("TZ")
    os.environ["TZ"] = "UTC"
    time.tzset()
    try:
        yield
    finally:
        if before is None:
            del os.environ["TZ"]
        else:
            os.environ["TZ"] = before
        time.tzset()
