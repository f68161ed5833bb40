"""Keyed randomness: a function of its address, uniform or normal, and secret."""

from __future__ import annotations

import dataclasses
import hmac
import itertools

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from helpers.support import key_of
from numpy.typing import NDArray
from scipy import stats

from dp_ray.keys import KEY_BYTES, VERSIONS, KeyedStream, RunKey, SamplingKeys, public_bytes

RUN_KEY = key_of(5)
KEY = RUN_KEY.derive("draw")
# The purposes that dp_ray uses, and some to come.
PURPOSES = [*SamplingKeys.PURPOSES, "noise", "digest", "init", "ledger", "drawn", "noise/0", ""]


def ids(*numbers: int) -> NDArray[np.uint64]:
    return np.array(numbers, dtype=np.uint64)


def words(
    key: bytes = KEY, incarnation: int = 0, step: int = 0, count: int = 3
) -> NDArray[np.uint64]:
    return KeyedStream(key, incarnation=incarnation, step=step).words(
        np.arange(50, dtype=np.uint64), count
    )


def test_words_are_reproducible_and_have_no_hidden_state() -> None:
    stream = KeyedStream(KEY, incarnation=0, step=4)
    first = stream.words(ids(1, 2, 3), 5)
    stream.normal(17)
    stream.uniform(ids(9), 4)
    assert first.dtype == np.uint64
    assert first.shape == (3, 5)
    assert np.array_equal(stream.words(ids(1, 2, 3), 5), first)
    again = KeyedStream(KEY, incarnation=0, step=4).words(ids(1, 2, 3), 5)
    assert np.array_equal(again, first)


def test_words_are_aes_blocks_whatever_the_machine() -> None:
    """AES-256 of (id, block), little-endian: another byte order would break every old run."""
    stream = KeyedStream(bytes(32), incarnation=2, step=3)
    step_key = hmac.digest(bytes(32), b"incarnation 2 step 3", "sha256")
    encryptor = Cipher(algorithms.AES256(step_key), modes.ECB()).encryptor()
    blocks = [(7).to_bytes(8, "little") + block.to_bytes(8, "little") for block in (0, 1)]
    plain = b"".join(encryptor.update(block) for block in blocks)
    expected = [int.from_bytes(plain[i : i + 8], "little") for i in range(0, 32, 8)]
    assert stream.words(ids(7), 4)[0].tolist() == expected


def test_bytes_are_those_of_blocks_that_no_word_comes_from() -> None:
    """Byte i is byte i % 16 of AES-256 of (i // 16, 2⁶⁴ - 1), whatever range is asked for."""
    stream = KeyedStream(bytes(32), incarnation=2, step=3)
    step_key = hmac.digest(bytes(32), b"incarnation 2 step 3", "sha256")
    encryptor = Cipher(algorithms.AES256(step_key), modes.ECB()).encryptor()
    plain = [group.to_bytes(8, "little") + b"\xff" * 8 for group in range(5)]
    expected = list(b"".join(encryptor.update(block) for block in plain))
    for start, stop in ((0, 80), (16, 32), (3, 5), (15, 17), (47, 80), (7, 7), (0, 0)):
        found = stream.bytes_of_range(start, stop)
        assert found.dtype == np.uint8
        assert found.tolist() == expected[start:stop]


def test_words_are_the_same_in_all_versions() -> None:
    for version in VERSIONS:
        stream = KeyedStream(KEY, incarnation=1, step=2, version=version)
        assert np.array_equal(stream.words(ids(4, 9), 3), words(incarnation=1, step=2)[[4, 9]])


