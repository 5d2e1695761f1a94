"""Write files for other programs: QuPath, ASAP, OME-TIFF, OME-Zarr, PNG, CSV, HDF5."""
