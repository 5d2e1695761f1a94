// Renders the scripts of the processes of a Nextflow workflow, with values instead of channels.
// Arguments: main.nf, and a file of JSON with `params` and `inputs`; prints {process: script}.
import groovy.json.JsonOutput
import groovy.json.JsonSlurper

class Rendered extends Script {
    static Map inputs, scripts = [:]

    // Of Nextflow's language: names of processes, channels and files, all without an effect.
    Object process(List named) {
        def (name, body) = named
        body.delegate = new Expando(inputs)
        body.resolveStrategy = Closure.OWNER_FIRST
        scripts[name] = body.call().toString()
        return null
    }
    def methodMissing(String name, arguments) {
        arguments.length == 1 && arguments[0] instanceof Closure ? [name, arguments[0]] : null
    }
    def propertyMissing(String name) {
        if (name == 'nextflow') return [enable: [:]]
        if (inputs.containsKey(name)) return inputs[name]
        throw new MissingPropertyException(name, Rendered)
    }
    def tag(word) {}
    def cache(wanted) {}
    def tuple(Object... parts) {}
    def val(name) {}
    def path(name) {}
    def workflow(Closure body) {}
    def file(Map options, path) { [toAbsolutePath: { -> "/work dir/$path" }] }
    Object run() { null }
}

def given = new JsonSlurper().parse(new File(args[1]))
Rendered.inputs = given.inputs + [params: given.params, task: [cpus: 4]]
def configuration = new org.codehaus.groovy.control.CompilerConfiguration(scriptBaseClass: Rendered.name)
new GroovyShell(this.class.classLoader, new Binding(), configuration).evaluate(new File(args[0]))
println JsonOutput.toJson(Rendered.scripts)
