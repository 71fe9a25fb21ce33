"""Every Python block of README and docs runs; every doctest of the package holds."""

from __future__ import annotations

import doctest
import importlib
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
from distributed import LocalCluster

import blobstore

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("**/*.md")])
BLOCK = re.compile(
    r"^```(?P<language>\w*)(?P<note>[^\n]*)\n(?P<code>.*?)^```", re.MULTILINE | re.DOTALL
)
NEEDS = re.compile(r"^<!-- needs: (.*) -->$", re.MULTILINE)
"""At the head of a page: which servers its blocks speak to."""

MODULES = sorted(
    module.name for module in pkgutil.walk_packages(blobstore.__path__, prefix="blobstore.")
)


@pytest.fixture
def s3_environment(s3_server, tmp_path):
    """What a user has set to reach the server, and the bucket of the examples."""
    s3_server.client.create_bucket(Bucket="team-models")
    yield {
        "AWS_CONFIG_FILE": str(tmp_path / "no-config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "no-credentials"),
        "AWS_ACCESS_KEY_ID": s3_server.access_key,
        "AWS_SECRET_ACCESS_KEY": s3_server.secret_key,
        "AWS_REGION": s3_server.region,
        "AWS_ENDPOINT_URL_S3": s3_server.endpoint,
    }
    s3_server.delete_bucket("team-models")


@pytest.fixture
def postgres_environment(postgres_url):
    return {"TEAM_INDEX": postgres_url}


@pytest.fixture
def torch_environment():
    pytest.importorskip("torch", reason="PyTorch is not part of the extra 'test'")
    return {}


@pytest.fixture
def dask_environment(s3_environment, monkeypatch):
    """A cluster whose workers have the same environment."""
    for name, value in s3_environment.items():
        monkeypatch.setenv(name, value)
    with LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        host="127.0.0.1",
        dashboard_address=None,
        worker_dashboard_address=None,
    ) as cluster:
        yield {"DASK_SCHEDULER_ADDRESS": cluster.scheduler_address}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_blocks_of_a_page_run_in_order(page, tmp_path, request):
    text = page.read_text(encoding="utf-8")
    needed = [name for found in NEEDS.findall(text) for name in found.split(", ")]
    environment = os.environ | {
        name: value
        for need in needed
        for name, value in request.getfixturevalue(f"{need}_environment").items()
    }
    blocks = [found for found in BLOCK.finditer(text) if found["language"] == "python"]
    # Each block keeps its line numbers, so that a failure points into the page.
    program = "".join(
        "\n" * (text[: found.start("code")].count("\n") - before) + found["code"]
        for found, before in zip(blocks, _lines_before(text, blocks), strict=True)
    )
    script = (
        tmp_path / f"page_{page.stem}.py"
    )  # a module of that name must not be found in its place
    script.write_text(program, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{page}:\n{done.stderr[-3000:]}"


def _lines_before(text: str, blocks: list[re.Match[str]]) -> list[int]:
    """How many lines of the program come before each block."""
    ends = [text[: found.end("code")].count("\n") for found in blocks]
    return [0, *ends][: len(blocks)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_says_what_it_is(page):
    known = {"python", "bash", "text", "toml", "yaml", "json"}
    languages = {found["language"] for found in BLOCK.finditer(page.read_text(encoding="utf-8"))}
    assert languages <= known, "a block without a language is not executed: name it"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_files_of_the_repository_work(page):
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page} links to {target}"


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_hold(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name.endswith((".torch", ".safetensors")):
        pytest.importorskip("torch", reason="PyTorch is not part of the extra 'test'")
    module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


def test_every_public_name_has_a_docstring():
    for name in blobstore.__all__:
        if name != "__version__":
            assert getattr(blobstore, name).__doc__, name
