package qupath.lib.projects

/** An image of a project in QuPath 0.6 and later. */
class ProjectImageEntry {
    Map<String, String> metadata
}
