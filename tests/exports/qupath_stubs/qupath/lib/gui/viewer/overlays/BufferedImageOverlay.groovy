package qupath.lib.gui.viewer.overlays

import java.awt.image.BufferedImage
import qupath.lib.gui.viewer.QuPathViewer
import qupath.lib.regions.ImageRegion

class BufferedImageOverlay {

    final Map<ImageRegion, BufferedImage> regionMap

    BufferedImageOverlay(final QuPathViewer viewer, BufferedImage img) {
        throw new IllegalStateException('stretched over the whole slide')
    }

    BufferedImageOverlay(final QuPathViewer viewer, Map<ImageRegion, BufferedImage> map) {
        regionMap = map
    }
}
