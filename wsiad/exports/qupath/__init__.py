"""QuPath: objects as GeoJSON, a project of all slides, and the scripts that import them."""

from wsiad.exports.qupath.objects import QuPath, write_lesions, write_tiles, write_unassessed

__all__ = ["QuPath", "write_lesions", "write_tiles", "write_unassessed"]
