// Imports tiles, outlines and the review of the open image; by Run > Run for project, of all.

def folder = findResults()
if (folder == null) {
    return
}

/** Class of a judged region as its judgements have it: none if nobody has accepted or rejected. */
def toldClass = { String judgements ->
    def verdicts = new groovy.json.JsonSlurper().parseText(judgements)*.verdict.findAll { it } as Set
    return verdicts.size() > 1 ? 'Disputed' : [accepted: 'Tumor', rejected: 'Normal'][verdicts.find { true }]
}
// What people have unlocked or given another class is theirs, and stays; so does what has judgements
// that wsiad did not write.
def isOurs = { object ->
    def judgements = object.getMetadata()['wsiad judgements']
    def name = object.getPathClass()?.getName()
    try {
        return object.measurements.keySet().any { it.startsWith('wsiad: ') } && (object.isTile() ||
            (object.isLocked() && (judgements ? name == toldClass(judgements)
                                              : name in ['@ANOMALY@', '@UNASSESSED@'])))
    } catch (Exception ignored) {
        return false
    }
}
def come = []
def importFrom = { File file ->
    def there = Collections.newSetFromMap(new IdentityHashMap())
    there.addAll(getAllObjects(false))
    importObjectsFromFile(file.getAbsolutePath())
    def found = getAllObjects(false).findAll { !there.contains(it) }
    come.addAll(found)
    return found
}

// All is read before anything of an earlier import is removed. Judged regions come first, in the
// place of the same regions without a judgement. Locked, they stay ours until somebody unlocks them
// or judges otherwise.
def (earlier, kept) = getAllObjects(false).split { isOurs(it) }
def top = folder.getParentFile()
while (top != null && !new File(top, 'slides.csv').isFile()) {
    top = top.getParentFile()
}
def review = top == null ? null :
    new File(top, "reviews/${top.toPath().relativize(folder.toPath())}.geojson")
def told = ''
if (review?.isFile()) {
    try {
        importFrom(review).each { it.setLocked(true) }
        told = ' and its review'
    } catch (Exception error) {
        def why = "${error.getMessage()}".readLines().find { true }
        println "The review cannot be read: ${review} (${why})"
        def (judged, others) = earlier.split { it.getMetadata()['wsiad judgements'] }
        earlier = others
        kept += judged
        told = ' WITHOUT its review' + (judged ? '; judged regions of an earlier import stay' : '')
    }
}
try {
    ['tiles.geojson.gz', 'lesions.geojson', 'not_assessed.geojson'].each { name ->
        def file = new File(folder, name)
        if (file.exists()) {
            importFrom(file)
        }
    }
} catch (Exception error) {
    removeObjects(come, true)
    println "Nothing was imported, and what was there stays: ${folder}"
    throw error
}
removeObjects(earlier, true)
// Scripts import without looking for duplicates: what is known is not put beside itself.
def known = kept.collect { it.getID() } as Set
removeObjects(come.findAll { !known.add(it.getID()) }, true)
fireHierarchyUpdate()
println "Imported ${folder}${told}"
