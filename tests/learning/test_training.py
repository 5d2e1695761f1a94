"""The training loop on a module so small that its course is known."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from support.builders import Dying
from wsiad.core.errors import DetectorError, InputError, RunError
from wsiad.learning.batches import centre_crops, endless, on_device, random_crops, sample, windows
from wsiad.learning.checkpoint import CHECKPOINT, SLIDES, Checkpoint, Recipe, adam, sgd
from wsiad.learning.detector import Budget, FitContext, HealthyTiles
from wsiad.learning.loop import EarlyStopping, Training
from wsiad.learning.metrics import MetricsLog, MetricsRow, plot_loss, read_metrics
from wsiad.learning.training_options import LoopOptions
from wsiad.runs.split import split_slides
from wsiad.store.dataset import ArrayTiles

CPU = torch.device("cpu")
RNG = np.random.default_rng(0)
TILES = RNG.integers(0, 256, (37, 12, 12, 3), dtype=np.uint8)


class Offset(nn.Module):
    """One colour for every pixel."""

    def __init__(self):
        super().__init__()
        self.colour = nn.Parameter(torch.zeros(3))
        self.filter = nn.Parameter(torch.ones(3, 3, 2, 2).to(memory_format=torch.channels_last))


def loss_of(module):
    def loss(tiles):
        x = tiles.permute(0, 3, 1, 2).float() / 255
        y = nn.functional.conv2d(x, module.filter / 12) + module.colour.view(1, 3, 1, 1)
        return (x[..., 1:, 1:] - y).square().mean(dim=(1, 2, 3))

    return loss


def train(folder, *, steps=None, minutes=None, fit=None, seed=3, loss=None, identity=None, **kw):
    module = Offset()
    options = LoopOptions(
        **{"batch": 8, "val_interval": 5, "log_interval": 3, "learning_rate": 0.01, **kw}
    )
    context = FitContext(
        seed=seed, device=CPU, folder=folder, budget=Budget(steps, minutes), quiet=True
    )
    training = Training(
        module,
        loss or loss_of(module),
        tiles=HealthyTiles(fit or ArrayTiles(TILES[:29]), ArrayTiles(TILES[29:])),
        size=8,
        options=options,
        context=context,
        identity=identity or {},
    )
    result = training.run()
    return torch.cat([p.detach().flatten() for p in module.parameters()]), result


def without_time(folder):
    return [(r.step, r.train_loss, r.stop_loss) for r in read_metrics(folder / "metrics.csv")]


@pytest.mark.parametrize(
    "options",
    [{}, {"ema_decay": 0.9}, {"grad_clip": 0.01, "lr_schedule": "cosine"}],
    ids=["published", "ema", "clip-cosine"],
)
def test_killed_training_ends_like_one_that_was_not(tmp_path, options):
    options = {**options, "checkpoint_seconds": 1e-9}  # a checkpoint at every step
    whole, result = train(tmp_path / "whole", steps=23, **options)
    for killed_after in (4, 5, 6):
        with pytest.raises(KeyboardInterrupt):
            dying = Dying(TILES[:29], killed_after)
            train(tmp_path / "killed", steps=23, fit=dying, **options)
    resumed, again = train(tmp_path / "killed", steps=23, **options)
    assert torch.equal(whole, resumed)
    assert (again.steps, again.best_step, again.best_loss, again.ended_by) == (
        23,
        result.best_step,
        result.best_loss,
        "max-steps",
    )
    assert without_time(tmp_path / "killed") == without_time(tmp_path / "whole")


def test_killed_between_checkpoints_repeats_steps_and_metrics(tmp_path):
    whole, _ = train(tmp_path / "whole", steps=23)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", steps=23, fit=Dying(TILES[:29], 9))
    assert read_metrics(tmp_path / "killed" / "metrics.csv")[-1].step > 5  # after the checkpoint
    resumed, _ = train(tmp_path / "killed", steps=23)
    assert torch.equal(whole, resumed)
    assert without_time(tmp_path / "killed") == without_time(tmp_path / "whole")


def test_larger_bound_continues_a_finished_training(tmp_path):
    whole, _ = train(tmp_path / "whole", steps=22)
    train(tmp_path / "parts", steps=8)
    parts, result = train(tmp_path / "parts", steps=22)
    assert torch.equal(whole, parts)
    assert result.steps == 22


def test_training_again_what_is_finished_changes_nothing(tmp_path):
    first, result = train(tmp_path, steps=10)
    second, again = train(tmp_path, steps=10)
    assert torch.equal(first, second)
    assert (again.steps, again.ended_by, again.best_loss) == (10, "max-steps", result.best_loss)


def test_seed_decides(tmp_path):
    first, same, other = (
        train(tmp_path / str(i), steps=6, seed=seed)[0] for i, seed in enumerate((1, 1, 2))
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_it_learns_and_keeps_the_best(tmp_path):
    _, result = train(tmp_path, steps=100)
    rows = read_metrics(tmp_path / "metrics.csv")
    losses = {row.step: row.stop_loss for row in rows if row.stop_loss is not None}
    assert result.best_loss == min(losses.values()) == losses[result.best_step]
    assert result.best_loss < 0.85 * losses[5]


def test_module_holds_the_weights_of_the_best_step(tmp_path):
    module = Offset()
    seen = []
    own = loss_of(module)

    def worsening(tiles):
        if not torch.is_grad_enabled():  # the held-out loss: 3, 1, 2, 2.5, …
            seen.append(module.colour.detach().clone())
            value = [3.0, 1.0, 2.0][len(seen) - 1] if len(seen) < 4 else 2.5
            return torch.full((len(tiles),), value)
        return own(tiles)

    context = FitContext(seed=0, device=CPU, folder=tmp_path, quiet=True)
    options = LoopOptions(batch=8, val_interval=2, patience=3, val_tiles=None)
    tiles = HealthyTiles(ArrayTiles(TILES[:29]), ArrayTiles(TILES[29:]))
    result = Training(
        module, worsening, tiles=tiles, size=8, options=options, context=context, identity={}
    ).run()
    assert (result.ended_by, result.best_step, result.best_loss) == ("early-stopping", 4, 1.0)
    assert result.steps == 4 + 2 * 4  # the fourth look without improvement is one too many
    assert torch.equal(module.colour.detach(), seen[1])


def test_max_minutes(tmp_path):
    _, result = train(tmp_path, minutes=1e-9)
    assert (result.ended_by, result.steps) == ("max-minutes", 0)
    assert math.isfinite(result.best_loss)
    _, result = train(tmp_path, minutes=0.01)
    assert result.ended_by == "max-minutes"
    assert 0 < result.steps < 100_000
    assert result.seconds >= 0.6


def test_time_that_ended_while_a_checkpoint_was_written_is_not_used_again(tmp_path, monkeypatch):
    """A second part continues only after as many steps of the first."""
    now = [0.0]
    write = Checkpoint.write

    def slow(self, path):
        write(self, path)
        now[0] += 100

    monkeypatch.setattr(Checkpoint, "write", slow)
    monkeypatch.setattr("wsiad.learning.loop.time.monotonic", lambda: now[0])
    _, result = train(tmp_path, minutes=1, steps=20)
    assert (result.ended_by, result.steps) == ("max-minutes", 5)  # at the first validation
    assert train(tmp_path, minutes=1, steps=20)[1].steps == 5
    assert train(tmp_path, minutes=9, steps=12)[1].steps == 12


def test_option_max_steps_bounds_too(tmp_path):
    assert train(tmp_path, steps=50, max_steps=4)[1].steps == 4


@pytest.mark.parametrize("value", [math.nan, math.inf, 2e6])
def test_diverging_training_is_an_error(tmp_path, value):
    steps = iter(range(100))

    def loss(tiles):
        # Training steps 1–5, one look, then this; one and two windows measure the memory.
        bad = len(tiles) > 2 and next(steps) == 6
        return torch.full((len(tiles),), value if bad else 1.0, requires_grad=True)

    with pytest.raises(DetectorError, match=r"diverged.*at step 6"):
        train(tmp_path, loss=loss)
    assert (tmp_path / CHECKPOINT).is_file()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 4}, "seed"),
        ({"learning_rate": 0.02}, "learning_rate"),
        ({"identity": {"weights": "other"}}, "weights"),
        ({"fit": ArrayTiles(TILES[:28])}, "number of tiles"),
    ],
)
def test_checkpoint_of_another_training_is_refused(tmp_path, change, named):
    train(tmp_path, steps=5)
    with pytest.raises(RunError, match=f"another {named}"):
        train(tmp_path, steps=10, **change)


class Marked(ArrayTiles):
    """Tiles that say which they are."""

    def __init__(self, tiles, fingerprint):
        super().__init__(tiles)
        self.fingerprint = fingerprint


def test_checkpoint_of_as_many_tiles_of_other_slides_is_refused(tmp_path, monkeypatch):
    """A slide that was replaced by one with as many tiles must not be trained on half-way."""
    train(tmp_path / "a", steps=5, fit=Marked(TILES[:29], "one"))
    assert train(tmp_path / "a", steps=10, fit=Marked(TILES[:29], "one"))[1].steps == 10
    with pytest.raises(RunError, match="another choice of slides"):
        train(tmp_path / "a", steps=15, fit=Marked(TILES[:29], "other"))
    # One of an earlier version, which did not state them, goes on.
    write = Checkpoint.write

    def as_before(self, path):
        stated = {key: value for key, value in self.identity.items() if key != SLIDES}
        write(Checkpoint(self.tensors, self.values, stated), path)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "write", as_before)
        train(tmp_path / "b", steps=5, fit=Marked(TILES[:29], "one"))
    assert train(tmp_path / "b", steps=10, fit=Marked(TILES[:29], "one"))[1].steps == 10


@pytest.mark.parametrize("content", [b"", b"nonsense", None])
def test_damaged_checkpoint_is_refused(tmp_path, content):
    train(tmp_path, steps=5)
    path = tmp_path / CHECKPOINT
    path.write_bytes(path.read_bytes()[:-7] if content is None else content)
    with pytest.raises(RunError, match="not a readable checkpoint"):
        train(tmp_path, steps=10)


def test_fewer_tiles_than_a_batch(tmp_path):
    _, result = train(tmp_path, steps=4, fit=ArrayTiles(TILES[:3]))
    assert result.steps == 4


def test_tiles_smaller_than_the_window(tmp_path):
    with pytest.raises(DetectorError, match="6 px are smaller"):
        train(tmp_path, fit=ArrayTiles(TILES[:, :6, :6]))


# --- early stopping


def stopped_at(losses, **options):
    stopping = EarlyStopping(interval=1000, **options)
    for number, loss in enumerate(losses, start=1):
        stopping.update(1000 * number, loss)
        if stopping.is_over:
            return number, stopping
    return None, stopping


def test_patience_is_exceeded_by_the_fourth_look():
    number, stopping = stopped_at([1.0, 0.5, 0.6, 0.6, 0.6, 0.6, 0.1])
    assert number == 6
    assert (stopping.best_step, stopping.best_loss) == (2000, 0.5)


def test_small_improvements_do_not_count_but_are_kept():
    number, stopping = stopped_at([0.5, 0.4995, 0.4994, 0.4993, 0.4992])
    assert number == 5
    assert (stopping.best_step, stopping.best_loss) == (5000, 0.4992)
    assert stopped_at([0.5, 0.4995, 0.4994, 0.4993, 0.4992], min_delta=0.0)[0] is None


def test_slow_but_steady_fall_counts_once_it_adds_up():
    assert stopped_at([0.5 - 0.0004 * i for i in range(40)])[0] is None


def test_where_the_last_is_kept_nothing_is_stopped():
    number, stopping = stopped_at([0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1], keeps_last=True)
    assert number is None
    assert (stopping.best_step, stopping.best_loss) == (7000, 1.1)


# --- crops


def test_random_crops_are_flipped_windows_of_their_tile():
    tiles = torch.from_numpy(RNG.integers(0, 256, (50, 9, 9, 3), dtype=np.uint8))
    found = random_crops(tiles, 6, seed=1, step=2).numpy()
    places = []
    for tile, crop in zip(tiles.numpy(), found, strict=True):
        matches = [
            (y, x, flip_y, flip_x)
            for y in range(4)
            for x in range(4)
            for flip_y in (1, -1)
            for flip_x in (1, -1)
            if np.array_equal(tile[y : y + 6, x : x + 6][::flip_y, ::flip_x], crop)
        ]
        assert len(matches) == 1
        places.append(matches[0])
    for column in zip(*places, strict=True):
        assert len(set(column)) == (4 if max(column) == 3 else 2)  # every choice occurs


def test_windows_need_not_be_flipped():
    tiles = torch.from_numpy(TILES)
    plain = random_crops(tiles, 6, seed=1, step=2, flips=False)
    flipped = random_crops(tiles, 6, seed=1, step=2)
    for tile, window, same in zip(tiles, plain, flipped, strict=True):
        grid = tile.unfold(0, 6, 1).unfold(1, 6, 1).permute(0, 1, 3, 4, 2).flatten(0, 1)
        assert (grid == window).flatten(1).all(dim=1).any()
        orientations = [window, window.flip(0), window.flip(1), window.flip(0, 1)]
        assert any(torch.equal(same, one) for one in orientations)
    assert not torch.equal(plain, flipped)


class Normed(nn.Module):
    """A colour, and a running mean that is no parameter."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, tiles):
        x = self.norm(tiles.permute(0, 3, 1, 2).float() / 255)
        return (x - 0.5).square().mean(dim=(1, 2, 3))


