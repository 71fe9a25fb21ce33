"""Metadata backends: where the index is kept."""
