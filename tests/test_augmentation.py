"""Rotation, masks and mixup: what they keep, how long and where the masks are, and that the draws are the stream's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Generator, Tensor

from ser_fl.config.data import AugmentationConfig
from ser_fl.data.augmentation import augment, equalise, mask_band, mix, partners, roll_in_time, splice, warp_mel
from ser_fl.randomness import generator

NOTHING = AugmentationConfig(
    roll=False, time_masks=0, max_time_mask=20, mel_masks=0, max_mel_mask=8, label_smoothing=0.0
)
EVERYTHING = replace(NOTHING, roll=True, time_masks=2, mel_masks=2, max_mel_warp=0.1, max_equalisation=0.5, splice=0.5)


def features(batch: int = 64, num_mels: int = 12, num_frames: int = 30) -> Tensor:
    """Positive everywhere, so that a zero is a masked cell."""
    return torch.rand(batch, num_mels, num_frames, generator=generator("features")) + 1


def labels(batch: int = 64) -> Tensor:
    """Of five classes, one of which has a single utterance."""
    labels_B = torch.randint(4, (batch,), generator=generator("labels"))
    labels_B[3] = 4
    return labels_B


def test_nothing_asked_for_is_nothing_done() -> None:
    stream = generator(0)
    before = stream.get_state()
    assert torch.equal(augment(features(), labels(), NOTHING, stream), features())
    assert torch.equal(stream.get_state(), before)


def test_the_given_features_stay_as_they_were() -> None:
    given = features()
    augment(given, labels(), EVERYTHING, generator(0))
    assert torch.equal(given, features())


def test_draws_come_from_the_stream_alone() -> None:
    torch.manual_seed(1)
    first = augment(features(), labels(), EVERYTHING, generator(7))
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert torch.equal(augment(features(), labels(), EVERYTHING, generator(7)), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(augment(features(), labels(), EVERYTHING, generator(8)), first)


def test_rotation_moves_whole_frames_in_a_circle_each_utterance_by_its_own() -> None:
    """Frame l holds the number l, so that the first frame tells the shift."""
    frames_BFL = torch.arange(30.0).expand(3000, 2, 30)
    rolled = roll_in_time(frames_BFL, generator(0))
    shifts_B = (-rolled[:, 0, 0].long()) % 30
    for row, shift in zip(rolled[:100], shifts_B[:100].tolist(), strict=True):
        assert torch.equal(row, torch.arange(30.0).roll(shift).expand(2, 30))
    counts = shifts_B.bincount(minlength=30)
    # 100 of each expected; chi-square with 29 degrees of freedom stays below 58.3 in 99.9 % of draws.
    assert ((counts - 100) ** 2 / 100).sum() < 58.3


@pytest.mark.parametrize(("axis", "longest"), [(1, 4), (2, 7)])
def test_mask_is_one_band_across_the_other_axis(axis: int, longest: int) -> None:
    given = features(4000)
    masked = mask_band(given, axis, longest, generator(0)) == 0
    across = masked.transpose(1, 2) if axis == 1 else masked
    assert torch.equal(across.all(dim=1), across.any(dim=1)), "a band covers the whole of the other axis"
    band_BL = across[:, 0]
    starts = (band_BL[:, 1:] & ~band_BL[:, :-1]).sum(1) + band_BL[:, 0]
    assert starts.max() <= 1, "a band has no holes"
    lengths = band_BL.sum(1)
    counts = lengths.bincount(minlength=longest + 1).double()
    assert len(counts) == longest + 1, "no band is longer than asked for"
    expected = 4000 / (longest + 1)
    # 99.9 % quantiles of chi-square with 4 and 7 degrees of freedom.
    assert ((counts - expected) ** 2 / expected).sum() < {4: 18.5, 7: 24.3}[longest]
    assert band_BL[:, 0].any(), "a band may begin at the first"
    assert band_BL[:, -1].any(), "and end at the last"


def test_starts_of_a_mask_are_uniform_over_where_it_fits() -> None:
    masked = mask_band(torch.ones(6000, 1, 8), 2, 3, generator(1))[:, 0] == 0
    of_length = masked[masked.sum(1) == 3].double()
    counts = of_length.argmax(1).bincount(minlength=6).double()
    assert len(counts) == 6
    expected = len(of_length) / 6
    # 99.9 % quantile of chi-square with 5 degrees of freedom.
    assert ((counts - expected) ** 2 / expected).sum() < 20.5


def test_unmasked_cells_are_untouched() -> None:
    given = features()
    masked = augment(given, labels(), replace(NOTHING, time_masks=2, mel_masks=1), generator(0))
    kept = masked != 0
    assert torch.equal(masked[kept], given[kept])
    assert 0 < kept.double().mean() < 1


def test_mask_longer_than_the_axis_masks_at_most_all_of_it() -> None:
    masked = mask_band(features(500, 5, 6), 2, 100, generator(0))
    lengths = (masked[:, 0] == 0).sum(1)
    assert sorted(set(lengths.tolist())) == [0, 1, 2, 3, 4, 5, 6]


def test_more_masks_hide_more() -> None:
    hidden = [
        (augment(features(400), labels(400), replace(NOTHING, time_masks=count), generator(0)) == 0)
        .double()
        .mean()
        .item()
        for count in (0, 1, 2)
    ]
    assert hidden[0] == 0 < hidden[1] < hidden[2]


def test_a_warp_reads_a_ramp_at_the_stretched_place() -> None:
    """Bin f holds the number f, and linear interpolation of a line is exact: bin 1 tells the factor, the top clips."""
    ramp_BFL = torch.arange(12.0)[None, :, None].expand(500, 12, 3)
    warped = warp_mel(ramp_BFL, 0.2, generator(0))
    factor_B = warped[:, 1, 0]
    assert 0.8 <= float(factor_B.min()) < 0.82 and 1.18 < float(factor_B.max()) <= 1.2
    expected_BF = (torch.arange(12.0) * factor_B[:, None]).clamp(max=11)
    torch.testing.assert_close(warped, expected_BF[..., None].expand_as(warped))


def test_an_equaliser_adds_one_smooth_bounded_curve_to_all_frames() -> None:
    given = features(batch=400, num_mels=12)
    added_BFL = equalise(given, 0.6, generator(0)) - given
    torch.testing.assert_close(added_BFL, added_BFL[..., :1].expand_as(added_BFL), rtol=0, atol=1e-6)
    assert 0.4 < float(added_BFL.abs().max()) <= 0.6
    # Of order 2 at most: no more than two changes of direction along the mel axis.
    turns = (added_BFL[:, :, 0].diff().sign().diff() != 0).sum(1)
    assert int(turns.max()) <= 2
    assert abs(float(added_BFL.mean())) < 0.03


@pytest.mark.parametrize("change", [warp_mel, equalise])
def test_no_change_of_speaker_or_room_at_nothing(change: Callable[[Tensor, float, Generator], Tensor]) -> None:
    torch.testing.assert_close(change(features(), 0.0, generator(1)), features())


def test_partners_are_others_of_the_same_label_each_taken_once() -> None:
    labels_B, seen = labels(), set()
    for seed in range(200):
        partners_B = partners(labels_B, generator(seed))
        assert torch.equal(labels_B[partners_B], labels_B)
        assert sorted(partners_B.tolist()) == list(range(64))
        assert [row for row, partner in enumerate(partners_B.tolist()) if row == partner] == [3]  # alone with its label
        seen.add(partners_B[0].item())
    assert seen == set((labels_B == labels_B[0]).nonzero().flatten().tolist()) - {0}


def test_a_splice_begins_as_one_utterance_and_ends_as_another_of_its_label() -> None:
    """Every cell of an utterance holds its row's number."""
    labels_B = labels(3000)
    rows_BFL = torch.arange(3000.0)[:, None, None].expand(3000, 2, 30)
    spliced_BL = splice(rows_BFL, labels_B, 0.6, generator(0))[:, 0].long()
    assert torch.equal(splice(rows_BFL, labels_B, 0.6, generator(0))[:, 1].long(), spliced_BL)
    assert torch.equal(labels_B[spliced_BL], labels_B[:, None].expand(3000, 30))
    own_BL = spliced_BL == torch.arange(3000)[:, None]
    assert torch.equal(own_BL.cumprod(1).bool(), own_BL)  # own frames first, then the other's
    assert all(len(set(row.tolist())) <= 2 for row in spliced_BL)
    cuts = own_BL.sum(1)[own_BL.sum(1) < 30]
    # 1,800 expected, 27 a standard deviation; 60 a cut, chi-square with 29 degrees of freedom.
    assert abs(len(cuts) - 1800) < 110
    assert ((cuts.bincount(minlength=30) - len(cuts) / 30) ** 2 / (len(cuts) / 30)).sum() < 58.3


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_share_of_splices(share: float) -> None:
    config = replace(NOTHING, splice=share)
    last_BF = augment(features(), labels(), config, generator(0))[:, :, -1]
    kept_B = (last_BF == features()[:, :, -1]).all(1)
    assert kept_B.sum() == (64 if share == 0 else 1)  # who is alone with its label has nobody to go on as