def normed(folder, steps, *, seed=1, recipe=None, **options):
    folder.mkdir(exist_ok=True)
    module = Normed()
    training = Training(
        module,
        module.forward,
        tiles=HealthyTiles(ArrayTiles(TILES), ArrayTiles(TILES[:8])),
        size=8,
        options=LoopOptions(**{"batch": 9, "val_interval": 4, "min_delta": 0, **options}),
        context=FitContext(seed=seed, device=CPU, folder=folder, budget=Budget(steps), quiet=True),
        identity={},
        recipe=recipe,
    )
    return module, training.run()


def test_buffers_are_trained_validated_and_kept_with_the_parameters(tmp_path):
    """Held-out tiles are normalised by the running mean, which they do not change."""
    module, result = normed(tmp_path / "whole", 9)
    assert not module.training
    assert int(module.norm.num_batches_tracked) == result.best_step
    loss = module(torch.from_numpy(TILES[:8, 2:10, 2:10])).mean()
    assert loss.item() == pytest.approx(result.best_loss, rel=1e-6)
    normed(tmp_path / "parts", 4)
    resumed, _ = normed(tmp_path / "parts", 9)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


@pytest.mark.parametrize(
    ("recipe", "theirs"),
    [
        (Recipe(sgd(momentum=0.9, weight_decay=0.1)), torch.optim.SGD),
        (Recipe(adam(betas=(0.5, 0.99), weight_decay=0.1)), torch.optim.Adam),
    ],
)
def test_recipe_names_the_optimiser(tmp_path, recipe, theirs):
    """One step is that of torch's optimiser."""
    module, _ = normed(tmp_path, 1, recipe=recipe, learning_rate=0.01)
    own = Normed()
    own.norm.weight.data.fill_(1)
    extra = {"momentum": 0.9} if theirs is torch.optim.SGD else {"betas": (0.5, 0.99)}
    optimiser = theirs(own.parameters(), lr=0.01, weight_decay=0.1, **extra)
    tiles = next(ArrayTiles(TILES).shuffled(9, seed=1, epoch=0))
    own(random_crops(torch.from_numpy(tiles), 8, seed=1, step=0)).mean().backward()
    optimiser.step()
    for name, tensor in own.state_dict().items():
        torch.testing.assert_close(module.state_dict()[name], tensor, msg=name)


