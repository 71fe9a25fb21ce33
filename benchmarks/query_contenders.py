"""BlobStore's index, and what else is asked which of many entries are wanted.

All of them hold the same entries: a key, and metadata as `run` makes it. Filling up is not measured, so
each does it by the fastest road it has.
"""

from __future__ import annotations

import heapq
import json
import os
import sqlite3
import uuid
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from benchmarks import servers
from benchmarks.contenders import Contender

TOP = 10
_BATCH = 5_000


def run(number: int, count: int) -> tuple[str, dict[str, Any]]:
    """Give the key and the metadata of one entry of `count`; a hundred keys for each prefix.

    Accuracies are all different, and in no order; 7,919 is a prime that divides no `count`.
    """
    return f"run-{number // 100:05d}/item-{number:07d}", {
        "accuracy": number * 7_919 % count / count,
        "model": f"m{number % 7}",
        "epoch": number,
        "params": {"lr": 0.1 / (1 + number % 5), "layers": number % 12},
    }


class QueryContender(Contender):
    """Knows entries by key and metadata, and answers the same questions.

    Attributes
    ----------
    puts : int
        How many puts are measured: fewer where each takes long.
    most : int
        With how many entries it takes part; more would take too long.
    """

    puts: ClassVar[int] = 1_000
    most: ClassVar[int] = 1_000_000

    def fill(self, count: int) -> None:
        """Take in so many entries, and index their accuracy if there is a way to."""
        raise NotImplementedError

    def top(self, below: float) -> list[float]:
        """Give the ten highest accuracies below a bound, highest first."""
        raise NotImplementedError

    def count(self, epoch: int) -> int:
        """Count the entries from an epoch on, for which there is no index."""
        raise NotImplementedError

    def stream(self) -> Iterator[float]:
        """Go through all entries in order of their keys."""
        raise NotImplementedError


class InSqlite(QueryContender):
    note = "index over accuracy; entries hold a small object, too"
    ours = True

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        from blobstore import BlobStore, F

        self.f = F
        self.store = BlobStore(folder, backend=self.backend())

    def backend(self) -> str:
        """Where the index is."""
        return "sqlite"

    def fill(self, count: int) -> None:
        from blobstore.keys import random_id
        from blobstore.protocols import Put

        index = self.store._index  # noqa: SLF001 - only the index takes what is encoded already
        numbers = iter(range(count))
        while some := list(islice(numbers, _BATCH)):
            drafts = self._drafts(run(number, count) for number in some)
            index.commit([Put(draft) for draft in drafts], random_id())
        self.store.create_index("accuracy")

    def _drafts(self, runs: Iterable[tuple[str, dict[str, Any]]]) -> Iterator[Any]:
        """Entries that share one encoded object, which is encoded once."""
        from blobstore import metadata
        from blobstore.entry import EntryDraft, now_us

        self.store.put({"weights": [0.5] * 8}, key="one")
        one = self.store.entry("one")
        self.store.delete("one")
        for key, facts in runs:
            yield EntryDraft(
                key=key,
                handler=one.handler,
                data_type=one.data_type,
                info_text=one.info_text,
                metadata_text=metadata.to_text(facts),
                parts=one.parts,
                size=one.size,
                now_us=now_us(),
            )

    def put(self, key: str, value: Any, metadata: dict[str, Any] | None = None) -> None:
        self.store.put(value, key, metadata)

    def get(self, key: str) -> Any:
        return self.store.get(key)

    def keys(self, prefix: str) -> list[str]:
        return self.store.list(prefix)

    def top(self, below: float) -> list[float]:
        found = self.store.query(
            self.f("accuracy") < below, order_by=self.f("accuracy").desc(), limit=TOP
        )
        return [entry.metadata["accuracy"] for entry in found]

    def count(self, epoch: int) -> int:
        return self.store.count(self.f("epoch") >= epoch)

    def stream(self) -> Iterator[float]:
        return (entry.metadata["accuracy"] for entry in self.store.query())

    def close(self) -> None:
        self.store.close()


class InPostgres(InSqlite):
    note = "as in SQLite; a server of its own on this machine, by a Unix socket, fsync off; analysed after filling"
    server = "postgres"
    on_disk = False

    def backend(self) -> str:
        return os.environ[servers.DATABASE]

    def fill(self, count: int) -> None:
        import psycopg

        super().fill(count)
        url = os.environ[servers.DATABASE].replace("+psycopg", "")
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("VACUUM ANALYZE")  # which the server would do by itself, in a while


class PlainScan(QueryContender):
    """What one would write by hand: one table of JSON, parsed in Python."""

    note = "a table of key and JSON in SQLite; every question but that by key parses all of it in Python"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.connection = sqlite3.connect(folder / "table.db", isolation_level=None)
        self.connection.executescript(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;"
            "CREATE TABLE IF NOT EXISTS entries"
            "(key TEXT PRIMARY KEY, metadata TEXT, value TEXT) WITHOUT ROWID"
        )

    def fill(self, count: int) -> None:
        runs = (run(number, count) for number in range(count))
        rows = ((key, json.dumps(metadata), "[0.5]") for key, metadata in runs)
        self.connection.execute("BEGIN")
        self.connection.executemany("INSERT INTO entries VALUES (?, ?, ?)", rows)
        self.connection.execute("COMMIT")

    def put(self, key: str, value: Any, metadata: dict[str, Any] | None = None) -> None:
        row = (key, json.dumps(metadata), json.dumps(value))
        self.connection.execute("INSERT OR REPLACE INTO entries VALUES (?, ?, ?)", row)

    def get(self, key: str) -> Any:
        asked = "SELECT value FROM entries WHERE key = ?"
        return json.loads(self.connection.execute(asked, (key,)).fetchone()[0])

    def keys(self, prefix: str) -> list[str]:
        asked = "SELECT key FROM entries WHERE key >= ? AND key < ? ORDER BY key"
        return [key for (key,) in self.connection.execute(asked, (prefix, prefix + "\U0010ffff"))]

    def _all(self) -> Iterator[dict[str, Any]]:
        for (text,) in self.connection.execute("SELECT metadata FROM entries ORDER BY key"):
            yield json.loads(text)

    def top(self, below: float) -> list[float]:
        each = (metadata["accuracy"] for metadata in self._all())
        return heapq.nlargest(TOP, (accuracy for accuracy in each if accuracy < below))

    def count(self, epoch: int) -> int:
        return sum(metadata["epoch"] >= epoch for metadata in self._all())

    def stream(self) -> Iterator[float]:
        return (metadata["accuracy"] for metadata in self._all())

    def close(self) -> None:
        self.connection.close()


