"""The wrapper that CONTRIBUTING.md shows, with the test that it shows."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "CONTRIBUTING.md"


def _blocks() -> str:
    chapter = PAGE.read_text(encoding="utf-8").partition("## Add a wrapper")[2]
    return "\n".join(re.findall(r"^```python\n(.*?)^```", chapter, re.MULTILINE | re.DOTALL))


_namespace: dict[str, object] = {"__name__": __name__}
exec(_blocks(), _namespace)

TestComplementStore = _namespace["TestComplementStore"]


def test_it_stores_what_it_says():
    with _namespace["ComplementStore"](_namespace["DictStore"]()) as store:
        store.put("key", b"\x00\x0f")
        assert store.store.get("key") == b"\xff\xf0"
