"""Malicious pickles, put together opcode by opcode, and a way to plant them in a store.

Each attack is bytes for `pickle.loads`. `PROVEN` ones write the marker file when they are loaded by
plain pickle, so that a refusal here is known to have prevented something. The others need a library,
a network or a whole interpreter, or harm by what they do to memory.
"""

from __future__ import annotations

import copyreg
import json
import os
import pickle
import struct
from pathlib import Path

from blobstore.digest import checksum_text, new_checksum
from blobstore.entry import Blob, EntryDraft, Part
from blobstore.keys import random_id
from blobstore.protocols import Put

MARKER = "marker"
TOUCH = f"touch {MARKER}"
WRITE = f"open({MARKER!r}, 'w').close()"


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def value(obj) -> bytes:
    """Opcodes that push plain data."""
    return pickle.dumps(obj, 2)[2:-1]


def named(module: str, name: str) -> bytes:
    """GLOBAL."""
    return f"c{module}\n{name}\n".encode()


def stacked(module: str, name: str) -> bytes:
    """STACK_GLOBAL, which takes names with dots, line ends and anything else."""
    return text(module) + text(name) + b"\x93"


def args(*pushed: bytes) -> bytes:
    return b"(" + b"".join(pushed) + b"t"


def call(function: bytes, *pushed: bytes) -> bytes:
    return function + args(*pushed) + b"R"


def whole(body: bytes, protocol: int = 4) -> bytes:
    return b"\x80" + bytes([protocol]) + body + b"."


def obj(data) -> bytes:
    return pickle.dumps(data, 5)


GETATTR = named("builtins", "getattr")
OS = call(named("builtins", "__import__"), text("os"))


def _dict_path() -> bytes:
    """__import__ by way of what is inside a harmless function."""
    harmless = stacked("fractions", "Fraction.limit_denominator")
    globals_ = call(GETATTR, harmless, text("__globals__"))
    inside = call(stacked("builtins", "dict.get"), globals_, text("__builtins__"))
    run = call(stacked("builtins", "dict.get"), inside, text("exec"))
    return call(run, text(WRITE))


