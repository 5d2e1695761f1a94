package qupath.lib.gui.viewer

import qupath.lib.gui.tools.MeasurementMapper
import qupath.lib.gui.viewer.overlays.BufferedImageOverlay

class QuPathViewer {

    /** As far as it is used, JavaFX's ObservableList. */
    static class Layers extends ArrayList<BufferedImageOverlay> {
        boolean setAll(BufferedImageOverlay... layers) {
            clear()
            return addAll(layers as List)
        }
    }

    static class OverlayOptions {
        boolean fillDetections
        MeasurementMapper measurementMapper
    }

    final Layers customOverlayLayers = new Layers()
    final OverlayOptions overlayOptions = new OverlayOptions()
    int repaints = 0

    void repaint() {
        repaints++
    }
}