def test_words_do_not_depend_on_the_other_ids_or_on_how_many_are_asked_for() -> None:
    stream = KeyedStream(KEY, incarnation=0, step=4)
    batch = stream.words(ids(8, 3, 2**63, 0, 8), 6)
    for row, number in enumerate((8, 3, 2**63, 0, 8)):
        assert np.array_equal(stream.words(ids(number), 6)[0], batch[row])
        assert np.array_equal(stream.words(ids(5, number, 6), 3)[1], batch[row, :3])
    assert stream.words(ids(), 4).shape == (0, 4)
    assert stream.words(ids(1, 2), 0).shape == (2, 0)


def test_every_part_of_the_address_counts() -> None:
    """Other key, purpose, incarnation or step: not one of 150 words is the same."""
    variants = [words()]
    variants += [words(step=1), words(step=10), words(incarnation=1), words(incarnation=10)]
    variants += [words(incarnation=1, step=1), words(incarnation=11, step=1)]
    variants += [words(incarnation=1, step=11)]
    variants += [words(key=RUN_KEY.derive(purpose)) for purpose in PURPOSES if purpose != "draw"]
    variants += [words(key=key_of(6).derive("draw"))]
    for one, other in itertools.combinations(variants, 2):
        assert not np.intersect1d(one, other).size
    assert np.unique(variants[0]).size == variants[0].size  # ids and positions too


def test_keys_of_purposes_do_not_collide() -> None:
    keys = [key_of(seed).derive(p) for seed in range(50) for p in PURPOSES]
    assert all(len(key) == KEY_BYTES for key in keys)
    assert len(set(keys)) == len(keys)
    assert RUN_KEY.derive("noise") == RUN_KEY.derive("noise")
    assert RUN_KEY.secret not in keys


def test_uniform_is_uniform() -> None:
    stream = KeyedStream(KEY, incarnation=0, step=1)
    numbers = stream.uniform(np.arange(20_000, dtype=np.uint64), 3)
    assert numbers.dtype == np.float64
    assert float(numbers.min()) >= 0
    assert float(numbers.max()) < 1
    for column in numbers.T:
        assert stats.kstest(column, "uniform").pvalue > 1e-3
    correlation = np.corrcoef(numbers, rowvar=False)[np.triu_indices(3, 1)]
    assert np.abs(correlation).max() < stats.norm.isf(5e-4 / 3) / 20_000**0.5
    # All 53 bits are in use: numbers are no multiples of anything coarser.
    scaled = (numbers.ravel() * 2.0**53).astype(np.uint64)
    assert int(np.bitwise_or.reduce(scaled)) == 2**53 - 1
    assert np.unique(numbers).size == numbers.size


def test_bits_are_fair() -> None:
    stream = KeyedStream(KEY, incarnation=3, step=1)
    bits = np.unpackbits(stream.words(np.arange(4000, dtype=np.uint64), 2).view(np.uint8), axis=1)
    ones = bits.sum(axis=0)
    low, high = stats.binom.interval(1 - 1e-3 / 128, 4000, 0.5)
    assert low <= ones.min()
    assert ones.max() <= high


@pytest.mark.parametrize("version", VERSIONS)
def test_normal_is_standard_normal(version: int) -> None:
    """Accepted at σ, refused at 2σ/3 and 3σ/2; neighbours, which share a radius, too."""
    numbers = KeyedStream(KEY, incarnation=0, step=1, version=version).normal(40_000)
    assert numbers.dtype == np.float64
    assert numbers.shape == (40_000,)
    assert stats.kstest(numbers, stats.norm(0, 1).cdf).pvalue > 1e-3
    for sigma in (2 / 3, 3 / 2):
        assert stats.kstest(numbers, stats.norm(0, sigma).cdf).pvalue < 1e-12
    low, high = stats.chi2.interval(0.999, len(numbers))
    assert low <= float((numbers**2).sum()) <= high
    pairs = numbers.reshape(-1, 2)
    for value in (pairs, pairs**2):
        correlation = float(np.corrcoef(value, rowvar=False)[0, 1])
        assert abs(correlation) < stats.norm.isf(5e-4) / len(pairs) ** 0.5
    # The tail is there, as often as it should be.
    far = int((np.abs(numbers) > 3).sum())
    low, high = stats.binom.interval(0.999, len(numbers), 2 * stats.norm.sf(3))
    assert low <= far <= high


