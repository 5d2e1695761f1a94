package qupath.lib.gui.scripting

import groovy.json.JsonSlurper
import java.util.zip.GZIPInputStream
import qupath.lib.gui.viewer.QuPathViewer
import qupath.lib.objects.PathObject

/** The commands of scripts; QuPath imports them statically into each, and so does the test. */
class QPEx {

    static final String PROJECT_BASE_DIR = '{%PROJECT}'

    static File projectFolder
    static Object projectEntry
    static String currentImageName
    static QuPathViewer currentViewer
    static List<PathObject> hierarchy = []
    static int updates = 0

    static Object getProject() {
        return projectFolder
    }

    static String buildFilePath(String first, String... more) {
        if (first.contains(PROJECT_BASE_DIR) && projectFolder == null) {
            throw new IllegalArgumentException('no project')
        }
        def start = first.replace(PROJECT_BASE_DIR, "${projectFolder}")
        return ([start] + (more as List)).join(File.separator)
    }

    static String getCurrentImageNameWithoutExtension() {
        return currentImageName?.replaceFirst(/\.[^.]+$/, '')
    }

    static Collection<PathObject> getAllObjects(boolean includeRootObject) {
        return new ArrayList<PathObject>(hierarchy) + (includeRootObject ? [new PathObject()] : [])
    }

    static Collection<PathObject> getTileObjects() {
        return hierarchy.findAll { it.tile }
    }

    static void removeObjects(Collection<? extends PathObject> pathObjects, boolean keepChildren) {
        hierarchy.removeAll { one -> pathObjects.any { it.is(one) } }
    }

    static boolean importObjectsFromFile(String path) {
        def file = new File(path)
        def text = path.endsWith('.gz') ? new GZIPInputStream(file.newInputStream()) : file.newInputStream()
        def found = text.withStream { new JsonSlurper().parse(it, 'UTF-8') }.features
        hierarchy.addAll(found.collect { PathObject.of(it) })
        return !found.isEmpty()
    }

    static void fireHierarchyUpdate() {
        updates++
    }
}