def test_a_mixed_utterance_is_the_weighted_mean_of_two_and_so_is_its_label() -> None:
    """Utterance i is 1 in bin i alone: the mixed one tells its partner, and the shares of both."""
    labels_B = torch.arange(300) % 3
    mixed, targets = mix(torch.eye(300)[..., None], labels_B, 3, 0.4, generator(0))
    own = mixed[:, :, 0].diagonal()
    torch.testing.assert_close(mixed.sum((1, 2)), torch.ones(300))
    for row, (utterance, target) in enumerate(zip(mixed[:, :, 0], targets, strict=True)):
        expected = torch.zeros(3)
        for place in utterance.nonzero().flatten():
            expected[labels_B[place]] += utterance[place]
        torch.testing.assert_close(target, expected)
        assert len(utterance.nonzero()) <= 2 and utterance[row] >= 0.5, "its own label is the likelier one"
    assert (own < 0.999).sum() > 200
    again = mix(torch.eye(300)[..., None], labels_B, 3, 0.4, generator(0))
    assert torch.equal(again[0], mixed) and torch.equal(again[1], targets)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0])
def test_shares_are_those_of_the_beta_distribution(alpha: float) -> None:
    """Each utterance's own share is s or 1 - s: the mean of s (1 - s) is alpha / (2 (2 alpha + 1))."""
    labels_B = torch.zeros(4000, dtype=torch.int64)
    mixed, _ = mix(torch.eye(4000)[..., None], labels_B, 1, alpha, generator(1))
    own = mixed[:, :, 0].diagonal()
    assert float((own * (1 - own)).mean()) == pytest.approx(alpha / (2 * (2 * alpha + 1)), abs=0.01)
