"""The journal file: what was appended comes back, and whatever was altered is noticed."""

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest
from filelock import FileLock, Timeout

from blobstore.backends.metadata.journal import Journal, WriterLock
from blobstore.errors import IntegrityError, OutOfSpaceError, StorageError, UnavailableError

SEED = 0x1234_5678_9ABC_DEF0
RECORDS = [{"n": 0}, {"text": "ü\u2028\0\U0001f600"}, {"n": 12345678901234567890}]


def line(record):
    return json.dumps(record, ensure_ascii=False).encode()


@contextlib.contextmanager
def opened(path, seed=SEED):
    path.touch()
    with contextlib.closing(Journal(path, seed)) as journal:
        yield journal


def append(journal, record):
    start = journal.mark
    assert journal.advance(start, journal.append(line(record)))


def records(path, seed=SEED):
    with opened(path, seed) as journal:
        return list(journal.read())


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.journal"


@pytest.fixture
def written(path):
    """A journal with `RECORDS`, and the byte offsets at which its lines end."""
    ends = []
    with opened(path) as journal:
        for record in RECORDS:
            append(journal, record)
            ends.append(journal.mark.offset)
    return path, ends


def test_what_was_appended_is_read_again(written):
    path, _ = written
    assert records(path) == RECORDS


def test_a_reader_reads_only_what_is_new(written):
    path, _ = written
    with opened(path) as reader, opened(path) as writer:
        assert list(reader.read()) == RECORDS
        assert list(reader.read()) == []
        assert list(writer.read()) == RECORDS
        append(writer, {"n": 3})
        assert list(reader.read()) == [{"n": 3}]


def test_a_line_that_the_consumer_did_not_take_in_is_read_again(written):
    path, _ = written
    with opened(path) as reader:
        lines = reader.read()
        assert next(lines) == RECORDS[0]
        lines.close()
        assert list(reader.read()) == RECORDS


def test_a_journal_cut_anywhere_holds_the_commits_before_the_cut(written):
    path, ends = written
    data = path.read_bytes()
    for size in range(len(data) + 1):
        path.write_bytes(data[:size])
        whole = sum(end <= size for end in ends)
        assert records(path) == RECORDS[:whole], size
        with opened(path) as writer:
            assert list(writer.read()) == RECORDS[:whole]
            append(writer, {"after": size})
        assert records(path) == [*RECORDS[:whole], {"after": size}], size


def altered(data):
    for position, byte in enumerate(data):
        for new in {byte ^ 1, byte ^ 0x80, ord("\n"), ord("0"), 0} - {byte}:
            yield position, data[:position] + bytes([new]) + data[position + 1 :]


def test_any_altered_byte_is_noticed_and_placed(written):
    path, ends = written
    starts = [0, *ends]
    for position, data in altered(path.read_bytes()):
        path.write_bytes(data)
        offset = max(start for start in starts if start <= position)
        with opened(path) as journal, pytest.raises(IntegrityError) as caught:
            list(journal.read())
        assert str(path) in str(caught.value)
        assert f"at byte {offset} " in str(caught.value), position


@pytest.mark.parametrize(
    "order", [(1, 2), (0, 2), (0, 0, 1, 2), (1, 0, 2), (0, 2, 1), (0, 1, 2, 2)]
)
def test_lines_dropped_repeated_or_swapped_are_noticed(written, order):
    path, _ = written
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[i] for i in order))
    with pytest.raises(IntegrityError):
        records(path)


def test_the_lines_of_another_journal_are_refused(written):
    path, _ = written
    with pytest.raises(IntegrityError, match="at byte 0 "):
        records(path, SEED + 1)


def test_a_journal_cut_behind_a_readers_back_is_noticed(written):
    path, ends = written
    with opened(path) as reader:
        assert list(reader.read()) == RECORDS
        os.truncate(path, ends[1])
        with pytest.raises(IntegrityError, match=f"cut off at byte {ends[1]}"):
            list(reader.read())


def test_a_line_seen_while_it_is_replaced_is_read_again(written, monkeypatch):
    """Some of what a killed writer left, and some of what comes in its place."""
    path, _ = written
    real, calls = os.pread, []

    def torn(descriptor, size, offset):
        data = real(descriptor, size, offset)
        calls.append(offset)
        return b"killed" + data[6:] if len(calls) == 1 else data

    monkeypatch.setattr(os, "pread", torn)
    assert records(path) == RECORDS
    assert len(calls) == 3


def failing_write(monkeypatch, first, error=errno.ENOSPC):
    """Let `os.write` write `first` bytes, then fail."""
    real = os.write
    left = [first]

    def write(descriptor, data):
        if left[0] == 0:
            raise OSError(error, os.strerror(error))
        count = real(descriptor, data[: left[0]])
        left[0] -= count
        return count

    monkeypatch.setattr(os, "write", write)