PROVEN: dict[str, bytes] = {
    "os.system": whole(call(named("os", "system"), text(TOUCH))),
    "posix.system": whole(call(named("posix", "system"), text(TOUCH))),
    "os.system, protocol 0": b"cos\nsystem\n(S'" + TOUCH.encode() + b"'\ntR.",
    "os.popen": whole(call(stacked("os", "popen"), text(TOUCH))),
    "subprocess.check_output": whole(
        call(named("subprocess", "check_output"), value(["touch", MARKER]))
    ),
    "subprocess.Popen": whole(call(named("subprocess", "Popen"), value(["touch", MARKER]))),
    "subprocess.getoutput": whole(call(named("subprocess", "getoutput"), text(TOUCH))),
    "builtins.eval": whole(call(named("builtins", "eval"), text(WRITE))),
    "builtins.exec": whole(call(named("builtins", "exec"), text(WRITE))),
    "__builtin__.eval": whole(call(named("__builtin__", "eval"), text(WRITE)), 2),
    "builtins.open": whole(call(named("builtins", "open"), text(MARKER), text("w"))),
    "io.open": whole(call(named("io", "open"), text(MARKER), text("w"))),
    "_io.FileIO": whole(call(named("_io", "FileIO"), text(MARKER), text("w"))),
    "compile and exec": whole(
        call(
            named("builtins", "exec"),
            call(named("builtins", "compile"), text(WRITE), text("x"), text("exec")),
        )
    ),
    "__import__ and getattr": whole(call(call(GETATTR, OS, text("system")), text(TOUCH))),
    "nested getattr": whole(
        call(
            call(
                GETATTR, call(GETATTR, call(GETATTR, OS, text("path")), text("os")), text("system")
            ),
            text(TOUCH),
        )
    ),
    "a name with dots": whole(call(stacked("os", "path.os.system"), text(TOUCH))),
    "dots through a harmless module": whole(call(stacked("pathlib", "os.system"), text(TOUCH))),
    "dots through the allowed": whole(call(stacked("uuid", "os.system"), text(TOUCH))),
    "globals of a harmless function": whole(_dict_path()),
    "operator.attrgetter": whole(
        call(call(call(named("operator", "attrgetter"), text("system")), OS), text(TOUCH))
    ),
    "operator.methodcaller": whole(
        call(call(named("operator", "methodcaller"), text("system"), text(TOUCH)), OS)
    ),
    "functools.partial": whole(
        call(call(named("functools", "partial"), named("os", "system"), text(TOUCH)))
    ),
    "functools.reduce": whole(
        call(named("functools", "reduce"), named("builtins", "eval"), value([WRITE, {}]))
    ),
    "map": whole(
        call(
            named("builtins", "list"),
            call(named("builtins", "map"), named("os", "system"), value([TOUCH])),
        )
    ),
    "importlib": whole(
        call(
            call(GETATTR, call(named("importlib", "import_module"), text("os")), text("system")),
            text(TOUCH),
        )
    ),
    "runpy": whole(call(named("runpy", "_run_code"), text(WRITE), value({}))),
    "timeit": whole(call(named("timeit", "timeit"), text("pass"), text(WRITE))),
    "cProfile.run": whole(call(named("cProfile", "run"), text(WRITE), text("stats"))),
    "code": whole(
        call(
            call(GETATTR, call(named("code", "InteractiveInterpreter")), text("runsource")),
            text(WRITE),
        )
    ),
    "pickle in a pickle": whole(
        call(
            named("pickle", "loads"),
            value(whole(call(named("os", "system"), text(TOUCH)))),
        )
    ),
    "_pickle.loads": whole(
        call(named("_pickle", "loads"), value(whole(call(named("os", "system"), text(TOUCH)))))
    ),
    "types.FunctionType": whole(
        call(
            call(
                named("types", "FunctionType"),
                call(named("builtins", "compile"), text(WRITE), text("x"), text("exec")),
                value({}),
            )
        )
    ),
    "marshal": whole(
        call(
            named("builtins", "exec"),
            call(
                named("marshal", "loads"),
                value(__import__("marshal").dumps(compile(WRITE, "x", "exec"))),
            ),
        )
    ),
    "INST": b"(S'" + TOUCH.encode() + b"'\nios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nS'" + TOUCH.encode() + b"'\no.",
    "copyreg": whole(
        call(named("copyreg", "pickle"), named("decimal", "Context"), named("os", "system"))
        + b"0"
        + call(named("os", "system"), text(TOUCH))
    ),
    "before an error": whole(call(named("os", "system"), text(TOUCH)) + b"0" + b"\xff"),
    "a second pickle behind the first": whole(call(named("builtins", "eval"), text(WRITE)) + b"0N"),
    "names from the memo": whole(
        text("os")
        + b"\x94"
        + b"0"
        + text("system")
        + b"\x94"
        + b"0h\x00h\x01\x93"
        + args(text(TOUCH))
        + b"R"
    ),
    "BUILD by __setstate__": whole(
        call(named("types", "SimpleNamespace"))
        + b"}"
        + text("__setstate__")
        + named("os", "system")
        + b"sb"
        + text(TOUCH)
        + b"b"
    ),
    "defaultdict": whole(
        call(
            stacked("collections", "defaultdict.__missing__"),
            call(
                named("collections", "defaultdict"),
                call(named("functools", "partial"), named("os", "system"), text(TOUCH)),
            ),
            text("x"),
        )
    ),
    "numpy runstring": whole(
        call(named("numpy.testing._private.utils", "runstring"), text(WRITE), value({}))
    ),
    "numpy, dots": whole(call(stacked("numpy", "lib._npyio_impl.os.system"), text(TOUCH))),
    "numpy ctypeslib": whole(call(stacked("numpy.ctypeslib", "_ctypeslib.os.system"), text(TOUCH))),
    "pandas, dots": whole(call(stacked("pandas.io.common", "os.system"), text(TOUCH))),
    "pathlib, written": whole(
        call(
            stacked("pathlib", "Path.write_text"),
            call(named("pathlib", "PosixPath"), text(MARKER)),
            text("x"),
        )
    ),
    "shutil": whole(call(named("shutil", "copyfile"), text("/dev/null"), text(MARKER))),
    "tempfile": whole(
        call(named("tempfile", "NamedTemporaryFile"), text("w"))
        + b"0"
        + call(named("builtins", "open"), text(MARKER), text("w"))
    ),
    "sqlite3": whole(
        call(
            call(GETATTR, call(named("sqlite3", "connect"), text(MARKER)), text("execute")),
            text("create table x (y)"),
        )
    ),
    "logging.FileHandler": whole(call(named("logging", "FileHandler"), text(MARKER))),
    "zipfile": whole(call(named("zipfile", "ZipFile"), text(MARKER), text("w"))),
    "gzip": whole(call(named("gzip", "open"), text(MARKER), text("w"))),
    "numpy.memmap": whole(
        call(
            named("numpy", "memmap"), text(MARKER), text("u1"), text("w+"), b"K\x00", args(b"K\x01")
        )
    ),
    "pandas.to_pickle": whole(call(named("pandas", "to_pickle"), value([1]), text(MARKER))),
    "numpy.save": whole(call(named("numpy", "savetxt"), text(MARKER), value([1]))),
}
"""Attacks that write the marker under plain pickle."""

