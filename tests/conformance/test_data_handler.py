"""A `DataHandler` that was adapted passes the suite of handlers, whether it runs code or not."""

from __future__ import annotations

import json
import pickle
import random

from blobstore import DataHandler
from blobstore.registry import as_handler
from blobstore.testing.handler import HandlerSuite


class LogHandler(DataHandler):
    """Lists of dicts as lines of JSON."""

    extensions = [".log", ".txt"]  # noqa: RUF012 - as users write it
    priority = 15
    runs_code = False

    def can_handle_extension(self, extension):
        return extension in self.extensions

    def can_handle_data(self, data):
        return isinstance(data, list) and all(isinstance(item, dict) for item in data)

    def read_from_file(self, file_path, file_extension):
        assert file_path.suffix == file_extension
        lines = file_path.read_text(encoding="utf-8").split("\n")
        assert lines.pop() == "", "cut off"
        return [json.loads(line) for line in lines]

    def write_to_file(self, data, file_path, file_extension):
        assert file_path.suffix == file_extension
        text = "".join(json.dumps(item, sort_keys=True) + "\n" for item in data)
        file_path.write_text(text, encoding="utf-8")


class SetHandler(DataHandler):
    """Sets as pickles, under an extension that no location shows."""

    extensions = [".a-set"]  # noqa: RUF012
    priority = 15
    name = "Sets "

    def can_handle_extension(self, extension):
        return extension == ".a-set"

    def can_handle_data(self, data):
        return type(data) is set

    def read_from_file(self, file_path, file_extension):
        return set(pickle.loads(file_path.read_bytes()))

    def write_to_file(self, data, file_path, file_extension):
        file_path.write_bytes(pickle.dumps(sorted(data)))


def noise(size):
    return random.Random(size).randbytes(size).hex()


class TestHarmless(HandlerSuite):
    def make_handler(self):
        return as_handler(LogHandler)

    def objects(self):
        return {
            "empty": [],
            "one": [{"timestamp": 1, "text": "ü\n"}],
            "some": [{"timestamp": n, "what": noise(50)} for n in range(1000)],
            "large": [{"timestamp": n, "what": noise(5000)} for n in range(200)],
            "shrinks": [{"text": "start " * 500}] * 500,
        }

    def same(self):
        return {"order": ([{"a": 1, "b": 2}], [{"b": 2, "a": 1}])}

    def different(self):
        return {
            "value": ([{"a": 1}], [{"a": 2}]),
            "lines": ([{"a": 1}], [{"a": 1}, {"a": 1}]),
            "type": ([{"a": 1}], [{"a": 1.0}]),
        }

    def refused(self):
        return {"number": 1, "text": "x", "list": [1]}

    def spoil(self, obj):
        obj.clear()


class TestRunsCode(HandlerSuite):
    def make_handler(self):
        return as_handler(SetHandler())

    def objects(self):
        return {
            "empty": set(),
            "one": {1},
            "large": {noise(5000 + n) for n in range(200)},
            "shrinks": {"x" * 1_500_000},
        }

    def different(self):
        return {"value": ({1}, {2}), "more": ({1}, {1, 2})}

    def refused(self):
        return {"frozen": frozenset({1}), "text": "x"}

    def spoil(self, obj):
        obj.add("more")
