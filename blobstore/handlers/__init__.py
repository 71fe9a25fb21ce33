"""Handlers: how objects of each type become bytes and come back."""
