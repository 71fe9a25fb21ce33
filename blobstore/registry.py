"""Name -> implementation, imported on first use.

Four registries: object stores as a `BlobStore` names them, object stores as a description of
stores names them (`store_types`, by the names of their classes), metadata backends, handlers. A
name is looked up among those registered at run time, then the built-in ones, then the entry points
of installed packages (groups ``blobstore.object_stores``, which is for both kinds of names,
``blobstore.metadata_backends``, ``blobstore.handlers``). A name used twice is an error.
"""

from __future__ import annotations

import importlib
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, overload

from blobstore.errors import ConfigError, DecodeError, MissingDependencyError, UnsupportedTypeError
from blobstore.protocols import (
    DataHandler,
    Handler,
    MetadataBackend,
    ObjectStore,
    Plan,
    WriteOptions,
)
from blobstore.protocols.file_format import FileFormat

logger = logging.getLogger(__name__)

T = TypeVar("T")

_EXTRA_OF = {
    "obstore": "s3",
    "psycopg": "postgres",
    "polars": "polars",
    "pydantic": "pydantic",
    "torch": "torch",
    "safetensors": "torch",
    "scipy": "scipy",
    "PIL": "pillow",
    "skops": "skops",
    "xarray": "xarray",
    "yaml": "yaml",
    "dotenv": "dotenv",
    "tenacity": "retry",
    "cryptography": "encryption",
    "typer": "cli",
    "rich": "cli",
}
"""Import name of an optional library -> the extra that brings it."""


def load(target: str) -> Any:
    """Import ``"module:Name"``.

    Raises
    ------
    MissingDependencyError
        An optional library that it needs is not installed. Other import errors pass unmasked.

    Examples
    --------
    >>> load("blobstore.keys:MAX_KEY_BYTES")
    2048
    """
    module, _, name = target.partition(":")
    return getattr(load_module(module, name), name)


def load_module(module: str, what: str = "") -> Any:
    """Import a module, with the same errors as `load`.

    Parameters
    ----------
    module : str
    what : str
        Of it, for messages; by default itself.

    Raises
    ------
    MissingDependencyError
    """
    name = what or module
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as exc:
        missing = (exc.name or "").partition(".")[0]
        if missing not in _EXTRA_OF:
            raise
        raise MissingDependencyError(
            f"{name} needs the library {missing!r}, which is not installed: "
            f"pip install 'blobstore[{_EXTRA_OF[missing]}]'"
        ) from exc


