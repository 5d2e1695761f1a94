"""Against StainTools and SPAMS, where they are installed (extra ``staintools``)."""

import importlib
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.stain_images import HE, angles_deg, tissue
from wsiad.stain.colour_table import ColourTable
from wsiad.stain.colours import ColourHistogram, optical_density
from wsiad.stain.methods import concentrations, extreme_stains, learn_stains, objective
from wsiad.stain.profile import StainProfile, TwoStains

spams = pytest.importorskip("spams", reason="spams-bin is not installed (extra staintools)")
staintools = pytest.importorskip("staintools", reason="staintools is not installed")

SHARED = Path(__file__).parents[3] / "shared" / "data"
TARGET = np.array([[0.523, 0.755, 0.395], [0.248, 0.867, 0.432]])
TARGET /= np.linalg.norm(TARGET, axis=1, keepdims=True)


def skin():
    openslide = pytest.importorskip("openslide")
    path = SHARED / "slides" / "cmu-1-small-region.svs"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    with openslide.OpenSlide(path) as slide:
        return np.asarray(slide.read_region((800, 1000), 0, (512, 512)).convert("RGB")).copy()


def lymph_node():
    path = SHARED / "pcam" / "train_normal.tar"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    with tarfile.open(path) as tar:
        files = [tar.extractfile(member) for member in tar.getmembers()[:25]]
        tiles = [np.asarray(Image.open(io.BytesIO(file.read()))) for file in files]
    return np.vstack([np.hstack(tiles[5 * row : 5 * row + 5]) for row in range(5)])


def synthetic():
    return tissue(edge=384)


@pytest.fixture(
    scope="module", params=[skin, lymph_node, synthetic], ids=lambda make: make.__name__
)
def image(request):
    return request.param()


def tissue_mask(image):
    """The pixels that StainTools takes for tissue; it writes to its input."""
    module = "staintools.tissue_masks.luminosity_threshold_tissue_locator"
    locator = importlib.import_module(module).LuminosityThresholdTissueLocator
    return locator.get_tissue_mask(image.copy())


def tissue_density(image):
    return optical_density(image[tissue_mask(image)])


def haematoxylin_first(matrix):
    return matrix if matrix[0, 0] > matrix[1, 0] else matrix[::-1]


def test_concentrations_are_those_of_spams(image):
    density = np.asfortranarray(optical_density(image.reshape(-1, 3)).T)
    theirs = spams.lasso(
        density, D=np.asfortranarray(HE.T), mode=2, lambda1=0.01, pos=True
    ).toarray()
    assert np.abs(concentrations(density.T, HE) - theirs.T).max() < 1e-6


def test_normalised_image_is_that_of_staintools_with_the_same_matrices(image):
    """StainTools cuts values off where the table rounds them: 0 or 1 grey level apart."""
    matrices = iter([TARGET, HE])

    class Fixed:
        @staticmethod
        def get_stain_matrix(_):
            return next(matrices)

    normaliser = staintools.StainNormalizer("vahadane")
    normaliser.extractor = Fixed
    normaliser.fit(tissue(TARGET, seed=9))
    theirs = normaliser.transform(image.copy())
    amounts = concentrations(optical_density(image.reshape(-1, 3)), HE)
    strength = tuple(np.percentile(amounts, 99, axis=0).tolist())
    source = TwoStains(tuple(HE[0].tolist()), tuple(HE[1].tolist()), strength)
    strength = tuple(normaliser.maxC_target.ravel().tolist())
    target = TwoStains(tuple(TARGET[0].tolist()), tuple(TARGET[1].tolist()), strength)
    table = ColourTable.between(
        StainProfile("vahadane", stains=source), StainProfile("vahadane", stains=target)
    )
    difference = table.apply(image).astype(int) - theirs
    assert difference.min() >= 0
    assert difference.max() <= 1


def learn_with_spams(density, **options):
    learned = spams.trainDL(
        np.asfortranarray(density.T),
        K=2,
        lambda1=0.1,
        mode=2,
        modeD=0,
        posAlpha=True,
        posD=True,
        verbose=False,
        **options,
    )
    return haematoxylin_first(unit(learned.T))


def test_spams_finds_no_better_dictionary_from_there(image):
    density = tissue_density(image)
    ones = np.ones(len(density))
    mine = haematoxylin_first(learn_stains(density, ones))
    theirs = learn_with_spams(density, D=np.asfortranarray(mine.T), iter=200)
    assert objective(density, ones, mine) <= objective(density, ones, theirs) + 1e-9
    assert angles_deg(mine, theirs).max() < 0.5


def test_dictionary_of_spams_comes_near_from_its_own_start(image, request):
    """SPAMS is far from converged in 200 steps, as in the one second StainTools gives it."""
    density = tissue_density(image)
    ones = np.ones(len(density))
    mine = haematoxylin_first(learn_stains(density, ones))
    theirs = learn_with_spams(density, iter=200)
    assert objective(density, ones, mine) <= objective(density, ones, theirs)
    limit_deg = {"skin": 6.0, "lymph_node": 1.5, "synthetic": 0.1}
    assert angles_deg(mine, theirs).max() < limit_deg[request.node.callspec.id]


def test_dictionary_of_the_histogram_is_that_of_all_pixels(image):
    histogram = ColourHistogram()
    histogram.add(image, tissue_mask(image))
    sample = histogram.tissue()
    binned = learn_stains(optical_density(sample.rgb), sample.weights)
    density = tissue_density(image)
    assert angles_deg(binned, learn_stains(density, np.ones(len(density)))).max() < 0.6


def test_staintools_in_its_one_second_is_no_better(image):
    theirs = extractor("vahadane").get_stain_matrix(image.copy())
    density = tissue_density(image)
    ones = np.ones(len(density))
    mine = learn_stains(density, ones)
    assert objective(density, ones, mine) <= objective(density, ones, theirs) + 1e-9


def test_macenko_is_that_of_staintools(image):
    density = tissue_density(image)
    theirs = extractor("macenko").get_stain_matrix(image.copy())
    mine = haematoxylin_first(extreme_stains(density, np.ones(len(density))))
    assert angles_deg(mine, unit(np.maximum(theirs, 0))).max() < 0.1


def extractor(method):
    return staintools.StainNormalizer(method).extractor


def unit(matrix):
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