UNPROVEN: dict[str, bytes] = {
    "pip.main": whole(call(named("pip", "main"), value(["install", "x"]))),
    "pip._internal": whole(call(named("pip._internal.cli.main", "main"), value(["install", "x"]))),
    "torch.load": whole(call(named("torch", "load"), text("x"))),
    "torch.serialization": whole(call(named("torch.serialization", "load"), text("x"))),
    "torch rebuild": whole(call(named("torch._utils", "_rebuild_tensor"), b"N")),
    "torch jit": whole(call(named("torch.jit", "load"), text("x"))),
    "torch inductor": whole(
        call(named("torch._inductor.codecache", "compile_file"), text("x"), text("x"), text("x"))
    ),
    "numpy.load": whole(call(named("numpy", "load"), text("x"), b"N", b"\x88")),
    "joblib.load": whole(call(named("joblib", "load"), text("x"))),
    "cloudpickle": whole(call(named("cloudpickle.cloudpickle", "_make_function"), b"N")),
    "dill": whole(call(named("dill._dill", "_create_function"), b"N")),
    "pty.spawn": whole(call(named("pty", "spawn"), text(TOUCH))),
    "webbrowser": whole(call(named("webbrowser", "open"), text("http://127.0.0.1:1"))),
    "socket": whole(call(named("socket", "create_connection"), value(("127.0.0.1", 1)))),
    "urllib": whole(call(named("urllib.request", "urlopen"), text("http://127.0.0.1:1"))),
    "http.client": whole(call(named("http.client", "HTTPSConnection"), text("127.0.0.1"))),
    "smtplib": whole(call(named("smtplib", "SMTP"), text("127.0.0.1"), b"K\x01")),
    "ctypes": whole(call(named("ctypes", "CDLL"), text("libc.so.6"))),
    "asyncio": whole(
        call(named("asyncio.unix_events", "_UnixSubprocessTransport._start"), b"N", text("x"))
    ),
    "multiprocessing": whole(call(named("multiprocessing.util", "spawnv_passfds"), b"N")),
    "bdb": whole(call(stacked("bdb", "Bdb.run"), b"N", text(WRITE))),
    "pdb": whole(call(named("pdb", "run"), text(WRITE))),
    "pydoc": whole(call(named("pydoc", "pipepager"), text("x"), text(TOUCH))),
    "doctest": whole(call(named("doctest", "debug_script"), text(WRITE))),
    "trace": whole(call(stacked("trace", "Trace.run"), b"N", text(WRITE))),
    "profile": whole(call(stacked("profile", "Profile.run"), b"N", text(WRITE))),
    "idlelib": whole(call(stacked("idlelib.pyshell", "ModifiedInterpreter.runcode"), b"N", b"N")),
    "lib2to3": whole(call(stacked("lib2to3.pgen2.grammar", "Grammar.loads"), b"N", value(b""))),
    "logging.config": whole(call(named("logging.config", "listen"))),
    "sys": whole(call(named("sys", "exit"), b"K\x03")),
    "sys.modules": whole(stacked("sys", "modules")),
    "os.environ": whole(stacked("os", "environ")),
    "os._exit": whole(call(named("os", "_exit"), b"K\x03")),
    "nt.system": whole(call(named("nt", "system"), text(TOUCH))),
    "signal": whole(call(named("signal", "raise_signal"), b"K\x09")),
    "gc": whole(call(named("gc", "get_objects"))),
    "inspect": whole(call(named("inspect", "currentframe"))),
    "types.CodeType": whole(call(named("types", "CodeType"), b"K\x00")),
    "type with three arguments": whole(
        call(named("builtins", "type"), text("X"), args(), value({"x": 1}))
    ),
    "namedtuple": whole(call(named("collections", "namedtuple"), text("X"), text("a"))),
    "enum by name": whole(call(named("enum", "Enum"), text("X"), text("a"))),
    "typing": whole(call(named("typing", "_eval_type"), b"N")),
    "string.Template": whole(call(named("string", "Formatter"))),
    "codecs.encode": whole(call(named("_codecs", "encode"), text("x"), text("zlib_codec"))),
    "codecs.decode": whole(call(named("codecs", "decode"), value(b"x"), text("zlib"))),
    "codecs.lookup": whole(call(named("_codecs", "lookup"), text("x"))),
    "copyreg.add_extension": whole(
        call(named("copyreg", "add_extension"), text("os"), text("system"), b"K\x07")
    ),
    "copyreg of Popen": whole(
        call(
            named("copyreg", "_reconstructor"),
            named("subprocess", "Popen"),
            named("builtins", "object"),
            b"N",
        )
    ),
    "copyreg of int": whole(
        call(
            named("copyreg", "_reconstructor"),
            named("builtins", "list"),
            named("builtins", "int"),
            b"K\x01",
        )
    ),
    "NEWOBJ": whole(named("subprocess", "Popen") + args(text(TOUCH)) + b"\x81"),
    "NEWOBJ_EX by name": whole(
        named("subprocess", "Popen") + args(text(TOUCH)) + value({"shell": True}) + b"\x92"
    ),
    "trailing blank": whole(call(stacked("os ", "system"), text(TOUCH))),
    "a line end in the name": whole(call(stacked("os\n", "system"), text(TOUCH))),
    "look-alikes": whole(call(stacked("\uff4fs", "system"), text(TOUCH))),
    "ligature": whole(call(stacked("os", "sy\ufb06em"), text(TOUCH))),
    "surrogates": whole(call(b"X\x03\x00\x00\x00\xed\xa0\x80" + text("x") + b"\x93")),
    "empty names": whole(call(stacked("", ""), text(TOUCH))),
    "__main__": whole(call(stacked("__main__", "__builtins__.exec"), text(WRITE))),
    "numpy's exec_command": whole(
        call(named("numpy.distutils.exec_command", "_exec_command"), text(TOUCH))
    ),
    "numpy f2py": whole(call(named("numpy.f2py", "compile"), text("x"))),
    "numpy eval": whole(
        call(named("numpy.f2py.crackfortran", "param_eval"), text(WRITE), b"N", b"N")
    ),
    "numpy safe_eval": whole(call(named("numpy.lib.utils", "safe_eval"), text("1"))),
    "pandas eval": whole(call(named("pandas", "eval"), text("1"))),
    "pandas expressions": whole(call(named("pandas.core.computation.eval", "eval"), text("1"))),
    "pandas query": whole(call(stacked("pandas", "DataFrame.query"), b"N", text("1"))),
    "pandas read_pickle": whole(call(named("pandas", "read_pickle"), text("x"))),
    "pandas read_csv": whole(call(named("pandas", "read_csv"), text("/etc/passwd"))),
    "pandas DataFrame": whole(call(named("pandas", "DataFrame"), value({"a": [1]}))),
    "class attribute": whole(
        named("fractions", "Fraction") + args(b"N", value({"hacked": 1})) + b"b"
    ),
    "class attribute of a frame": whole(
        named("pandas", "DataFrame") + args(b"N", value({"hacked": 1})) + b"b"
    ),
    "function attribute": whole(
        named("numpy._core.numeric", "_frombuffer") + args(b"N", value({"hacked": 1})) + b"b"
    ),
    "items of a class": whole(named("collections", "deque") + b"(K\x01K\x02e"),
    "calls what it made": whole(call(call(named("types", "SimpleNamespace")))),
    "calls a number": whole(call(b"K\x01")),
    "calls a name": whole(call(text("os.system"), text(TOUCH))),
    "EXT of nothing": whole(b"\x82\x07"),
    "EXT2": whole(b"\x83\x07\x00"),
    "EXT4": whole(b"\x84\x07\x00\x00\x00"),
    "persistent id": whole(text("x") + b"Q"),
    "no such buffer": whole(b"\x97", 5),
    "read-only nothing": whole(b"\x98", 5),
    "memo of nothing": whole(b"h\x05"),
    "pops too much": whole(b"000"),
    "cut": whole(text("x"))[:-4],
    "a length beyond the end": whole(b"\x8d" + struct.pack("<Q", 1 << 40) + b"x"),
    "a bytearray beyond memory": whole(b"\x96" + struct.pack("<Q", 1 << 62) + b"x", 5),
    "a frame beyond the end": whole(b"\x95" + struct.pack("<Q", 1 << 40) + b"N"),
    "bytearray of a size": whole(call(named("builtins", "bytearray"), value(1 << 45))),
    "bytes of a size": whole(call(named("builtins", "bytes"), value(1 << 45))),
    "Fraction with an exponent": whole(call(named("fractions", "Fraction"), text("1e999999999"))),
    "Fraction of long numbers": whole(
        call(named("fractions", "Fraction"), value(1 << 40000), value(3 << 40000))
    ),
    "Decimal of an object": whole(
        call(named("decimal", "Decimal"), call(named("collections", "deque")))
    ),
    "integer of too many digits": b"I" + b"9" * 100_000 + b"\n.",
    "time zone outside": whole(
        call(
            call(GETATTR, named("zoneinfo", "ZoneInfo"), text("_unpickle")),
            text("../../etc/passwd"),
            b"\x88",
        )
    ),
    "another attribute of ZoneInfo": whole(
        call(GETATTR, named("zoneinfo", "ZoneInfo"), text("from_file"))
    ),
    "defaultdict of eval": whole(
        call(named("collections", "defaultdict"), named("builtins", "eval"))
    ),
    "defaultdict of what is allowed": whole(
        call(named("collections", "defaultdict"), named("fractions", "Fraction"))
    ),
    "Counter of a string": whole(call(named("collections", "Counter"), text("aab"))),
}
"""Attacks, tricks and damage that have to be refused all the same."""


