// Colours the imported tiles of the open image by a measurement, as Measure > Show measurement maps.

import javafx.application.Platform
import qupath.lib.color.ColorMaps
import qupath.lib.gui.tools.MeasurementMapper

def measurement = 'wsiad: percentile'
def low = 95.0
def high = 100.0

def viewer = getCurrentViewer()
def tiles = getTileObjects()
if (viewer == null || tiles.isEmpty()) {
    println 'There is no viewer, or no tile: run wsiad_import.groovy first'
    return
}
def colours = ColorMaps.getColorMaps().get('Inferno') ?: ColorMaps.getColorMaps().values().first()
def mapper = new MeasurementMapper(colours, measurement, tiles)
mapper.setDisplayMinValue(low)
mapper.setDisplayMaxValue(high)
mapper.setExcludeOutsideRange(true)
Platform.runLater {
    viewer.getOverlayOptions().setFillDetections(true)
    viewer.getOverlayOptions().setMeasurementMapper(mapper)
}
