package qupath.lib.objects

/** An object as QuPath's importer makes it of a feature of GeoJSON. */
class PathObject {

    static class PathClass {
        String name
    }

    UUID ID
    boolean tile
    boolean locked
    PathClass pathClass
    Map<String, Number> measurements = [:]
    Map<String, String> metadata = [:]

    static PathObject of(Map feature) {
        def facts = feature.properties
        return new PathObject(
            ID: UUID.fromString(feature.id),
            tile: facts.objectType == 'tile',
            locked: facts.isLocked ?: false,
            pathClass: facts.classification ? new PathClass(name: facts.classification.name) : null,
            measurements: facts.measurements ?: [:],
            metadata: facts.metadata ?: [:])
    }
}
