// Imports tiles and outlines of the open image; by Run > Run for project, of all images.

def folder = findResults()
if (folder == null) {
    return
}

// What people have unlocked or given another class is theirs, and stays.
def isOurs = { object ->
    object.measurements.keySet().any { it.startsWith('wsiad: ') } && (object.isTile() ||
        (object.isLocked() && object.getPathClass()?.getName() in ['@ANOMALY@', '@UNASSESSED@']))
}
removeObjects(getAllObjects(false).findAll { isOurs(it) }, true)
def kept = getAllObjects(false).collect { it.getID() } as Set

['tiles.geojson.gz', 'lesions.geojson', 'not_assessed.geojson'].each { name ->
    def file = new File(folder, name)
    if (file.exists()) {
        importObjectsFromFile(file.getAbsolutePath())
    }
}
// Scripts import without looking for duplicates: what people have kept is not put beside itself.
removeObjects(getAllObjects(false).findAll { isOurs(it) && it.getID() in kept }, true)
fireHierarchyUpdate()
println "Imported ${folder}"
