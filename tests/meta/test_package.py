"""What holds of the package as a whole: imports, layers, exports, the two README commands."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import blobstore
import blobstore.aio
from blobstore.registry import store_types

ROOT = Path(__file__).parents[2]
HEAVY = (
    "numpy",
    "pandas",
    "pyarrow",
    "blosc2",
    "torch",
    "sqlalchemy",
    "lark",
    "filelock",
    "cryptography",
    "tenacity",
    "yaml",
    "obstore",
    "polars",
    "scipy",
    "PIL",
    "pydantic",
    "xarray",
    "sklearn",
    "skops",
)


def python(code: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *options, "-c", code], capture_output=True, text=True, check=True
    )


def test_importing_the_package_loads_nothing_heavy():
    loaded = json.loads(
        python("import blobstore, sys, json; print(json.dumps([*sys.modules]))").stdout
    )
    assert not [name for name in loaded if name.partition(".")[0] in HEAVY]


def test_a_json_store_of_plain_objects_loads_no_table_library(tmp_path):
    code = f"""
import json, sys
from blobstore import BlobStore
with BlobStore({str(tmp_path)!r}) as store:
    for obj in ({{"a": 1}}, [1, ("x",)], 2.5, print):
        store.put(obj, key="k")
        assert store.get("k") == obj
print(json.dumps([*sys.modules]))
"""
    loaded = json.loads(python(code).stdout)
    assert not [name for name in loaded if name in set(HEAVY) - {"filelock"}]


@pytest.mark.parametrize("name", sorted(blobstore.__all__))
def test_every_exported_name_exists(name):
    assert getattr(blobstore, name) is not None


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        blobstore.nothing  # noqa: B018


def test_names_that_type_checkers_see_are_those_that_are_exported():
    text = (ROOT / "blobstore/__init__.py").read_text(encoding="utf-8")
    for name in set(blobstore.__all__) - {"__version__"}:
        assert f" import {name} as {name}\n" in text


def test_the_package_says_that_it_is_typed():
    assert (Path(blobstore.__file__).parent / "py.typed").exists()


@pytest.mark.parametrize("name", ["run", "test"])
def test_the_readme_has_its_two_commands(name):
    found = subprocess.run(
        [sys.executable, str(ROOT / ".ci/readme_command.py"), name],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert len(found.stdout.strip().splitlines()) == 1


def test_the_quickstart_finds_and_uses_the_best_model(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples/quickstart.py"), str(tmp_path / "store")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "best: models/digits/support-vectors" in done.stdout
    assert "deployed: models/digits/support-vectors" in done.stdout


def built_in_store_types() -> list[str]:
    return sorted(set(store_types.names()) - set(store_types.third_party()))


@pytest.mark.parametrize("name", built_in_store_types())
def test_every_store_type_is_exported_documented_and_has_an_async_face(name):
    assert getattr(blobstore, name) is store_types.get(name)
    page = (ROOT / "docs/object-stores.md").read_text(encoding="utf-8")
    assert f"`{name}" in page, f"docs/object-stores.md says nothing of {name}"
    assert issubclass(getattr(blobstore.aio, f"Async{name}"), blobstore.aio.AsyncObjectStore)


@pytest.mark.parametrize(
    ("name", "extra"),
    [("EncryptingStore", "encryption"), ("RetryingStore", "retry"), ("open_store", "yaml")],
)
def test_what_needs_an_extra_says_which(name, extra, tmp_path):
    code = f"""
import sys
for library in ("cryptography", "tenacity", "yaml"):
    sys.modules[library] = None
import blobstore
import blobstore.aio
from blobstore.registry import store_types
try:
    blobstore.{name}
    blobstore.open_store({str(tmp_path / "stores.yaml")!r})
except blobstore.MissingDependencyError as error:
    print(error)
"""
    (tmp_path / "stores.yaml").write_text("stores: {a: {type: DictStore}}\nmain: a\n")
    assert f"blobstore[{extra}]" in python(code).stdout