class Registry(Generic[T]):
    """Classes of one interface by name, each imported when it is first asked for.

    Parameters
    ----------
    kind : str
        What they are, in messages: "metadata backend".
    group : str
        Entry-point group of other packages.
    interface : type, or tuple of types
        What every implementation is a subclass of, or one of several.
    builtin : mapping of str to str
        Name to ``"module:Class"``.
    """

    def __init__(
        self,
        kind: str,
        group: str,
        interface: type[T] | tuple[type[T], ...],
        builtin: Mapping[str, str],
    ) -> None:
        self.kind = kind
        self._group = group
        self._interfaces = interface if isinstance(interface, tuple) else (interface,)
        self._builtin = dict(builtin)
        self._registered: dict[str, type[T]] = {}
        self._offered: dict[str, str] | None = None
        self._lock = threading.Lock()

    def register(self, name: str, implementation: type[T]) -> None:
        """Add an implementation under a new name.

        Raises
        ------
        ConfigError
            The name is taken, or the class does not implement the interface.
        """
        self._check(name, implementation)
        with self._lock:
            if name in self._registered or name in self._builtin or name in self._entry_points():
                raise ConfigError(f"there is a {self.kind} named {name!r} already: choose another")
            self._registered[name] = implementation

    def get(self, name: str) -> type[T]:
        """The implementation of that name.

        Raises
        ------
        ConfigError
            There is none; the message lists those that exist.
        MissingDependencyError
            It needs a library that is not installed.
        """
        found = self.find(name)
        if found is None:
            raise ConfigError(
                f"there is no {self.kind} named {name!r}: known are {', '.join(map(repr, self.names()))}"
            )
        return found

    def find(self, name: str) -> type[T] | None:
        """The implementation of that name, or None; otherwise as `get`."""
        if name in self._registered:
            return self._registered[name]
        if name in self._builtin:
            implementation: type[T] = load(self._builtin[name])
            return implementation
        points = self._entry_points()
        if name not in points:
            return None
        implementation = load(points[name])
        self._check(name, implementation)
        with self._lock:
            return self._registered.setdefault(name, implementation)

    def names(self) -> Iterator[str]:
        """All names, those of installed packages included."""
        yield from sorted({*self._registered, *self._builtin, *self._entry_points()})

    def built_in(self) -> Iterator[str]:
        """Names of this library; nothing is looked up for it."""
        yield from sorted(self._builtin)

    def third_party(self) -> Iterator[str]:
        """Names that are not built in."""
        yield from sorted({*self._registered, *self._entry_points()})

    def _check(self, name: object, implementation: object) -> None:
        if not isinstance(name, str) or not name:
            raise ConfigError(f"the name of a {self.kind} must be a text, not {name!r}")
        if not (isinstance(implementation, type) and issubclass(implementation, self._interfaces)):
            wanted = " or ".join(interface.__name__ for interface in self._interfaces)
            raise ConfigError(
                f"the {self.kind} {name!r} must be a subclass of {wanted}, not {implementation!r}"
            )

    def _entry_points(self) -> dict[str, str]:
        """What installed packages offer; looked up once, which takes some 10 ms."""
        if self._offered is None:
            self._offered = self._find_entry_points()
        return self._offered

    def _find_entry_points(self) -> dict[str, str]:
        from importlib.metadata import entry_points  # slow to import, seldom needed

        found: dict[str, str] = {}
        for point in entry_points(group=self._group):
            taken = found.get(point.name) or self._builtin.get(point.name)
            if taken not in (None, point.value):
                raise ConfigError(
                    f"two packages offer a {self.kind} named {point.name!r} "
                    f"({taken} and {point.value}): uninstall one of them"
                )
            found[point.name] = point.value
        return found


object_stores: Registry[ObjectStore] = Registry(
    "blob backend",
    "blobstore.object_stores",
    ObjectStore,
    {
        "memory": "blobstore.backends.blob.memory:DictStore",
        "filesystem": "blobstore.backends.blob.filesystem:FilesystemBlobBackend",
        "sqlite": "blobstore.backends.blob.sqlite:SqliteStore",
        "zip": "blobstore.backends.blob.zip:ZipStore",
    },
)

_STORE_MODULES = {
    "backends.blob.memory": ("DictStore",),
    "backends.blob.bucket": ("BucketStore",),
    "backends.blob.filesystem": ("FilesystemStore", "FilesystemBlobBackend"),
    "backends.blob.hashdir": ("HashdirStore",),
    "backends.blob.s3_blob_backend": ("S3BlobBackend",),
    "backends.blob.safe_filesystem": ("SafeFilesystemStore",),
    "backends.blob.sqlite": ("SqliteStore",),
    "backends.blob.zip": ("ZipStore",),
    "wrappers.base": ("IdentityStore",),
    "wrappers.transform": ("TransformingStore",),
    "wrappers.key_transform": ("KeyTransformingStore",),
    "wrappers.text": ("TextEncodingStore", "JsonStore", "BufferStore"),
    "wrappers.compress": ("GzipStore", "ZstdStore", "Lz4Store"),
    "wrappers.base64": ("Base64Store",),
    "wrappers.checksum": ("ChecksumStore",),
    "wrappers.encrypt": ("EncryptingStore",),
    "wrappers.mirror": ("MirroringStore", "FanoutStore"),
    "wrappers.cache": ("CachingStore",),
    "wrappers.access": ("ReadonlyStore", "WriteonlyStore"),
    "wrappers.notify": ("NotifyingStore",),
    "wrappers.log": ("LoggingStore", "ExceptionLoggingStore"),
    "wrappers.retry": ("RetryingStore",),
    "wrappers.prefix": ("PrefixStore", "HashPrefixStore"),
    "wrappers.url_encoding": ("UrlEncodingStore",),
    "wrappers.validate": ("KeyValidatingStore", "RegexValidatingStore", "UrlValidatingStore"),
    "wrappers.routing": ("RegexRoutingStore",),
}
"""Where the object stores are that a description can name."""