class Mlflow(QueryContender):
    """MLflow's tracking store, whose runs have metrics, parameters and tags."""

    note = (
        "MlflowClient.search_runs over SQLite; the key is the run's name; it has no count: runs are fetched, "
        "50,000 a page; a put is create_run and log_batch; filled by SQL behind its back, and "
        "analysed, which it does not do itself: without, the top 10 of 10,000 take a hundred times as long"
    )
    puts = 100
    most = 100_000

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
        import alembic  # noqa: F401 - needed for the database, and not by the slim package itself
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        self.metric, self.param = Metric, Param
        self.database = folder / "mlflow.db"
        self.client = MlflowClient(tracking_uri=f"sqlite:///{self.database}")
        known = self.client.get_experiment_by_name("benchmark")
        self.experiment = (
            known.experiment_id
            if known is not None
            else self.client.create_experiment("benchmark", artifact_location=str(folder))
        )

    def fill(self, count: int) -> None:
        tables = tuple(_COLUMNS)
        numbers = iter(range(count))
        with closing(sqlite3.connect(self.database)) as connection, connection:
            while some := list(islice(numbers, _BATCH)):
                rows: dict[str, list[Any]] = {table: [] for table in tables}
                for number in some:
                    self._add(rows, *run(number, count))
                for table in tables:
                    marks = ", ".join("?" * len(rows[table][0]))
                    columns = f"({', '.join(_COLUMNS[table])})"
                    connection.executemany(
                        f"INSERT INTO {table} {columns} VALUES ({marks})", rows[table]
                    )
            connection.execute("ANALYZE")

    def _add(self, rows: dict[str, list[Any]], key: str, facts: dict[str, Any]) -> None:
        name = uuid.uuid4().hex
        rows["runs"].append(
            (name, key, "LOCAL", "me", "FINISHED", 1, "active", "/none", self.experiment)
        )
        rows["tags"].append(("mlflow.runName", key, name))  # which is what is searched
        for metric in ("accuracy", "epoch"):
            rows["metrics"].append((metric, facts[metric], 1, name, 0, 0))
            rows["latest_metrics"].append((metric, facts[metric], 1, name, 0, 0))
        for param, value in {"model": facts["model"], **facts["params"]}.items():
            rows["params"].append((param, str(value), name))

    def put(self, key: str, value: Any, metadata: dict[str, Any] | None = None) -> None:
        facts = metadata or {}
        made = self.client.create_run(self.experiment, run_name=key)
        self.client.log_batch(
            made.info.run_id,
            metrics=[self.metric(name, facts[name], 1, 0) for name in ("accuracy", "epoch")],
            params=[
                self.param(name, str(one))
                for name, one in {"model": facts["model"], **facts["params"]}.items()
            ],
        )

    def _search(self, filter_string: str, **options: Any) -> Any:
        return self.client.search_runs([self.experiment], filter_string, **options)

    def _pages(self, filter_string: str, order_by: list[str] | None = None) -> Iterator[Any]:
        token = None
        while True:
            page = self._search(
                filter_string, max_results=50_000, order_by=order_by, page_token=token
            )
            yield from page
            if (token := page.token) is None:
                return

    def keys(self, prefix: str) -> list[str]:
        found = self._search(f"attributes.run_name LIKE '{prefix}%'", max_results=1_000)
        return sorted(one.info.run_name for one in found)

    def top(self, below: float) -> list[float]:
        found = self._search(
            f"metrics.accuracy < {below!r}", order_by=["metrics.accuracy DESC"], max_results=TOP
        )
        return [one.data.metrics["accuracy"] for one in found]

    def count(self, epoch: int) -> int:
        return sum(1 for _ in self._pages(f"metrics.epoch >= {epoch}"))

    def stream(self) -> Iterator[float]:
        each = self._pages("", order_by=["attributes.run_name ASC"])
        return (one.data.metrics["accuracy"] for one in each)


_COLUMNS = {
    "runs": (
        "run_uuid", "name", "source_type", "user_id", "status", "start_time", "lifecycle_stage", "artifact_uri",
        "experiment_id",
    ),
    "metrics": ("key", "value", "timestamp", "run_uuid", "step", "is_nan"),
    "latest_metrics": ("key", "value", "timestamp", "run_uuid", "step", "is_nan"),
    "params": ("key", "value", "run_uuid"),
    "tags": ("key", "value", "run_uuid"),
}  # fmt: skip

QUERY_CONTENDERS: dict[str, type[Contender]] = {
    "blobstore sqlite": InSqlite,
    "blobstore postgres": InPostgres,
    "plain scan": PlainScan,
    "mlflow": Mlflow,
}