def numpy_attacks() -> dict[str, bytes]:
    """States that NumPy would take on faith."""
    dtype = named("numpy", "dtype")
    fresh = (
        named("numpy._core.multiarray", "_reconstruct")
        + args(named("numpy", "ndarray"), args(b"K\x00"), value(b"b"))
        + b"R"
    )

    def simple(kind: str) -> bytes:
        return call(dtype, text(kind), b"\x89", b"\x88")

    f8 = simple("f8") + value((3, "<", None, None, None, -1, -1, 0)) + b"b"
    objects = simple("O8") + value((3, "|", None, None, None, -1, -1, 63)) + b"b"

    def record(size: int, offset: int, flags: int) -> bytes:
        fields = b"}" + text("a") + args(objects, value(offset)) + b"s"
        return (
            simple(f"V{size}")
            + args(
                b"K\x03",
                text("|"),
                b"N",
                args(text("a")),
                fields,
                value(size),
                b"K\x01",
                value(flags),
            )
            + b"b"
        )

    def array(kind: bytes, shape: tuple[int, ...], data: bytes) -> bytes:
        return fresh + args(b"K\x01", value(shape), kind, b"\x89", data) + b"b"

    raw = value(b"\x41" * 8)
    late = simple("V8") + b"\x94"  # in the memo, its state still to come
    return {
        "objects without their flag": whole(array(record(8, 0, 0), (1,), raw)),
        "objects outside of the record": whole(record(8, 64, 63)),
        "a number that says it is an object": whole(
            simple("f8") + value((3, "<", None, None, None, -1, -1, 63)) + b"b"
        ),
        "objects that say they are none": whole(
            array(simple("O8") + value((3, "|", None, None, None, -1, -1, 0)) + b"b", (1,), raw)
        ),
        "another size": whole(simple("f8") + value((3, "<", None, None, None, 1, 1, 0)) + b"b"),
        "no alignment": whole(simple("V8") + value((3, "|", None, None, None, 8, 0, 0)) + b"b"),
        "fewer bytes": whole(array(f8, (100,), raw)),
        "negative shape": whole(array(f8, (-1,), raw)),
        "huge shape of objects": whole(array(objects, (1 << 40,), b"]")),
        "raw objects": whole(array(objects, (1,), raw)),
        "the state of a dtype twice": whole(
            f8[:-1] + b"b" + value((3, "<", None, None, None, -1, -1, 0)) + b"b"
        ),
        "a dtype that changes under an array": whole(
            b"("
            + late
            + array(b"h\x00", (1,), raw)
            + b"0"
            + record(8, 0, 63)[len(simple("V8")) :]
            + b"t"
        ),
        "the state of an array twice": whole(
            array(f8, (1,), raw) + args(b"K\x01", value((0,)), f8, b"\x89", value(b"")) + b"b"
        ),
        "objects from a buffer": whole(
            call(named("numpy._core.numeric", "_frombuffer"), raw, objects, value((1,)), text("C"))
        ),
        "an object as a scalar": whole(
            call(named("numpy._core.multiarray", "scalar"), objects, raw)
        ),
        "a short scalar": whole(call(named("numpy._core.multiarray", "scalar"), f8, value(b"x"))),
        "a dtype of a class": whole(call(dtype, named("uuid", "UUID"))),
        "a dtype of a sentence": whole(call(dtype, text("(99999999,99999999)f8"))),
        "an array of another class": whole(
            call(
                named("numpy._core.multiarray", "_reconstruct"),
                named("builtins", "list"),
                args(b"K\x00"),
                value(b"b"),
            )
        ),
        "an array that is not empty": whole(
            call(
                named("numpy._core.multiarray", "_reconstruct"),
                named("numpy", "ndarray"),
                value((1 << 40,)),
                value(b"b"),
            )
        ),
        "DUP": whole(simple("V8") + b"2" + b"0"),
    }


