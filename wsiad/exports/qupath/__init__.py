"""Write files for QuPath: objects as GeoJSON, a project of all slides, and import scripts."""

from wsiad.exports.qupath.objects import QuPath, write_lesions, write_tiles, write_unassessed

__all__ = ["QuPath", "write_lesions", "write_tiles", "write_unassessed"]
