
/** Folder of the open image's results: beside the project's folder, or where it was written. */
def findResults() {
    def places = []
    if (getProject() != null) {
        places << new File(buildFilePath(PROJECT_BASE_DIR)).getAbsoluteFile().getParentFile()
    }
    places << new File('@RESULTS@')
    def entry = getProjectEntry()
    def facts = entry == null ? null :
        entry.respondsTo('getMetadata') ? entry.getMetadata() : entry.getMetadataMap()
    def names = [facts?.get('wsiad: slide'), getCurrentImageNameWithoutExtension(),
                 getCurrentImageName()].findAll { it }
    for (place in places) {
        for (name in names) {
            def folder = new File(place, name)
            if (new File(folder, 'slide.json').isFile()) {
                return folder
            }
        }
    }
    println "No results for ${names} in ${places}"
    return null
}