def test_update_of_a_recipe_and_factor_of_its_groups(tmp_path):
    rates, modes = [], []

    def optimiser(module):
        norm = module.norm
        return torch.optim.SGD([{"params": [norm.weight]}, {"params": [norm.bias], "factor": 3}])

    def update(windows, optimiser, step):
        rates.append([group["lr"] for group in optimiser.param_groups])
        modes.append((step, tuple(windows.shape)))
        return torch.tensor(float(step))

    normed(tmp_path, 2, recipe=Recipe(optimiser, update=update), learning_rate=0.1)
    # Before the first step it was tried on one window and on two, by an optimiser of its own.
    assert modes == [(0, (n, 8, 8, 3)) for n in (1, 2, 9)] + [(1, (9, 8, 8, 3))]
    np.testing.assert_allclose(rates[2:], [[0.1, 0.3]] * 2)


def test_random_crops_follow_seed_and_step():
    tiles = torch.from_numpy(TILES)
    first = random_crops(tiles, 8, seed=1, step=2)
    assert torch.equal(first, random_crops(tiles, 8, seed=1, step=2))
    assert not torch.equal(first, random_crops(tiles, 8, seed=1, step=3))
    assert not torch.equal(first, random_crops(tiles, 8, seed=2, step=2))


def test_centre_crops_and_windows():
    tiles = np.arange(2 * 7 * 7 * 3, dtype=np.uint8).reshape(2, 7, 7, 3)
    np.testing.assert_array_equal(centre_crops(torch.from_numpy(tiles), 3), tiles[:, 2:5, 2:5])
    cut = windows(tiles, 3)
    assert cut.shape == (8, 3, 3, 3)
    np.testing.assert_array_equal(cut[1], tiles[0, 0:3, 3:6])
    np.testing.assert_array_equal(cut[6], tiles[1, 3:6, 0:3])
    np.testing.assert_array_equal(windows(tiles, 7), tiles)


