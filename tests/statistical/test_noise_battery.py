"""A small part of the battery: flatwise's generator passes, bad ones fail, and the tests mean what they say."""

import csv
from collections import defaultdict
from dataclasses import replace

import noise_battery
import numpy as np
import pytest
import randomness
from noise_battery import BAD, EVERYTHING, FLATWISE, Generator, examine, judge, known_good

WORDS = 1 << 16

# Where each bad generator is caught, of the layouts that `python benchmarks/noise_battery.py` reads all of.
CAUGHT = {
    "keyed without Philox": ["units", "2 seeds in turn"],
    "one round": ["elements"],
    "LCG": ["elements"],
    "Weyl sequence": ["elements"],
    "same mask every tick": ["tick, tick + 1"],
    "seed + tick": ["seed + 1, a tick earlier"],
    "segment ignored": ["segments"],
    "Normal, wrong digit": ["elements"],
    "Bernoulli, 1 % off": ["elements"],
}


def test_the_words_tested_are_flatwises():
    noise_battery.check_against_the_reference(200)


def test_flatwise_passes_everything():
    verdict = judge(list(examine(FLATWISE, EVERYTHING, WORDS)))
    assert verdict.passes, verdict
    assert verdict.count > 1000


@pytest.mark.parametrize("bad", BAD, ids=lambda generator: generator.name)
def test_bad_generators_fail(bad):
    words = 1 << 18 if bad.name.startswith("Normal") else WORDS  # an error of 0.4 % in one of eight coefficients
    for layout in CAUGHT[bad.name]:
        verdict = judge(list(examine(bad, [layout], words)))
        assert not verdict.passes, (layout, verdict)
        assert judge(list(examine(FLATWISE, [layout], words))).passes


def test_every_test_is_uniform_on_a_good_generator():
    """400 sequences, of which each test's p values must be spread evenly, tails included."""
    by_test = defaultdict(list)
    for seed in range(20):
        good = Generator(f"PCG64({seed})", known_good(np.random.PCG64(seed)), good=True, keyed=False)
        for finding in examine(good, ["elements", "ticks", "tick, tick + 1"], 1 << 14):
            by_test[finding.test].append(finding.p)
    assert set(by_test) == {*randomness.WORD_TESTS, "masks", "normals", "pair"}
    for test, p_values in by_test.items():
        assert len(p_values) >= 40
        assert randomness.uniformity(p_values) > 1e-3, test
        surprise = 2 * np.minimum(p_values, 1 - np.array(p_values))
        assert surprise.min() > 1e-3 / len(surprise), test


def test_too_good_is_as_bad():
    """The halves of the word are the element: every byte exactly as often as every other: Pearson's statistic is 0."""

    def even(element, **_):
        return element.astype(np.uint32) * np.uint32(0x00010001)

    found = list(examine(Generator("even", even), ["elements"], WORDS))
    assert {f.p for f in found if f.test == "equidistribution" and f.detail.startswith("byte")} == {1.0}
    assert not judge([f for f in found if f.test == "equidistribution"]).passes


def test_a_repeated_word_under_one_key_is_a_failure():
    def repeating(element, **coordinates):
        return noise_battery.ours(element=np.where(element == 5, 4, element).astype(np.uint64), **coordinates)

    found = [f for f in examine(Generator("repeating", repeating), ["elements"], WORDS) if f.test == "repeats"]
    assert [f.p for f in found] == [0.0]
    assert not [f for f in examine(FLATWISE, ["elements"], WORDS) if f.test == "repeats"]


def test_the_program_prints_a_table_writes_the_p_values_and_ends_with_0(tmp_path, capsys):
    file = tmp_path / "p.csv"
    small = ["--words", str(1 << 14), "--layouts", "elements", "tick, tick + 1", "--csv", str(file)]
    assert noise_battery.main([*small, "--generators", "flatwise", "numpy PCG64", "Weyl sequence"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("as expected") == 3
    assert "FAILS" in printed
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert {row["generator"] for row in rows} == {"flatwise", "numpy PCG64", "Weyl sequence"}
    assert all(0 <= float(row["p"]) <= 1 for row in rows)


@pytest.mark.parametrize("wrong", [replace(FLATWISE, good=False), replace(BAD[3], good=True)], ids=["passes", "fails"])
def test_the_program_ends_with_1_where_a_bad_one_passes_or_ours_fails(wrong, monkeypatch, capsys):
    monkeypatch.setattr(noise_battery, "GENERATORS", [wrong])
    assert noise_battery.main(["--words", str(1 << 14), "--layouts", "elements"]) == 1
    assert "NOT AS EXPECTED" in capsys.readouterr().out


def test_a_size_that_is_no_power_of_two_is_refused(capsys):
    with pytest.raises(SystemExit):
        noise_battery.main(["--words", "100000"])
    assert "power of two" in capsys.readouterr().err


def test_ranks():
    probabilities = randomness.rank_probabilities()
    assert probabilities.sum() == pytest.approx(1.0, abs=1e-12)
    assert probabilities[[32, 31, 30]] == pytest.approx([0.288788, 0.577576, 0.128350], abs=1e-6)
    diagonal = np.uint32(1) << np.arange(32, dtype=np.uint32)
    matrices = np.stack([diagonal, np.where(np.arange(32) < 5, diagonal, 0), diagonal & 0, diagonal | diagonal[0]])
    matrices = np.concatenate([matrices, matrices[:, ::-1] ^ np.roll(matrices, 1, axis=1)]).astype(np.uint32)
    expected = [rank_over_gf2(matrix) for matrix in matrices.tolist()]
    assert randomness.binary_rank(matrices).tolist() == expected
    assert expected[:3] == [32, 5, 0]


def rank_over_gf2(rows):
    rows, rank = list(rows), 0
    for bit in range(32):
        pivot = next((row for row in rows if row >> bit & 1), None)
        if pivot is not None:
            rank += 1
            rows.remove(pivot)
            rows = [row ^ pivot if row >> bit & 1 else row for row in rows]
    return rank


def test_bits_are_counted_from_the_highest_halfs_lowest():
    words = np.array([1 << 16, 1 << 16, 1, 1 << 31], dtype=np.uint32)
    z = randomness.bit_z(randomness.halves(words), 4)
    ones = z * np.sqrt(4 / 4) + 2
    assert ones[0] == 2  # bit 16
    assert ones[15] == 1  # bit 31
    assert ones[16] == 1  # bit 0
    assert ones.sum() == 4


def test_p_values_of_known_laws():
    assert randomness.chi_square([10, 20, 30], [1 / 3] * 3) == pytest.approx(np.exp(-5.0))  # two degrees of freedom
    assert randomness.normal_p(0.0) == 0.5
    assert randomness.normal_p(3.0) == pytest.approx(0.0013499, rel=1e-4)
    rng = np.random.default_rng(0)
    counts = rng.poisson(0.7, 1000)
    assert randomness.uniformity([randomness.poisson_p(k, 0.7, rng) for k in counts]) > 0.01
    counts = rng.binomial(50, 0.05, 1000)
    assert randomness.uniformity([randomness.binomial_p(k, 50, 0.05, rng) for k in counts]) > 0.01
