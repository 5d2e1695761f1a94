package qupath.lib.gui.tools

import qupath.lib.objects.PathObject

class MeasurementMapper {

    final Map facts

    // QuPath's first argument is a ColorMaps.ColorMap; Groovy 2.4 finds no nested class in a source file.
    MeasurementMapper(Object mapper, String measurement, Collection<? extends PathObject> pathObjects) {
        facts = [colours: mapper.name, measurement: measurement, objects: pathObjects.size()]
    }

    void setDisplayMinValue(double minValue) {
        facts.low = minValue
    }

    void setDisplayMaxValue(double maxValue) {
        facts.high = maxValue
    }

    void setExcludeOutsideRange(boolean excludeOutsideRange) {
        facts.excludes = excludeOutsideRange
    }
}
