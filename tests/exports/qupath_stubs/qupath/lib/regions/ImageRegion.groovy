package qupath.lib.regions

class ImageRegion {

    final List<Integer> numbers

    private ImageRegion(List<Integer> numbers) {
        this.numbers = numbers
    }

    static ImageRegion createInstance(
            final int x, final int y, final int width, final int height, final int z, final int t) {
        return new ImageRegion([x, y, width, height, z, t])
    }
}
