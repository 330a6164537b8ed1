"""Where the project's files are, from any test."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
