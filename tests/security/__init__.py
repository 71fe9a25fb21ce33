"""Tests that attack: what others wrote must not run code here."""
