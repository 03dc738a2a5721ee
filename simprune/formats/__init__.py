"""Writing a model for use without simprune: one format per file, each read back and compared before it counts.

A format is a function `(model, example, folder, *, options) -> Written`, registered as a "format". It writes its files
into an empty folder and says how a process that knows nothing of simprune runs them.
"""

from simprune.formats.exporting import Export, Mismatch, export
from simprune.formats.written import Written

__all__ = ["Export", "Mismatch", "Written", "export"]
