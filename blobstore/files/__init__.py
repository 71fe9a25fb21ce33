"""Formats of open files: what `AutoStore` writes, and other tools read."""
