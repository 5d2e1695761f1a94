package qupath.lib.projects

/** An image of a project in QuPath 0.5, which has no getMetadata(). */
class OldProjectImageEntry {
    Map<String, String> metadataMap
}
