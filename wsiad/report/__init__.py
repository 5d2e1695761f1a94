"""The reports: one page about results, one about a tile store."""
