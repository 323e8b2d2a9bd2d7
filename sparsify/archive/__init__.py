"""Reading models from files, and writing them: sniffing, the archive check, `.pt2` with plan and masks."""

from __future__ import annotations

from sparsify.archive.check import check_archive
from sparsify.archive.consent import PickleConsentError
from sparsify.archive.load import load
from sparsify.archive.save import save
from sparsify.archive.sniff import Kind, sniff
from sparsify.archive.wrap import wrap

__all__ = ["Kind", "PickleConsentError", "check_archive", "load", "save", "sniff", "wrap"]
