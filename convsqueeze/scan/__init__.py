"""A model's graph -> the merges that pay, each with its place in it, and why not the rest."""

from convsqueeze.scan.scanning import LeftAlone, Scan, ScannedEntry, scan

__all__ = ["LeftAlone", "Scan", "ScannedEntry", "scan"]
