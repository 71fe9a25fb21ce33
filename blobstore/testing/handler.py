"""What every handler must do, as tests to inherit.

Subclass `HandlerSuite` in a test module, name the class ``Test...``, and say what is to be stored::

    class TestMyHandler(HandlerSuite):
        def make_handler(self):
            return MyHandler()

        def objects(self):
            return {"empty": MyType(), "large": MyType(range(100_000))}

        def different(self):
            return {"values": (MyType([1]), MyType([2]))}
"""

from __future__ import annotations

import concurrent.futures
import copy
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from blobstore import codecs, metadata
from blobstore.digest import new_digest
from blobstore.errors import BlobStoreError, InvalidInputError
from blobstore.keys import is_location, new_location
from blobstore.protocols import Encoding, Handler, Plan, StoredPart, WriteOptions
from blobstore.registry import base_names
from blobstore.streams import Buffer, BytesSource, FileSource, HashingSink, MemorySink, Sink, Source
from blobstore.trust import EVERYTHING

LEVELS = (1, 5, 9)
_INLINE = 1 << 13
_FLIPS = 24
_CUTS = 8
_THREADS = 8


class HandlerSuite:
    """Tests of one handler; subclass it, write `make_handler` and `objects`, and what else applies.

    Each test makes the objects anew, and a test may change what it made.
    """

    def make_handler(self) -> Handler:
        """Make the handler."""
        raise NotImplementedError

    def objects(self) -> Mapping[str, Any]:
        """Objects that it stores, by name: also empty ones, odd ones, one of some 100 KB."""
        raise NotImplementedError

    def equal(self, one: Any, other: Any) -> bool:
        """Whether an object came back as it was; override it where ``==`` is not enough."""
        return type(one) is type(other) and bool(one == other)

    def same(self) -> Mapping[str, tuple[Any, Any]]:
        """Pairs of equal objects, made in different ways, that must have one digest."""
        return {}

    def different(self) -> Mapping[str, tuple[Any, Any]]:
        """Pairs of objects that are alike, but must have different digests."""
        return {}

    def refused(self) -> Mapping[str, Any]:
        """Objects that it must leave to other handlers, by `can_handle` or when planning."""
        return {}

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Make one test of each object and of each pair."""
        for argument in ("objects", "same", "different", "refused"):
            if f"{argument}_name" in metafunc.fixturenames:
                names = list(getattr(self, argument)())
                metafunc.parametrize(f"{argument}_name", names)

    @pytest.fixture
    def handler(self) -> Handler:
        """The handler under test."""
        return self.make_handler()

    @pytest.fixture
    def obj(self, objects_name: str) -> Any:
        """One of `objects`."""
        return self.objects()[objects_name]

    # --- what it is ------------------------------------------------------------------------------

    def test_its_names_are_well_formed(self, handler: Handler) -> None:
        """Names go into the index, and are compared with those of classes."""
        assert handler.name
        assert handler.name == handler.name.strip().lower()
        assert isinstance(handler.priority, int)
        assert handler.format_version >= 1
        assert isinstance(handler.type_names, tuple)
        assert all(name == "*" or "." in name for name in handler.type_names)
        assert isinstance(handler.base_names, tuple)

    def test_it_is_found_by_the_name_of_the_type(self, handler: Handler, obj: Any) -> None:
        """Without `type_names` nobody asks it."""
        exact = {_name_of(type(obj)), "*"} & set(handler.type_names)
        assert exact or base_names(type(obj)) & set(handler.base_names)
        assert handler.can_handle(obj)

    def test_only_the_name_of_the_type_does_not_convince_it(
        self, handler: Handler, obj: Any
    ) -> None:
        """Another class of that name, or a subclass, would not come back as what it was."""
        if "*" in handler.type_names:
            pytest.skip("it takes any type")
        cls = type(obj)
        impostor = type(cls.__name__, (), {"__module__": cls.__module__})
        assert not handler.can_handle(impostor())

    def test_what_it_cannot_store_is_refused(self, handler: Handler, refused_name: str) -> None:
        """As unsupported, before anything was written, so that another handler is asked."""
        obj = self.refused()[refused_name]
        if handler.can_handle(obj):
            with pytest.raises(TypeError) as caught:
                handler.plan(obj, WriteOptions())
            assert isinstance(caught.value, BlobStoreError)

    # --- plans -----------------------------------------------------------------------------------

    def test_a_plan_is_well_formed(self, handler: Handler, obj: Any) -> None:
        """Its info is JSON, its parts have names of their own and sizes."""
        plan = handler.plan(obj, WriteOptions())
        assert plan.data_type
        assert json.loads(json.dumps(plan.info)) == dict(plan.info)
        assert metadata.to_text({"info": plan.info})
        assert plan.parts
        assert len({part.name for part in plan.parts}) == len(plan.parts)
        for part in plan.parts:
            assert part.name
            assert part.handler
            assert part.format_version >= 1
            assert part.size_hint >= 0
            assert not part.executable or handler.runs_code

    def test_planning_and_writing_leave_the_object_alone(self, handler: Handler, obj: Any) -> None:
        """It is the caller's."""
        before = copy.deepcopy(obj)
        write(handler.plan(obj, WriteOptions()))
        assert self.equal(obj, before)

    def test_the_encoding_is_decided_once(self, handler: Handler, obj: Any) -> None:
        """Before and after writing, and for the next plan of the same object."""
        plan = handler.plan(obj, WriteOptions())
        first = [part.encoding() for part in plan.parts]
        write(plan)
        assert [part.encoding() for part in plan.parts] == first
        again = handler.plan(obj, WriteOptions())
        assert [part.encoding() for part in again.parts] == first
        for encoding in first:
            assert isinstance(encoding, Encoding)
            assert encoding.codec in codecs.NAMES
            assert encoding.extension.startswith(".")
            assert is_location(new_location(encoding.extension))

    @pytest.mark.parametrize("level", LEVELS)
    @pytest.mark.parametrize("codec", codecs.NAMES)
    def test_every_codec_and_level(
        self, handler: Handler, obj: Any, codec: str, level: int
    ) -> None:
        """All work; "none" compresses nothing."""
        plan = handler.plan(obj, WriteOptions(codec=codec, level=level))
        if codec == "none":
            assert all(part.encoding().codec == "none" for part in plan.parts)
        assert self.equal(read(handler, plan, write(plan)), obj)

    def test_small_parts_for_the_index(self, handler: Handler, obj: Any) -> None:
        """They may be written in another way, and come back all the same."""
        plan = handler.plan(obj, WriteOptions(inline_max_bytes=_INLINE))
        assert self.equal(read(handler, plan, write(plan)), obj)

    # --- writing and reading ---------------------------------------------------------------------

    def test_writing_can_be_repeated(self, handler: Handler, obj: Any) -> None:
        """For a retry, whatever the first attempt wrote."""
        plan = handler.plan(obj, WriteOptions())
        for part in plan.parts:
            with pytest.raises(_Stop), _StoppingSink() as sink:
                part.write(sink)
        for _ in range(2):
            assert self.equal(read(handler, plan, write(plan)), obj)

    def test_into_and_out_of_files(self, handler: Handler, obj: Any, tmp_path: Path) -> None:
        """What was read is independent of the source: of its end, and of the bytes in the file."""
        plan = handler.plan(obj, WriteOptions())
        sources: dict[str, Source] = {}
        for number, part in enumerate(plan.parts):
            file = tmp_path / f"{number}{part.encoding().extension}"
            with HashingSink(_FileSink(file), new_digest()) as sink:
                part.write(sink)
            assert sink.size == file.stat().st_size
            sources[part.name] = FileSource(file)
        result = read_from(handler, plan, sources)
        for source in sources.values():
            source.close()
        for file in tmp_path.iterdir():
            file.write_bytes(bytes(file.stat().st_size))
            file.unlink()
        assert self.equal(result, obj)

    def test_out_of_a_source_that_is_no_file(self, handler: Handler, obj: Any) -> None:
        """One that has only what every source has, and gives few bytes at a time."""
        plan = handler.plan(obj, WriteOptions())
        sources = {name: _RemoteSource(data) for name, data in write(plan).items()}
        assert self.equal(read_from(handler, plan, sources), obj)
        assert all(file.closed for source in sources.values() for file in source.opened)

    def test_results_do_not_share_memory(self, handler: Handler, obj: Any) -> None:
        """Two reads of one blob give two objects that are as good as the first."""
        plan = handler.plan(obj, WriteOptions(codec="none"))
        stored = write(plan)
        first = read(handler, plan, stored)
        kept = copy.deepcopy(first)
        self.spoil(first)
        assert self.equal(read(handler, plan, stored), kept)

    def spoil(self, obj: Any) -> None:
        """Change an object in place as far as it can be changed; do nothing if it cannot."""

    def test_threads_do_not_disturb_each_other(self, handler: Handler, obj: Any) -> None:
        """One handler serves a whole store."""

        def round_trip(codec: str) -> Any:
            plan = handler.plan(obj, WriteOptions(codec=codec))
            return read(handler, plan, write(plan))

        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            results = list(pool.map(round_trip, codecs.NAMES * 2))
        assert all(self.equal(result, obj) for result in results)

    def test_unknown_read_options_are_refused(self, handler: Handler, obj: Any) -> None:
        """A misspelt one must not read everything."""
        plan = handler.plan(obj, WriteOptions())
        with pytest.raises(InvalidInputError, match="no_such_option"):
            read(handler, plan, write(plan), no_such_option=1)

    # --- damage ----------------------------------------------------------------------------------
    # Stores verify checksums; this is for what has the right checksum and yet is not right.

    @pytest.mark.parametrize("codec", ["lz4", "none"])
    def test_what_is_cut_off_is_never_taken_for_whole(
        self, handler: Handler, obj: Any, codec: str
    ) -> None:
        """One of our errors, or visibly not the object."""
        plan = handler.plan(obj, WriteOptions(codec=codec))
        for name, data in (stored := write(plan)).items():
            for number in range(_CUTS if data else 0):
                damaged = {**stored, name: data[: len(data) * number // _CUTS]}
                try:
                    result = read(handler, plan, damaged)
                except BlobStoreError:
                    continue
                assert not self.equal(result, obj)

    @pytest.mark.parametrize("codec", ["lz4", "none"])
    def test_flipped_bits_give_our_errors_or_that_type(
        self, handler: Handler, obj: Any, codec: str
    ) -> None:
        """No error of another library, no crash, nothing of another type."""
        if handler.runs_code:
            pytest.skip("a damaged pickle may do anything: stores always verify it")
        plan = handler.plan(obj, WriteOptions(codec=codec))
        for name, data in (stored := write(plan)).items():
            for position in _spread(len(data), _FLIPS):
                flipped = bytearray(data)
                flipped[position] ^= 1 << position % 8
                try:
                    result = read(handler, plan, {**stored, name: bytes(flipped)})
                except BlobStoreError:
                    continue
                assert type(result) is type(obj)

    # --- digests ---------------------------------------------------------------------------------

    def test_the_digest_is_of_the_content_alone(self, handler: Handler, obj: Any) -> None:
        """The same at the next time, with other options, and after writing."""
        first = digests(handler.plan(obj, WriteOptions()))
        for options in (WriteOptions(), WriteOptions("zstd", 9), WriteOptions("none", 1, _INLINE)):
            plan = handler.plan(obj, options)
            write(plan)
            assert digests(plan) == first

    def test_the_digest_survives_a_round_trip(self, handler: Handler, obj: Any) -> None:
        """What was loaded and is stored again is found to be there."""
        plan = handler.plan(obj, WriteOptions())
        loaded = read(handler, plan, write(plan))
        assert digests(handler.plan(loaded, WriteOptions())) == digests(plan)

    def test_equal_objects_have_one_digest(self, handler: Handler, same_name: str) -> None:
        """However they came about."""
        one, other = self.same()[same_name]
        plans = [handler.plan(obj, WriteOptions()) for obj in (one, other)]
        assert digests(plans[0]) == digests(plans[1])
        # They share a blob then: the other's info must do for the one's bytes.
        assert self.equal(read(handler, plans[1], write(plans[0])), other)

    def test_different_objects_have_different_digests(
        self, handler: Handler, different_name: str
    ) -> None:
        """A shared digest would give one caller the other's object."""
        one, other = self.different()[different_name]
        assert digests(handler.plan(one, WriteOptions())) != digests(
            handler.plan(other, WriteOptions())
        )


def write(plan: Plan) -> dict[str, bytes]:
    """Write all parts of a plan into memory."""
    stored = {}
    for part in plan.parts:
        with MemorySink() as sink:
            part.write(sink)
        stored[part.name] = sink.content
    return stored


def read(handler: Handler, plan: Plan, stored: Mapping[str, bytes], **options: Any) -> Any:
    """Read what `write` gave."""
    sources = {name: BytesSource(data) for name, data in stored.items()}
    return read_from(handler, plan, sources, **options)


def read_from(handler: Handler, plan: Plan, sources: Mapping[str, Source], **options: Any) -> Any:
    """Read parts from anywhere; the info goes through JSON, as it does in a store."""
    parts = {
        part.name: StoredPart(
            part.name,
            sources[part.name],
            part.encoding().codec,
            part.handler,
            part.format_version,
            EVERYTHING,
        )
        for part in plan.parts
    }
    return handler.read(parts, json.loads(json.dumps(plan.info)), **options)


def digests(plan: Plan) -> dict[str, str]:
    """The digest of each part."""
    found = {}
    for part in plan.parts:
        hasher = new_digest()
        part.digest(hasher)
        found[part.name] = hasher.hexdigest()
    return found


def _name_of(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _spread(length: int, count: int) -> list[int]:
    """Positions all over, more of them at both ends, where headers are."""
    near = range(min(length, count))
    return sorted({*near, *(length - 1 - i for i in near), *(length * i // count for i in near)})


class _FileSink(Sink):
    """Publishes a file; holds callers to one of the two ways to write."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._temporary = target.with_name(target.name + ".tmp")
        self._file: BinaryIO | None = None
        self._lent = False

    def write(self, data: Buffer, /) -> int:
        assert not self._lent, "write() after path()"
        if self._file is None:
            self._file = self._temporary.open("xb")
        return self._file.write(data)

    def path(self) -> Path:
        assert self._file is None, "path() after write()"
        assert not self._lent, "path() twice"
        self._lent = True
        return self._temporary

    def commit(self) -> None:
        if self._file is not None:
            self._file.close()
        elif not self._lent:
            self._temporary.touch()
        self._temporary.rename(self._target)

    def abort(self) -> None:
        if self._file is not None:
            self._file.close()
        self._temporary.unlink(missing_ok=True)


class _Stop(Exception):  # noqa: N818
    """A sink gave up."""


class _StoppingSink(MemorySink):
    """Fails at the first write, or once a lent file is filled."""

    def write(self, data: Buffer, /) -> int:
        raise _Stop

    def commit(self) -> None:
        raise _Stop


class _SlowFile(io.BytesIO):
    """Gives at most 1,000 bytes where a reader must be prepared for fewer than it asked for."""

    def readinto(self, buffer: Buffer, /) -> int:  # type: ignore[override]
        return super().readinto(memoryview(buffer)[:1000])


class _RemoteSource(Source):
    """Has nothing but `open`: all else is as in the base class."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)
        self.opened: list[BinaryIO] = []

    def open(self) -> BinaryIO:
        file = _SlowFile(self._data)
        self.opened.append(file)
        return file
