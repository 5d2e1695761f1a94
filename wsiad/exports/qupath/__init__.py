"""QuPath: objects as GeoJSON, a project of all slides, and the scripts that import them."""

from wsiad.exports.qupath.objects import write_lesions, write_tiles, write_unassessed

__all__ = ["write_lesions", "write_tiles", "write_unassessed"]