store_types: Registry[ObjectStore] = Registry(
    "store type",
    "blobstore.object_stores",
    ObjectStore,
    {
        name: f"blobstore.{module}:{name}"
        for module, names in _STORE_MODULES.items()
        for name in names
    },
)

S = TypeVar("S", bound=ObjectStore)


@overload
def register_store(cls: type[S], *, name: str | None = None) -> type[S]: ...


@overload
def register_store(
    cls: None = None, *, name: str | None = None
) -> Callable[[type[S]], type[S]]: ...


def register_store(
    cls: type[S] | None = None, *, name: str | None = None
) -> type[S] | Callable[[type[S]], type[S]]:
    """Let descriptions of stores name a class; used as a decorator.

    Parameters
    ----------
    cls : type
        A subclass of `ObjectStore`.
    name : str, optional
        By default the name of the class. If it is a scheme, and the class has a classmethod
        ``from_url(url, **options)``, then `open_store` takes such URLs.

    Returns
    -------
    type
        The class, unchanged; a decorator if none was given.

    Raises
    ------
    ConfigError
        It is no object store, or the name is taken.

    Examples
    --------
    >>> from blobstore.backends import DictStore
    >>> @register_store(name="LoudStore")
    ... class Loud(DictStore):
    ...     pass
    >>> store_types.get("LoudStore") is Loud
    True
    """
    if cls is None:
        return lambda decorated: register_store(decorated, name=name)
    store_types.register(getattr(cls, "__name__", repr(cls)) if name is None else name, cls)
    return cls


metadata_backends: Registry[MetadataBackend] = Registry(
    "metadata backend",
    "blobstore.metadata_backends",
    MetadataBackend,
    {
        "json": "blobstore.backends.metadata.json:JsonBackend",
        "sqlite": "blobstore.backends.metadata.sql:SqlBackend",
    },
)

file_formats: Registry[FileFormat] = Registry(
    "file format",
    "blobstore.file_formats",
    FileFormat,
    {},  # the built-in ones are chosen by extension: blobstore.autostore.formats
)

handler_classes: Registry[Handler | DataHandler] = Registry(
    "handler",
    "blobstore.handlers",
    (Handler, DataHandler),
    {
        "numpy": "blobstore.handlers.numpy:NumpyHandler",
        "pandas": "blobstore.handlers.pandas:PandasHandler",
        "arrow": "blobstore.handlers.arrow_tables:ArrowHandler",
        "polars": "blobstore.handlers.polars:PolarsHandler",
        "torch": "blobstore.handlers.torch:TorchHandler",
        "sparse": "blobstore.handlers.sparse:SparseHandler",
        "dataclass": "blobstore.handlers.fields:DataclassHandler",
        "pydantic": "blobstore.handlers.fields:PydanticHandler",
        "xarray": "blobstore.handlers.xarray:XarrayHandler",
        "image": "blobstore.handlers.image:ImageHandler",
        "skops": "blobstore.handlers.skops:SkopsHandler",
        "bytes": "blobstore.handlers.text:BytesHandler",
        "bytearray": "blobstore.handlers.text:BytearrayHandler",
        "str": "blobstore.handlers.text:StrHandler",
        "file": "blobstore.handlers.file:FileHandler",
        "mapping": "blobstore.handlers.mapping:MappingHandler",
        "pickle": "blobstore.handlers.pickle:PickleHandler",
    },
)

AnyHandler = Handler | DataHandler | type[Handler] | type[DataHandler]
"""What a store takes for a handler; classes are made without arguments."""

_ADAPTER = "blobstore.handlers.data_handler:AdaptedHandler"

_LOCAL_FILE = "blobstore.handlers.file.LocalFile"
"""What `put_file` hands over: it means that very file, and is no object for whoever takes any."""

_SPARSE = ("csr", "csc", "bsr", "coo", "dia", "dok", "lil")