def registered_extension() -> bytes:
    """A code that this process knows, in the cache, where no unpickler looks the name up again."""
    code = 0x77
    if ("posix", "system") not in copyreg._extension_registry:
        copyreg.add_extension("posix", "system", code)
    copyreg._extension_cache[code] = os.system
    return whole(b"\x82" + bytes([code]) + args(text(TOUCH)) + b"R")


def forget_extension() -> None:
    copyreg.clear_extension_cache()
    if ("posix", "system") in copyreg._extension_registry:
        copyreg.remove_extension("posix", "system", 0x77)


def plant(store, key: str, payload: bytes, *, handler: str = "pickle", signature=None) -> None:
    """Put an entry behind the store's back, as whoever can write to index and blobs could."""
    hasher = new_checksum(executable=True)
    hasher.update(payload)
    checksum = checksum_text(hasher, executable=True)
    location = f"{random_id()}.pkl"
    store._objects.put(location, payload)
    blob = Blob(location, len(payload), checksum, "none", handler, 1, created_us=1)
    info = json.dumps({"type": "builtins.dict"})
    parts = (Part("skeleton" if handler == "mapping" else "data", blob),)
    draft = EntryDraft(key, handler, "object", info, "{}", parts, len(payload), 1, signature)
    store._index.commit([Put(draft)], random_id())


def ran() -> bool:
    """Whether the marker was written; it is removed."""
    marker = Path(MARKER)
    there = marker.exists()
    marker.unlink(missing_ok=True)
    return there
