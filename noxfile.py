"""The test suite on each supported interpreter that is installed: ``nox``."""

import shutil
import subprocess

import nox

nox.options.error_on_missing_interpreters = False
nox.options.default_venv_backend = "venv"
nox.options.sessions = ["tests", "lint"]
VERSIONS = ["3.11", "3.12", "3.13"]


def _usable(version):
    """Version managers leave names on the PATH that run nothing."""
    found = shutil.which(f"python{version}")
    return (
        found is not None
        and not subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode
    )


@nox.session(python=[version for version in VERSIONS if _usable(version)] or VERSIONS)
def tests(session):
    session.install("-e", ".[test]")
    session.run("pytest", *session.posargs)


@nox.session
def lint(session):
    session.install("-e", ".[test,lint]")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
    session.run("lint-imports")


@nox.session
def coverage(session):
    """What the tests run of the code; apart, since counting makes them take twice as long."""
    session.install("-e", ".[test]")
    session.run("pytest", "--cov", *session.posargs)


@nox.session
def nightly(session):
    """Thousands of kills, and Hypothesis with many more cases."""
    session.install("-e", ".[test]")
    session.run("pytest", "-m", "nightly", *session.posargs, env={"HYPOTHESIS_PROFILE": "nightly"})