# --- sources


def test_array_tiles():
    source = ArrayTiles(TILES)
    assert (len(source), source.tile) == (37, 12)
    assert [len(b) for b in source.ordered(10)] == [10, 10, 10, 7]
    np.testing.assert_array_equal(np.concatenate(list(source.ordered(10))), TILES)
    batches = list(source.shuffled(10, seed=1, epoch=2))
    assert [len(b) for b in batches] == [10, 10, 10]
    assert len(np.unique(np.concatenate(batches), axis=0)) == 30
    again = list(source.shuffled(10, seed=1, epoch=2))
    np.testing.assert_array_equal(batches, again)
    assert not np.array_equal(batches, list(source.shuffled(10, seed=1, epoch=3)))


@pytest.mark.parametrize(
    "bad",
    [np.zeros((2, 4, 4, 3)), np.zeros((2, 4, 5, 3), np.uint8), np.zeros((0, 4, 4, 3), np.uint8)],
)
def test_arrays_that_are_not_tiles(bad):
    with pytest.raises(InputError):
        ArrayTiles(bad)


def test_endless_batches_go_on_from_any_position():
    source = ArrayTiles(TILES)
    batches = endless(source, 10, seed=1)
    first = [next(batches) for _ in range(8)]
    batches.close()
    assert [(b.epoch, b.position) for b in first[:5]] == [(0, 1), (0, 2), (0, 3), (1, 1), (1, 2)]
    for number, batch in enumerate(first[:-1]):
        later = endless(source, 10, seed=1, epoch=batch.epoch, position=batch.position)
        np.testing.assert_array_equal(next(later).tiles, first[number + 1].tiles)
        later.close()


