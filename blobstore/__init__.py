"""Put Python objects under keys with metadata, find them again, get them back as they were."""

__version__ = "0.1.0.dev0"
