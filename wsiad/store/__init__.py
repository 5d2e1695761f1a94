"""The tile store: zarr v3, one group per slide; its writer, its readers, its datasets."""
