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
// What people have unlocked or given another class is theirs, and stays.
def isOurs = { object ->
    def judgements = object.getMetadata()['wsiad judgements']
    def name = object.getPathClass()?.getName()
    return object.measurements.keySet().any { it.startsWith('wsiad: ') } && (object.isTile() ||
        (object.isLocked() && (judgements ? name == toldClass(judgements)
                                          : name in ['@ANOMALY@', '@UNASSESSED@'])))
}
removeObjects(getAllObjects(false).findAll { isOurs(it) }, true)
def known = getAllObjects(false).collect { it.getID() } as Set

// Scripts import without looking for duplicates: what is known is not put beside itself.
def importNew = { File file ->
    def there = Collections.newSetFromMap(new IdentityHashMap())
    there.addAll(getAllObjects(false))
    importObjectsFromFile(file.getAbsolutePath())
    def come = getAllObjects(false).findAll { !there.contains(it) }
    def (doubled, fresh) = come.split { it.getID() in known }
    removeObjects(doubled, true)
    known.addAll(fresh.collect { it.getID() })
    return fresh
}

// Judged regions come first, in the place of the same regions without a judgement. Locked, they
// stay ours until somebody unlocks them or judges otherwise.
def top = folder.getParentFile()
while (top != null && !new File(top, 'slides.csv').isFile()) {
    top = top.getParentFile()
}
def review = top == null ? null :
    new File(top, "reviews/${top.toPath().relativize(folder.toPath())}.geojson")
if (review?.isFile()) {
    try {
        importNew(review).each { it.setLocked(true) }
    } catch (Exception error) {
        println "The review cannot be read: ${review} (${error.getMessage()})"
    }
}
['tiles.geojson.gz', 'lesions.geojson', 'not_assessed.geojson'].each { name ->
    def file = new File(folder, name)
    if (file.exists()) {
        importNew(file)
    }
}
fireHierarchyUpdate()
println "Imported ${folder}${review?.isFile() ? ' and its review' : ''}"
