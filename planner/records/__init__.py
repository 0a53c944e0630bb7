"""Records of verifications: what was measured and what was predicted, kept on this machine, to be shared by those who want to."""

from planner.records.near import Near, nearest
from planner.records.record import WHITELIST, Record, Row, make
from planner.records.store import FOLDER, MAX_EXPORT_BYTES, Damaged, Listing, Store

__all__ = ["FOLDER", "MAX_EXPORT_BYTES", "WHITELIST", "Damaged", "Listing", "Near", "Record", "Row", "Store", "make", "nearest"]
