// Runs scripts in turn against the stubs: the file of the first argument lists what to set up and
// which script to run; standard output is, as JSON, what came of each.

import groovy.json.JsonOutput
import groovy.json.JsonSlurper
import org.codehaus.groovy.control.CompilationFailedException
import org.codehaus.groovy.control.CompilerConfiguration
import org.codehaus.groovy.control.customizers.ImportCustomizer
import qupath.lib.gui.scripting.QPEx
import qupath.lib.gui.viewer.QuPathViewer
import qupath.lib.objects.PathObject
import qupath.lib.projects.OldProjectImageEntry
import qupath.lib.projects.ProjectImageEntry

def imports = new ImportCustomizer()
imports.addStaticStars(QPEx.name)  // as QuPath does for each script
def options = new CompilerConfiguration()
options.addCompilationCustomizers(imports)

def results = new JsonSlurper().parse(new File(args[0]), 'UTF-8').collect { step ->
    if (step.image) {
        QPEx.currentImageName = step.image
        QPEx.projectFolder = step.project ? new File(step.project) : null
        QPEx.projectEntry = step.metadata == null ? null :
            step.old ? new OldProjectImageEntry(metadataMap: step.metadata) :
            new ProjectImageEntry(metadata: step.metadata)
        QPEx.currentViewer = step.viewer ? new QuPathViewer() : null
        QPEx.hierarchy = []
    }
    QPEx.hierarchy.findAll { it.ID.toString() in (step.unlock ?: []) }.each { it.locked = false }
    step.judge?.each { id, name ->
        def other = PathObject.of([id: id, properties: [classification: [name: name]]])
        QPEx.hierarchy.find { it.ID.toString() == id }.pathClass = other.pathClass
    }
    step.note?.each { id, text ->
        QPEx.hierarchy.find { it.ID.toString() == id }.metadata['wsiad judgements'] = text
    }
    step.write?.each { path, text -> new File(path).setText(text, 'UTF-8') }
    if (step.draw) {
        QPEx.hierarchy << PathObject.of(step.draw)
    }
    def said = new StringWriter()
    def binding = new Binding(out: new PrintWriter(said, true))
    def failed = null
    try {
        new GroovyShell(getClass().classLoader, binding, options).parse(new File(step.script)).run()
    } catch (CompilationFailedException error) {
        return [refused: error.message]
    } catch (Exception error) {
        failed = error.message
    }
    def viewer = QPEx.currentViewer
    return [
        said: said.toString().trim(),
        failed: failed,
        objects: QPEx.hierarchy.collect {
            [id: "${it.ID}", tile: it.tile, locked: it.locked, name: it.pathClass?.name,
             description: it.metadata['ANNOTATION_DESCRIPTION'],
             judgements: it.metadata['wsiad judgements']]
        },
        overlays: viewer?.customOverlayLayers?.collect { overlay ->
            overlay.regionMap.collect { region, image -> region.numbers + [image.width, image.height] }
        },
        repaints: viewer?.repaints,
        filled: viewer?.overlayOptions?.fillDetections,
        mapper: viewer?.overlayOptions?.measurementMapper?.facts,
        updates: QPEx.updates,
    ]
}
println JsonOutput.toJson(results)
