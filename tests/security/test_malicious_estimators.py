"""A file of skops that somebody else made calls nothing that the reader did not trust by name."""

from __future__ import annotations

import io
import json
import sys
import types
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from blobstore import UntrustedTypeError
from blobstore.errors import DecodeError
from blobstore.handlers.classes import put_together
from blobstore.handlers.skops import SkopsHandler
from blobstore.protocols import StoredPart
from blobstore.streams import BytesSource
from blobstore.trust import EVERYTHING, Trust, TypePatterns

pytest.importorskip("skops.io")

MARKER = "marker"


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def estimator(module, name, *, size=0):
    """A list of skops whose type is something else: it is called with the items."""
    from skops.io import dumps

    with zipfile.ZipFile(io.BytesIO(dumps(["touch", MARKER]))) as archive:
        schema = json.loads(archive.read("schema.json"))
    schema |= {"__module__": module, "__class__": name}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("schema.json", json.dumps(schema) + " " * size)
    return out.getvalue()


def read(data, trust):
    part = StoredPart("data", BytesSource(data), "none", "skops", 1, trust)
    return SkopsHandler().read({"data": part}, {})


def trusting(*patterns, **limits):
    return Trust(types=TypePatterns(patterns), **limits)


def test_the_attack_works_on_whoever_trusts_everything():
    read(estimator("sklearn.utils._testing", "check_output"), EVERYTHING)
    assert Path(MARKER).exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("sklearn.utils._testing", "check_output"),
        ("sklearn.utils._testing", "os"),
        ("sklearn.utils._testing.os", "system"),
        ("subprocess", "check_output"),
        ("builtins", "eval"),
    ],
)
@pytest.mark.parametrize("patterns", [(), ("sklearn.*",)])
def test_what_a_trusted_package_imported_is_not_called(module, name, patterns):
    with pytest.raises(UntrustedTypeError):
        read(estimator(module, name), trusting(*patterns))
    assert not Path(MARKER).exists()


def test_a_name_that_is_not_there():
    with pytest.raises(DecodeError):
        read(estimator("sklearn.utils", "no_such_thing"), trusting("sklearn.*"))


def test_what_is_trusted_is_loaded():
    from sklearn.utils import Bunch

    assert read(estimator("builtins", "list"), trusting()) == ["touch", MARKER]
    with pytest.raises(DecodeError, match="cannot be loaded"):  # it is called, and takes no list
        read(estimator("sklearn.utils._bunch", "Bunch"), trusting("sklearn.utils._bunch.Bunch"))
    assert Bunch.__module__ == "sklearn.utils._bunch"


def test_an_archive_that_grows_is_refused():
    data = estimator("builtins", "list", size=1 << 24)
    assert read(data, trusting()) == ["touch", MARKER]
    assert read(data, EVERYTHING) == ["touch", MARKER]
    with pytest.raises(DecodeError, match="max_decompressed_bytes"):
        read(data, trusting(max_decompressed=1 << 20))


@dataclass
class Basket:
    fruit: str = "plum"


def test_an_alias_of_a_class_is_trusted_only_if_that_is(monkeypatch):
    Basket.__module__ = "farm.models"
    shop, farm = types.ModuleType("shop"), types.ModuleType("farm.models")
    shop.Basket = farm.Basket = Basket
    monkeypatch.setitem(sys.modules, "shop", shop)
    monkeypatch.setitem(sys.modules, "farm", types.ModuleType("farm"))
    monkeypatch.setitem(sys.modules, "farm.models", farm)

    def make(*patterns):
        fields = {"fields": {"fruit": "pear"}}
        return put_together("dataclass", "shop:Basket", lambda: fields, trusting(*patterns))

    with pytest.raises(UntrustedTypeError, match=r"farm\.models\.Basket"):
        make("shop.*")
    assert make("shop.*", "farm.*") == Basket("pear")