@pytest.mark.parametrize("version", VERSIONS)
def test_normal_is_reproducible_and_a_prefix_of_a_longer_draw(version: int) -> None:
    stream = KeyedStream(KEY, incarnation=0, step=1, version=version)
    longer = stream.normal(101)
    assert np.array_equal(stream.normal(50), longer[:50])
    assert np.isfinite(longer).all()
    many = stream.normal(150_001)  # computed in parts
    assert np.array_equal(many[:101], longer)
    assert len(np.unique(many)) == len(many)
    other = KeyedStream(KEY, incarnation=0, step=2).normal(101)
    assert not np.intersect1d(longer, other).size
    assert stream.normal(0).shape == (0,)


def test_run_key_hides_its_secret() -> None:
    secret = b"do not print me in a log, please"
    key = RunKey(secret)
    for text in (repr(key), str(key), f"{key}", repr([key]), repr({"key": key})):
        assert "print" not in text
        assert secret.hex() not in text
        assert "RunKey(<secret>)" in text
    sampling = key.sampling_keys()
    for part in (sampling.draw, sampling.views, sampling.dropout):
        assert repr(part)[2:-1] not in repr(sampling)
        assert part.hex() not in repr(sampling)


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_a_run_key_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match=f"32 bytes, not {length}"):
        RunKey(bytes(length))


def test_sampling_keys_round_trip() -> None:
    keys = RUN_KEY.sampling_keys()
    data = keys.to_bytes()
    assert len(data) == 3 * KEY_BYTES
    assert SamplingKeys.from_bytes(data) == keys
    assert keys.draw == RUN_KEY.derive("draw")
    assert keys.views == RUN_KEY.derive("views")
    assert keys.dropout == RUN_KEY.derive("dropout")


def test_followers_get_no_key_to_the_noise() -> None:
    """Neither the noise key nor the run key that leads to it is in what followers are sent."""
    data = RUN_KEY.sampling_keys().to_bytes()
    for secret in (RUN_KEY.secret, RUN_KEY.derive("noise"), RUN_KEY.derive("digest")):
        for half in (secret[:8], secret[-8:]):
            assert half not in data
    names = {field.name for field in dataclasses.fields(SamplingKeys)}
    assert names == set(SamplingKeys.PURPOSES) == {"draw", "views", "dropout"}


def test_a_seed_leads_to_initial_parameters_and_to_no_key() -> None:
    """Of what may be known, each purpose has its own bytes; no key is among them."""
    drawn = {RUN_KEY.seed_of_initial_parameters(seed) for seed in (None, *range(100), 2**90)}
    assert len(drawn) == 102
    assert all(0 <= number < 2**63 for number in drawn)
    for seed in (0, 7):
        same_for_all = {key_of(n).seed_of_initial_parameters(seed) for n in range(9)}
        assert len(same_for_all) == 1
        assert public_bytes(seed, "init") != public_bytes(seed, "search")


def test_entropy_does_not_repeat() -> None:
    assert len({RunKey.from_entropy().secret for _ in range(100)}) == 100
    assert len(RunKey.from_entropy().secret) == KEY_BYTES


def test_a_key_bound_to_another_context_shares_nothing_with_it() -> None:
    """A repeated key with anything changed must not give equal noise: two sums would cancel it."""
    key = key_of(7)
    bound = [key.bind(context) for context in ("", "one", "another")]
    assert key.bind("one") == bound[1]
    purposes = ("draw", "views", "noise", "digest")
    keys = [k.derive(purpose) for k in (key, *bound) for purpose in purposes]
    assert len(set(keys)) == len(keys)
    assert key_of(8).bind("one") != bound[1]
    assert key.secret not in (k.secret for k in bound)