_BUILTIN_TYPES: dict[str, tuple[str, ...]] = {
    **{
        f"scipy.sparse._{layout}.{layout}_{kind}": ("sparse",)
        for layout in _SPARSE
        for kind in ("array", "matrix")
    },
    "numpy.ndarray": ("numpy",),
    "pandas.DataFrame": ("pandas",),
    "pandas.Series": ("pandas",),
    "pandas.core.frame.DataFrame": ("pandas",),
    "pandas.core.series.Series": ("pandas",),
    "pyarrow.lib.Table": ("arrow",),
    "pyarrow.lib.RecordBatch": ("arrow",),
    "pyarrow.lib.ChunkedArray": ("arrow",),
    "polars.dataframe.frame.DataFrame": ("polars",),
    "polars.lazyframe.frame.LazyFrame": ("polars",),
    "polars.series.series.Series": ("polars",),
    "builtins.bytes": ("bytes",),
    "builtins.bytearray": ("bytearray",),
    "builtins.str": ("str",),
    "builtins.dict": ("mapping",),
    "builtins.list": ("mapping",),
    "builtins.tuple": ("mapping",),
    "collections.OrderedDict": ("mapping",),
    "collections.defaultdict": ("mapping",),
    "xarray.core.dataset.Dataset": ("xarray",),
    "xarray.core.dataarray.DataArray": ("xarray",),
    "torch.Tensor": ("torch",),
    "torch.nn.parameter.Parameter": ("torch",),
    _LOCAL_FILE: ("file",),
}
"""Exact type -> built-in handlers to ask, so that no handler is imported to find out."""

_BUILTIN_BASES: dict[str, tuple[str, ...]] = {
    "pyarrow.lib.Array": ("arrow",),
    "torch.nn.modules.module.Module": ("mapping",),
    "torch.optim.optimizer.Optimizer": ("mapping",),
    "PIL.Image.Image": ("image",),
    "sklearn.base.BaseEstimator": ("skops",),
    "pydantic.main.BaseModel": ("pydantic",),
    "dataclasses.dataclass": ("dataclass",),
}
"""The same of types whose subclasses are meant too."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan, and the handler that made it."""

    handler: Handler
    plan: Plan


