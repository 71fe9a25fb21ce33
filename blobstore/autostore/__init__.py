"""AutoStore: a dictionary whose values are open files, in a folder or a bucket."""

from blobstore.autostore.environment import config, load_dotenv, setup_logging
from blobstore.autostore.errors import (
    StorageConnectionError,
    StorageFileNotFoundError,
    StoragePermissionError,
)
from blobstore.autostore.schemes import S3Backend
from blobstore.autostore.store import AutoStore, FileMetadata
from blobstore.config.s3 import S3StorageConfig
from blobstore.config.storage import StorageConfig
from blobstore.errors import StorageError
from blobstore.protocols.data_handler import DataHandler
from blobstore.protocols.file_format import FileContext, FileFormat

__all__ = [
    "AutoStore",
    "DataHandler",
    "FileContext",
    "FileFormat",
    "FileMetadata",
    "S3Backend",
    "S3StorageConfig",
    "StorageConfig",
    "StorageConnectionError",
    "StorageError",
    "StorageFileNotFoundError",
    "StoragePermissionError",
    "config",
    "load_dotenv",
    "setup_logging",
]
