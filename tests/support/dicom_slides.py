"""DICOM whole-slide images built by the tests themselves; OpenSlide opens them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit

_IMAGE = "1.2.840.10008.5.1.4.1.1.77.1.6"
_ANNOTATIONS = "1.2.840.10008.5.1.4.1.1.91.1"
_TILE = 128


def uid(*numbers: int) -> str:
    return "1.2.826.0.1.3680043.8.498." + ".".join(map(str, numbers))


def _file(path: Path, sop_class: str, syntax: str, series: int, number: int) -> FileDataset:
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = uid(series, number)
    meta.TransferSyntaxUID = syntax
    meta.ImplementationClassUID = uid(1)
    file = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    file.SOPClassUID, file.SOPInstanceUID = sop_class, uid(series, number)
    file.StudyInstanceUID, file.SeriesInstanceUID = uid(series, 900), uid(series, 901)
    file.FrameOfReferenceUID = uid(series, 902)
    file.PatientID, file.StudyDate, file.StudyTime = f"P{series}", "20240101", "000000"
    file.SeriesNumber, file.InstanceNumber, file.Manufacturer = 1, number, "x"
    return file


def write_level(
    path: Path,
    image: np.ndarray,
    *,
    series: int,
    number: int = 1,
    mpp: float = 0.5,
    kind: str = "VOLUME",
) -> Path:
    """Write a level (or label, overview) of a slide; levels of one series number are one slide."""
    height, width = image.shape[:2]
    frames = []
    for y in range(0, height, _TILE):
        for x in range(0, width, _TILE):
            tile = np.full((_TILE, _TILE, 3), 243, np.uint8)
            piece = image[y : y + _TILE, x : x + _TILE]
            tile[: piece.shape[0], : piece.shape[1]] = piece
            data = io.BytesIO()
            Image.fromarray(tile).save(data, "JPEG", quality=90, subsampling=1)
            frames.append(data.getvalue())
    file = _file(path, _IMAGE, JPEGBaseline8Bit, series, number)
    derived = number > 1
    file.Modality = "SM"
    file.ImageType = ["DERIVED" if derived else "ORIGINAL", "PRIMARY", kind,
                      "RESAMPLED" if derived else "NONE"]  # fmt: skip
    file.Rows = file.Columns = _TILE
    file.TotalPixelMatrixColumns, file.TotalPixelMatrixRows = width, height
    file.TotalPixelMatrixFocalPlanes, file.NumberOfFrames = 1, len(frames)
    file.SamplesPerPixel, file.PhotometricInterpretation = 3, "YBR_FULL_422"
    file.PlanarConfiguration = file.PixelRepresentation = 0
    file.BitsAllocated, file.BitsStored, file.HighBit = 8, 8, 7
    file.DimensionOrganizationType, file.NumberOfOpticalPaths = "TILED_FULL", 1
    optical, shared, measures = Dataset(), Dataset(), Dataset()
    optical.OpticalPathIdentifier = "1"
    optical.ObjectiveLensPower = 20
    file.OpticalPathSequence = Sequence([optical])
    measures.PixelSpacing = [mpp / 1000, mpp / 1000]
    measures.SliceThickness = 0.001
    shared.PixelMeasuresSequence = Sequence([measures])
    file.SharedFunctionalGroupsSequence = Sequence([shared])
    file.ImagedVolumeWidth, file.ImagedVolumeHeight = width * mpp / 1000, height * mpp / 1000
    file.VolumetricProperties = "VOLUME"
    file.PixelData = encapsulate(frames)
    file["PixelData"].is_undefined_length = True
    file.save_as(path, enforce_file_format=True)
    return path


def write_annotations(path: Path, *, series: int) -> Path:
    """Write an instance that is no image."""
    file = _file(path, _ANNOTATIONS, ExplicitVRLittleEndian, series, 77)
    file.Modality = "ANN"
    file.save_as(path, enforce_file_format=True)
    return path
