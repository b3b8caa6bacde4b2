"""Hostile requests by kind, the table of what becomes of them, and a load of hostile and honest ones."""