def test_batches_of_tensors_are_the_same(monkeypatch):
    """As for a GPU, but for the pinning itself."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor.clone())
    source = ArrayTiles(TILES)
    plain, pinned = endless(source, 10, seed=1), endless(source, 10, seed=1, pinned=True)
    for _ in range(5):
        one, other = next(plain), next(pinned)
        assert isinstance(other.tiles, torch.Tensor)
        np.testing.assert_array_equal(one.tiles, other.tiles)
        assert (one.epoch, one.position) == (other.epoch, other.position)
        assert on_device(other.tiles, CPU) is other.tiles  # nothing more to copy
    plain.close()
    pinned.close()


def test_sample():
    source = ArrayTiles(TILES)
    count, batches = sample(source, 100, batch=10, seed=0)
    assert count == 37
    np.testing.assert_array_equal(np.concatenate(list(batches)), TILES)
    count, batches = sample(source, 25, batch=10, seed=0)
    assert count == 20 == len(np.unique(np.concatenate(list(batches)), axis=0))
    count, batches = sample(source, 4, batch=10, seed=0)
    assert count == 4 == len(np.concatenate(list(batches)))


# --- metrics


def test_metrics_are_cut_to_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.csv"
    log = MetricsLog(path)
    rows = [MetricsRow(s, s / 2, 1e-3, 1 / s, None if s % 2 else 2 / s) for s in (1, 2, 3, 4)]
    for row in rows:
        log.append(row)
    assert read_metrics(path) == rows
    with path.open("a") as file:
        file.write("5,2.5,0.0")  # killed while writing
    assert read_metrics(path) == rows
    MetricsLog(path, keep_steps=2)
    assert read_metrics(path) == rows[:2]


@pytest.mark.parametrize(
    "lines",
    [
        "1,0.5,0.001\n2,1.0,0.001,1.0,\n",
        "1,0.5,0.001,nan,\n2,1.0,0.001,1.0,\n",
        "\xff\n",
        "\n" * 5_000_000,
    ],
    ids=["short", "nan", "bytes", "lines"],
)
def test_metrics_that_are_damaged_are_refused(tmp_path, lines):
    path = tmp_path / "metrics.csv"
    text = f"step,seconds,learning_rate,train_loss,stop_loss\n{lines}"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(RunError, match=r"metrics\.csv: is not the table of a training.*Delete it"):
        read_metrics(path)


def test_loss_picture(tmp_path):
    rows = [MetricsRow(1, 0, 1e-3, 1.0, None), MetricsRow(2, 0, 1e-3, 0.5, 0.7)]
    plot_loss(rows, tmp_path / "loss.png", best_step=2)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in tmp_path.iterdir()] == ["loss.png"]


# --- split


def names(part):
    return {s.slide for s in part}


def test_split_by_slide_is_disjoint_and_complete():
    slides = [(f"s{i}", 10 + i) for i in range(20)]
    split = split_slides(slides, seed=5)
    parts = [split.fit, split.stop, split.calibration]
    assert [len(p) for p in parts] == [14, 2, 4]
    assert names(split.fit) | names(split.stop) | names(split.calibration) == dict(slides).keys()
    assert sum(len(s.indices) for p in parts for s in p) == sum(n for _, n in slides)
    assert split.by_slide
    assert "14 to fit" in split.note


def test_split_follows_seed_and_not_the_order():
    slides = [(f"s{i}", 10 + i) for i in range(20)]
    first = split_slides(slides, seed=5)
    assert [names(p) for p in (first.fit, first.stop)] == [
        names(p) for p in (split_slides(slides[::-1], seed=5).fit, first.stop)
    ]
    assert any(names(split_slides(slides, seed=s).stop) != names(first.stop) for s in range(5))


@pytest.mark.parametrize("seed", range(5))
def test_few_unequal_slides_leave_the_fit_most_tiles(seed):
    split = split_slides([("a", 5000), ("b", 40), ("c", 60), ("empty", 0)], seed=seed)
    assert names(split.fit) == {"a"}
    assert len(split.stop) == len(split.calibration) == 1


@pytest.mark.parametrize("slides", [[("a", 50)], [("a", 30), ("b", 20)]])
def test_too_few_slides_are_split_by_tile_and_it_is_said(slides):
    split = split_slides(slides, seed=1)
    assert not split.by_slide
    assert "fewer than 3 healthy slides" in split.note
    parts = (split.fit, split.stop, split.calibration)
    assert [sum(len(s.indices) for s in p) for p in parts] == [35, 5, 10]
    for name, count in slides:
        found = np.concatenate([s.indices for p in parts for s in p if s.slide == name])
        np.testing.assert_array_equal(np.sort(found), np.arange(count))


def test_smallest_split():
    split = split_slides([("a", 3)], seed=1)
    assert [len(p[0].indices) for p in (split.fit, split.stop, split.calibration)] == [1, 1, 1]
    with pytest.raises(InputError, match="fewer than three healthy tiles"):
        split_slides([("a", 2)], seed=1)
    with pytest.raises(InputError, match="same name"):
        split_slides([("a", 2), ("a", 5)], seed=1)
