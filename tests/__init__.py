"""Tests. ``PROJECT`` is the folder of the checkout; this module is light, since child processes import it."""

from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
