#!/usr/bin/env nextflow
// Tile, train, heatmap, evaluate: a task for each slide, and at the end which slides failed.
//
//   nextflow run pipelines/nextflow -params-file my.yaml -profile local -resume
//
// The store, the run and the results lie in params.out, in one place for all tasks, and are
// wsiad's: tasks pass on the record of their slide alone. A slide that fails has a record that says
// so. A call that could not do its work leaves no record, and its task has failed.

nextflow.enable.dsl = 2

def real(path) { file(path, checkIfExists: true).toAbsolutePath().toString() }

// A word of a shell, whatever is in it.
def quoted(word) { "'" + word.toString().replace("'", "'\\''") + "'" }

def option(flag, value) { value == null ? '' : "${flag} ${quoted(value)}" }

def path_option(flag, path) { path == null ? '' : option(flag, real(path)) }

process LIST {
    tag "${step}"
    cache false   // folders may have got more slides

    input:
    tuple val(step), val(slides), val(manifest)

    output:
    tuple val(step), val(manifest), path('slides.json')

    script:
    // 1: some cannot be worked on; they are listed, and fail with their reason.
    """
    mkdir -p "\$(dirname ${quoted(manifest)})"
    rm -f ${quoted(manifest)}
    ${params.wsiad} list-slides ${quoted(slides)} --manifest ${quoted(manifest)} --json \\
        > slides.json || [ \$? -eq 1 ]
    [ -s slides.json ]
    """
}

process TILE {
    tag "${name}"

    input:
    tuple val(name), val(manifest), val(store)

    output:
    path 'record.json'

    script:
    """
    ${params.wsiad} tile ${quoted(manifest)} --only=${quoted(name)} --record record.json \\
        ${path_option('--config', params.tile_config)} --out ${quoted(store)} \\
        --mpp ${params.mpp} --tile ${params.tile} ${option('--stage-dir', params.stage_dir)} \\
        --workers ${task.cpus} --quiet || [ -e record.json ]
    """
}

process TRAIN {
    input:
    path 'records/*.json'
    val store
    val run

    output:
    val run

    script:
    """
    ${params.wsiad} train ${quoted(store)} ${path_option('--config', params.train_config)} \\
        --out ${quoted(run)} ${option('--detector', params.detector)} \\
        ${path_option('--weights', params.weights)} --device ${params.device} \\
        --max-minutes ${params.max_minutes}
    """
}

process HEATMAP {
    tag "${name}"

    input:
    tuple val(name), val(manifest), val(run), val(results)

    output:
    path 'record.json'

    script:
    """
    ${params.wsiad} heatmap ${quoted(run)} ${quoted(manifest)} --only=${quoted(name)} \\
        --record record.json ${path_option('--config', params.heatmap_config)} \\
        --out ${quoted(results)} --device ${params.device} \\
        ${option('--stage-dir', params.stage_dir)} --quiet || [ -e record.json ]
    """
}

process EVALUATE {
    input:
    path 'records/*.json'
    val results

    output:
    val results

    script:
    """
    ${params.wsiad} evaluate ${quoted(results)} \\
        ${path_option('--config', params.evaluate_config)} \\
        ${path_option('--reference', params.reference)} \\
        ${path_option('--annotations', params.annotations)} --quiet
    """
}

// Names of the slides of a list, each once.
def names(listed) {
    new groovy.json.JsonSlurper().parse(listed.toFile()).slides.collect { it.name }.unique()
}

// Lines on the slides of a record that failed or could not be looked at.
def failures(step, record) {
    new groovy.json.JsonSlurper().parse(record.toFile()).rows
        .findAll { it.status in ['failed', 'unusable'] }
        .collect { "${step} ${it.slide}: ${it.status}: ${it.reason}".toString() }
}

workflow {
    def missing = ['healthy', 'slides', 'mpp', 'tile'].findAll { params[it] == null }
    if (missing) {
        error "set in the params file: ${missing.join(', ')}"
    }
    def out = file(params.out).toAbsolutePath().toString()
    def store = "${out}/store"
    def run = "${out}/run"
    def results = "${out}/results"

    LIST(Channel.of(
        ['healthy', real(params.healthy), "${out}/jobs/healthy.csv".toString()],
        ['slides', real(params.slides), "${out}/jobs/slides.csv".toString()],
    ))
    listed = LIST.out.branch { step, manifest, found ->
        healthy: step == 'healthy'
        slides: true
    }

    TILE(listed.healthy.flatMap { step, manifest, found ->
        names(found).collect { name -> [name, manifest, store] }
    })
    TRAIN(TILE.out.toSortedList(), store, run)

    HEATMAP(
        listed.slides
            .flatMap { step, manifest, found -> names(found).collect { name -> [name, manifest] } }
            .combine(TRAIN.out)
            .map { name, manifest, trained -> [name, manifest, trained, results] }
    )
    if (params.reference != null || params.evaluate_config != null) {
        EVALUATE(HEATMAP.out.toSortedList(), results)
    }

    TILE.out.flatMap { record -> failures('tile', record) }
        .mix(HEATMAP.out.flatMap { record -> failures('heatmap', record) })
        .collect()
        .subscribe { lines -> log.warn "${lines.size()} failed:\n  ${lines.sort().join('\n  ')}" }
}