@pytest.mark.parametrize("first", [0, 1, 20])
@pytest.mark.parametrize(
    ("error", "kind"),
    [(errno.ENOSPC, OutOfSpaceError), (errno.EFBIG, OutOfSpaceError), (errno.EIO, StorageError)],
)
def test_an_append_that_fails_leaves_the_file_as_it_was(written, monkeypatch, first, error, kind):
    path, _ = written
    before = path.read_bytes()
    with opened(path) as journal:
        assert list(journal.read()) == RECORDS
        with monkeypatch.context() as patch, pytest.raises(kind, match=r"a\.journal"):
            failing_write(patch, first, error)
            journal.append(line({"n": 3}))
        assert path.read_bytes() == before
        append(journal, {"n": 4})
    assert records(path) == [*RECORDS, {"n": 4}]


def test_what_cannot_be_cut_off_at_once_is_cut_off_by_the_next_writer(written, monkeypatch):
    path, ends = written

    def refuse(descriptor, size):
        raise OSError(errno.EIO, "no")

    with opened(path) as journal:
        list(journal.read())
        with monkeypatch.context() as patch, pytest.raises(OutOfSpaceError):
            failing_write(patch, 10)
            patch.setattr(os, "ftruncate", refuse)
            journal.append(line({"n": 3}))
        assert path.stat().st_size == ends[-1] + 10
        assert records(path) == RECORDS
        append(journal, {"n": 4})
    assert records(path) == [*RECORDS, {"n": 4}]


def test_short_writes_are_continued(written, monkeypatch):
    path, _ = written
    real = os.write
    with opened(path) as journal:
        list(journal.read())
        monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:3]))
        append(journal, {"n": 3})
    assert records(path) == [*RECORDS, {"n": 3}]


def test_a_reader_that_was_faster_keeps_its_mark(path):
    with opened(path) as journal:
        start = journal.mark
        end = journal.append(line({"n": 0}))
        assert list(journal.read()) == [{"n": 0}]
        assert not journal.advance(start, end)
        assert journal.mark == end


# --- the lock


@pytest.fixture
def lock_path(tmp_path):
    return tmp_path / "a.lock"


def test_one_holder_at_a_time(lock_path):
    first, second = WriterLock(lock_path, 0.0), WriterLock(lock_path, 0.0)
    with first:
        assert not second.acquire(wait=False)
        assert not first.acquire(wait=False)
        with pytest.raises(UnavailableError, match=r"a\.lock") as caught:
            second.acquire()
        assert caught.value.retryable
        assert caught.value.outcome == "failed"
        second.close()
    with second:
        pass
    first.close()
    second.close()


def test_it_is_the_lock_of_filelock(lock_path):
    ours, theirs = WriterLock(lock_path, 0.0), FileLock(lock_path)
    with ours, pytest.raises(Timeout):
        theirs.acquire(blocking=False)
    with theirs:
        assert not ours.acquire(wait=False)
    assert ours.acquire(wait=False)
    ours.release()
    ours.close()


def test_a_lock_file_that_was_removed_guards_nothing(lock_path):
    first, second = WriterLock(lock_path, 0.0), WriterLock(lock_path, 0.0)
    with first:
        pass
    lock_path.unlink()
    with second:
        assert not first.acquire(wait=False)
    with first:
        assert not second.acquire(wait=False)
    first.close()
    second.close()


def test_a_lock_in_a_folder_that_is_not_there(tmp_path):
    lock = WriterLock(tmp_path / "nowhere" / "a.lock", 0.0)
    for _ in range(2):
        with pytest.raises(StorageError, match="nowhere"):
            lock.acquire()


def test_closing_while_somebody_holds_it_keeps_the_hold(lock_path):
    lock, other = WriterLock(lock_path, 0.0), WriterLock(lock_path, 0.0)
    with lock:
        lock.close()
        assert not other.acquire(wait=False)
    assert other.acquire(wait=False)
    other.release()
    lock.close()
    other.close()


def test_a_hold_ends_with_the_process_even_if_a_forked_child_lives_on(lock_path):
    """The child lets go of what it inherited, without unlocking it while the parent lives."""
    script = """
        import os, signal, sys
        from pathlib import Path
        from blobstore.backends.metadata.journal import WriterLock
        lock = WriterLock(Path(sys.argv[1]), 0.0)
        lock.acquire()
        if os.fork() == 0:
            lock.forget_inherited()
            print("held" if not lock.acquire(wait=False) else "free", os.getpid(), flush=True)
            signal.pause()
        sys.stdin.read()
        os.kill(os.getpid(), signal.SIGKILL)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), str(lock_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        state, child = process.stdout.readline().split()
        try:
            lock = WriterLock(lock_path, 0.0)
            assert state == "held"
            assert not lock.acquire(wait=False)
            process.stdin.close()
            process.wait()
            assert lock.acquire(wait=False)
            lock.release()
            lock.close()
        finally:
            os.kill(int(child), signal.SIGKILL)
