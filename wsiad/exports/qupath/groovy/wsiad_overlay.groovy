// Lays the map that regions come from, neighbourhoods or the heatmap, over the open image, on exactly the rectangle that it covers.

import groovy.json.JsonSlurper
import javafx.application.Platform
import javax.imageio.ImageIO
import qupath.lib.gui.viewer.overlays.BufferedImageOverlay
import qupath.lib.regions.ImageRegion

def folder = findResults()
def viewer = getCurrentViewer()
def kind = folder != null && new File(folder, 'spatial.png').isFile() ? 'spatial' : 'heatmap'
def picture = folder == null ? null : new File(folder, "${kind}.png")
if (viewer == null || picture == null || !picture.isFile()) {
    println 'There is no viewer or no heatmap'
    return
}
def place = new JsonSlurper().parse(new File(folder, "${kind}.json"), 'UTF-8').qupath_rectangle
def left = Math.round(place.x as double) as int
def top = Math.round(place.y as double) as int
def right = Math.round((place.x + place.width) as double) as int
def bottom = Math.round((place.y + place.height) as double) as int
def region = ImageRegion.createInstance(left, top, right - left, bottom - top, 0, 0)
def overlay = new BufferedImageOverlay(viewer, [(region): ImageIO.read(picture)])
Platform.runLater {
    viewer.getCustomOverlayLayers().setAll(overlay)
    viewer.repaint()
}
println "${kind == 'spatial' ? 'Neighbourhoods' : 'Single windows'}. " +
    'Key C shows and hides the map, the slider of the toolbar sets its opacity'