class HandlerSet:
    """The handlers of one store: finds who stores an object, and who reads an entry.

    Parameters
    ----------
    extra : iterable of Handler or DataHandler
        The store's own, or their classes; asked before the built-in ones of the same priority.

    Examples
    --------
    >>> HandlerSet().plan("text", WriteOptions()).handler.name
    'str'
    """

    def __init__(self, extra: Iterable[AnyHandler] = ()) -> None:
        self._instances: dict[str, Handler] = {}
        self._own: list[tuple[AnyHandler, Handler]] = []
        self._by_type: dict[type, tuple[Handler, ...]] = {}
        for handler in extra:
            self.register(handler)

    @property
    def given(self) -> tuple[AnyHandler, ...]:
        """The store's own handlers, as they were given."""
        return tuple(given for given, _ in self._own)

    def register(self, handler: AnyHandler) -> None:
        """Add a handler to this store.

        Raises
        ------
        ConfigError
            It is no handler, or its name is taken.
        """
        made = as_handler(handler)
        if made.name in self._instances or made.name in handler_classes.names():
            raise ConfigError(f"there is a handler named {made.name!r} already: rename yours")
        self._own = [*self._own, (handler, made)]
        self._instances[made.name] = made
        self._by_type = {}

    def unregister(self, handler: AnyHandler) -> bool:
        """Take a handler out of this store, by itself or its class; whether it was there."""
        gone = [pair for pair in self._own if _is_handler(pair, handler)]
        self._own = [pair for pair in self._own if not _is_handler(pair, handler)]
        for _, made in gone:
            del self._instances[made.name]
        self._by_type = {}
        return bool(gone)

    def by_name(self, name: str) -> Handler:
        """The handler that an entry names.

        Raises
        ------
        DecodeError
            No such handler is installed here.
        ConfigError
            What a package offers under that name is no handler, or has another name, under which
            it would not be found again.
        """
        found = self._instances.get(name)
        if found is None:
            cls = handler_classes.find(name)
            if cls is None:
                raise DecodeError(
                    f"the entry was stored by the handler {name!r}, which is not here: install the "
                    "package that offers it, or give it to the store as handlers=[...], or with "
                    "register_handler"
                )
            made = as_handler(cls)
            if made.name != name:
                raise ConfigError(
                    f"the entry point {name!r} offers a handler whose name is {made.name!r}, under "
                    "which nobody would find it again: give both one name"
                )
            found = self._instances.setdefault(name, made)
        return found

    def plan(self, obj: Any, options: WriteOptions) -> Planned:
        """Ask handlers in order of priority until one can store `obj`.

        Raises
        ------
        UnsupportedTypeError
            None can; the message is that of the last one asked.
        """
        refusal: UnsupportedTypeError | None = None
        for handler in self.candidates(type(obj)):
            if not handler.can_handle(obj):
                continue
            try:
                return Planned(handler, handler.plan(obj, options))
            except UnsupportedTypeError as exc:
                refusal = exc
        if refusal is None:  # pickle never says no without a reason
            raise UnsupportedTypeError(f"no handler stores objects of type {type(obj)!r}")
        raise refusal

    def candidates(self, cls: type) -> tuple[Handler, ...]:
        """Handlers to ask for objects of exactly this type, in order."""
        known = self._by_type  # another one once a handler comes or goes
        found = known.get(cls)
        if found is None:
            found = known[cls] = self._find(cls)
        return found

    def _offered(self) -> list[Handler]:
        """The handlers of other packages that can be used here."""
        usable = []
        for name in handler_classes.third_party():
            try:
                usable.append(self.by_name(name))
            except MissingDependencyError as exc:
                # What other objects are stored by must not depend on it.
                logger.warning("the handler %r is left out: %s", name, exc)
        return usable

    def _find(self, cls: type) -> tuple[Handler, ...]:
        name, bases = _name_of(cls), base_names(cls)
        own, offered = [made for _, made in self._own], self._offered()
        rivals = [
            handler
            for handler in (*own, *offered)
            if name in handler.type_names
            or ("*" in handler.type_names and name != _LOCAL_FILE)
            or not bases.isdisjoint(handler.base_names)
        ]
        listed = [*_BUILTIN_TYPES.get(name, ())]
        for base, names in _BUILTIN_BASES.items():
            listed += names if base in bases else ()
        builtin = [self.by_name(n) for n in dict.fromkeys((*listed, "pickle"))]
        return tuple(sorted((*rivals, *builtin), key=lambda handler: -handler.priority))


def make_handler(name: str) -> Handler:
    """A new handler of that name; errors as of `Registry.get`.

    Examples
    --------
    >>> make_handler("str").type_names
    ('builtins.str',)
    """
    return as_handler(handler_classes.get(name))


def as_handler(given: AnyHandler) -> Handler:
    """A handler, whatever a user calls one.

    Raises
    ------
    ConfigError
        It is neither a `Handler`, nor a `DataHandler`, nor a class of these that needs no arguments.
    """
    made = given
    if isinstance(given, type) and issubclass(given, Handler | DataHandler):
        try:
            made = given()
        except TypeError as exc:
            raise ConfigError(
                f"the handler {given.__name__} cannot be made without arguments ({exc}): give an "
                "instance of it"
            ) from exc
    if isinstance(made, Handler):
        return made
    if isinstance(made, DataHandler):
        adapted: Handler = load(_ADAPTER)(made)
        return adapted
    raise ConfigError(
        f"a handler must be a Handler or a DataHandler, or a class of these, not {given!r}"
    )


def _is_handler(pair: tuple[AnyHandler, Handler], wanted: object) -> bool:
    given, made = pair
    adapted = getattr(made, "handler", made)
    return any(wanted is one for one in (given, made, type(made), adapted, type(adapted)))


def _name_of(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def base_names(cls: type) -> frozenset[str]:
    """The names that `Handler.base_names` are compared with.

    Examples
    --------
    >>> sorted(base_names(bool))
    ['builtins.bool', 'builtins.int', 'builtins.object']
    """
    names = set(map(_name_of, cls.__mro__))
    if "__dataclass_fields__" in cls.__dict__:
        names.add("dataclasses.dataclass")
    return frozenset(names)
