"""Keyed randomness: every random number of a run is a function of its key and its address.

An address is (purpose, incarnation, step, counter). Numbers come from AES-256 in counter mode,
so that a draw can be repeated anywhere (by any worker, after a crash) and cannot be predicted by
someone who has seen other draws but does not know the key. Nothing here has hidden state.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

KEY_BYTES = 32

LATEST = 2
"""The version of draws, noise and digests of a new run. A ledger records its run's.

1 (until November 2026): a word decides whether an example joins a step; numpy computes normal
numbers; the digest of a sum is an HMAC. 2: a byte decides, and where it cannot, a word; torch
computes normal numbers; the digest is a GMAC.
"""

VERSIONS = (1, LATEST)
"""Versions that a run can be continued with."""

_PAIRS_AT_ONCE = 2**15
"""Of normal numbers: what is computed on the way to them then fits a processor's cache."""

_BLOCK = 16
"""Bytes of a block of the cipher."""

_BLOCK_OF_BYTES = 2**64 - 1
"""The second counter of blocks that give a byte to each of 16 ids; that of words is far below."""


@dataclass(frozen=True, repr=False)
class RunKey:
    """The one secret of a run; all other keys derive from it.

    Whoever knows it can subtract the noise, so it stays in the private part of a run (mode 0600)
    and in the memory of the coordinator.
    """

    secret: bytes

    def __post_init__(self) -> None:
        if len(self.secret) != KEY_BYTES:
            raise ValueError(f"a run key has {KEY_BYTES} bytes, not {len(self.secret)}")

    def __repr__(self) -> str:
        return "RunKey(<secret>)"

    @classmethod
    def from_entropy(cls) -> RunKey:
        """A key from the operating system's entropy."""
        return cls(os.urandom(KEY_BYTES))

    def bind(self, context: str) -> RunKey:
        """The key for one configuration and data set.

        A run that repeats another one's key with anything of that changed shares no noise with it:
        equal noise on two sums would cancel out in the difference of the two releases.
        """
        return RunKey(self.derive(f"bound to {context}"))

    def derive(self, purpose: str) -> bytes:
        """A 32-byte key for one purpose; keys of two purposes tell nothing about each other."""
        return hmac.digest(self.secret, f"dp-ray/{purpose}".encode(), "sha256")

    def follows_from(self, seed: int) -> bool:
        """Whether an earlier version derived this key from a seed, which may be public now."""
        return self.secret == hashlib.sha256(f"dp-ray run key from seed {seed}".encode()).digest()

    def seed_of_initial_parameters(self, seed: int | None) -> int:
        """63 bits for torch's generator, which draws the parameters before any training.

        Args:
            seed: the configuration's, which decides them; without one they follow from the key.
        """
        drawn = self.derive("init") if seed is None else public_bytes(seed, "init")
        return int.from_bytes(drawn[:8], "little") >> 1

    def sampling_keys(self) -> SamplingKeys:
        """The keys that followers get: none of them leads to the noise."""
        return SamplingKeys(*(self.derive(name) for name in SamplingKeys.PURPOSES))


def public_bytes(seed: int, purpose: str) -> bytes:
    """32 bytes for what may be known: whoever knows the seed can compute them.

    Neither draws nor noise may follow from them: whom a draw took must stay unknown for
    amplification by sampling, and a seed is the same number in two runs of different code.
    """
    return hashlib.sha256(f"dp-ray seed {seed}: {purpose}".encode()).digest()


@dataclass(frozen=True, repr=False)
class SamplingKeys:
    """What a worker needs to draw its examples, views and dropout masks, and no more."""

    PURPOSES = ("draw", "views", "dropout")

    draw: bytes
    views: bytes
    dropout: bytes

    def to_bytes(self) -> bytes:
        """All keys in one string of 96 bytes, to be sent to the followers."""
        return self.draw + self.views + self.dropout

    @classmethod
    def from_bytes(cls, data: bytes) -> SamplingKeys:
        """The inverse of :meth:`to_bytes`."""
        return cls(*(data[i : i + KEY_BYTES] for i in range(0, 3 * KEY_BYTES, KEY_BYTES)))


