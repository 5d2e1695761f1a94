package qupath.lib.color

class ColorMaps {

    static class ColorMap {
        String name
    }

    static Map<String, ColorMap> getColorMaps() {
        return ['Viridis', 'Inferno'].collectEntries { [it, new ColorMap(name: it)] }
    }
}
