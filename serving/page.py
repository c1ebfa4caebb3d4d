"""The page at /, for people: what serves, and a form that ranks items for a user."""

from pathlib import Path

HTML = (Path(__file__).parent / "page.html").read_bytes()