class KeyedStream:
    """Random numbers of one (key, incarnation, step), addressed by counters.

    Args:
        key: 32 bytes, from :meth:`RunKey.derive`.
        incarnation: which invocation of the mechanism this is (see docs/architecture.md).
        step: the logical step.
        version: of the run, one of :data:`VERSIONS`. Words are the same in all.

    Attributes:
        version: as given.
    """

    def __init__(self, key: bytes, *, incarnation: int, step: int, version: int = LATEST) -> None:
        self.version = version
        step_key = hmac.digest(key, f"incarnation {incarnation} step {step}".encode(), "sha256")
        # Counter mode with counters of our choosing: each 16-byte block is encrypted by itself,
        # which is what ECB does, and no counter is used for two numbers.
        self._cipher = Cipher(algorithms.AES(step_key), modes.ECB())

    def words(self, ids: NDArray[np.uint64], count: int) -> NDArray[np.uint64]:
        """``count`` random 64-bit words for each id.

        Args:
            ids: [n] counters, for example example ids. Equal ids get equal words.
            count: words per id.

        Returns:
            [n, count] words, uniform over 0 … 2⁶⁴ - 1.
        """
        blocks = np.arange((count + 1) // 2, dtype=np.uint64)
        words = self._encrypted(ids, blocks).reshape(len(ids), 2 * len(blocks))
        return words[:, :count].astype(np.uint64, copy=False)

    def bytes_of_range(self, start: int, stop: int) -> NDArray[np.uint8]:
        """[stop - start] random bytes, one for each id ``start`` … ``stop - 1``.

        They are independent of all words. A block of the cipher serves 16 ids.
        """
        first = start // _BLOCK
        groups = np.arange(first, -(-stop // _BLOCK), dtype=np.uint64)
        blocks = self._encrypted(groups, np.array([_BLOCK_OF_BYTES], dtype=np.uint64))
        return blocks.view(np.uint8).reshape(-1)[start - _BLOCK * first : stop - _BLOCK * first]

    def uniform(self, ids: NDArray[np.uint64], count: int) -> NDArray[np.float64]:
        """[n, count] numbers in [0, 1) with 53 random bits each; ``ids`` as in :meth:`words`."""
        return (self.words(ids, count) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def normal(self, count: int) -> NDArray[np.float64]:
        """``count`` standard normal numbers in float64, by Box and Muller (1958).

        The radius uses all 64 bits of its word, which cuts the tail at 9.49 standard deviations;
        the probability beyond that is below 3e-21. Versions differ in the last bits alone.
        """
        if self.version == 1:
            return self._normal_by_numpy(count)
        from dp_ray.normals import box_muller  # here: torch takes a second to load

        return box_muller(lambda ids: self.words(ids, 2), count)

    def _normal_by_numpy(self, count: int) -> NDArray[np.float64]:
        pairs = np.empty(((count + 1) // 2, 2))
        for start in range(0, len(pairs), _PAIRS_AT_ONCE):
            part = pairs[start : start + _PAIRS_AT_ONCE]
            words = self.words(np.arange(start, start + len(part), dtype=np.uint64), 2)
            radius = np.sqrt(-2.0 * np.log((words[:, 0].astype(np.float64) + 0.5) * 2.0**-64))
            angle = (2.0 * np.pi * 2.0**-53) * (words[:, 1] >> np.uint64(11)).astype(np.float64)
            part[:, 0] = radius * np.cos(angle)
            part[:, 1] = radius * np.sin(angle)
        return pairs.reshape(-1)[:count]

    def _encrypted(self, ids: NDArray[np.uint64], blocks: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """[n, b, 2] little-endian words: the cipher's blocks at (id, block), for n ids each b."""
        counters = np.empty((len(ids), len(blocks), 2), dtype="<u8")
        counters[:, :, 0] = ids[:, None]
        counters[:, :, 1] = blocks
        encrypted = np.empty(counters.size + 2, dtype="<u8")  # with the room that is asked for
        self._cipher.encryptor().update_into(_bytes(counters), _bytes(encrypted))
        return encrypted[: counters.size].reshape(counters.shape)


def _bytes(words: NDArray[np.uint64]) -> memoryview:
    return words.reshape(-1).view(np.uint8).data
