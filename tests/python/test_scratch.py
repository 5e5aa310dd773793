# SPDX-License-Identifier: Apache-2.0
"""Scratch memory that stays with a stream between eager products: which block is whose, and when it is
dropped. With an allocator of the test's own and a stand-in for PyTorch, so without a GPU."""

import random
import sys
import threading
import types

import pytest

from mixgemm import _core, _frameworks

MIB = 1 << 20


class Memory:
    """A block of the allocator below, which hears of its end."""

    def __init__(self, allocator, address, num_bytes):
        self.allocator, self.address, self.num_bytes = allocator, address, num_bytes

    def __del__(self):
        self.allocator.live.discard(self.address)
        self.allocator.on_drop()


class Allocator:
    def __init__(self):
        self.asked = []  # bytes
        self.live = set()  # addresses
        self.before = lambda: None  # what other threads do while we allocate
        self.on_drop = lambda: None
        self.answers = True

    def __call__(self, num_bytes, to_keep):
        assert to_keep is True
        self.asked.append(num_bytes)
        address = 4096 * len(self.asked)
        self.before()
        if not self.answers:
            return None
        self.live.add(address)
        return Memory(self, address, num_bytes), address


@pytest.fixture
def allocator():
    return Allocator()


@pytest.fixture
def kept():
    return _core.KeptScratch()


def use(kept, allocator, stream, num_bytes=1):
    """A whole product; the address of its block, or None."""
    block = kept.take(stream, num_bytes, allocator)
    if block is None:
        return None
    assert block[0].address == block[1] and block[0].num_bytes == block[2] >= num_bytes
    kept.give_back(stream, block)
    return block[1]


def test_the_next_product_on_a_stream_gets_the_block(kept, allocator):
    first, other = use(kept, allocator, 16), use(kept, allocator, 32)
    assert first != other and None not in (first, other)
    assert [use(kept, allocator, stream) for stream in (16, 32, 16)] == [first, other, first]
    assert len(allocator.asked) == 2


def test_the_default_stream_has_a_block_like_any_other(kept, allocator):
    assert use(kept, allocator, 0) == use(kept, allocator, 0) is not None


def test_a_block_grows_in_few_steps_and_the_smaller_one_goes(kept, allocator):
    for num_bytes in range(256, kept.max_bytes + 1, 256 * 1021):
        address = use(kept, allocator, 16, num_bytes)
        assert allocator.live == {address}
    assert use(kept, allocator, 16, kept.max_bytes) == address
    assert allocator.asked == [MIB << step for step in range(5)] and kept.max_bytes == 16 * MIB
    assert use(kept, allocator, 16, 256) == address


def test_what_is_too_large_to_keep_is_not_asked_for(kept, allocator):
    address = use(kept, allocator, 16)
    assert kept.take(16, kept.max_bytes + 1, allocator) is None
    assert use(kept, allocator, 16) == address and len(allocator.asked) == 1


def test_a_taken_block_is_not_given_to_another_thread(kept, allocator):
    """A product may be two launches on the stream, between which another thread's may come."""
    block = kept.take(16, 1, allocator)
    assert kept.take(16, 1, allocator) is None
    assert kept.take(16, 2 * MIB, allocator) is None  # nor grown under the one that has it
    assert len(allocator.asked) == 1
    kept.give_back(16, block)
    assert use(kept, allocator, 16) == block[1]


def test_memory_that_must_not_be_kept(kept, allocator):
    address = use(kept, allocator, 16)
    allocator.answers = False
    assert kept.take(16, 2 * MIB, allocator) is None
    assert kept.take(32, 1, allocator) is None
    assert kept.num_streams == 1 and use(kept, allocator, 16) == address


def test_an_allocator_that_fails(kept, allocator):
    def fail():
        raise MemoryError("none left")

    address = use(kept, allocator, 16)
    allocator.before = fail
    for stream in (16, 32):
        with pytest.raises(MemoryError, match="none left"):
            kept.take(stream, 2 * MIB, allocator)
    allocator.before = lambda: None
    assert use(kept, allocator, 16) == address
    assert use(kept, allocator, 16, 2 * MIB) is not None and use(kept, allocator, 32) is not None


def test_an_idle_stream_makes_room_for_a_new_one(kept, allocator):
    streams = [16 * (i + 1) for i in range(kept.max_streams)]
    addresses = [use(kept, allocator, stream) for stream in streams]
    # Streams in turn, one too many: the blocks stay where they are, and nobody pays for new ones.
    for stream in streams + [999] + streams + [999]:
        use(kept, allocator, stream)
    assert len(allocator.asked) == len(allocator.live) == kept.max_streams
    for _ in range(kept.idle_products):
        for stream in streams[2:4]:
            use(kept, allocator, stream)
    assert use(kept, allocator, 999) is not None
    assert addresses[0] not in allocator.live  # the least recently used
    assert set(addresses[1:]) < allocator.live and kept.num_streams == kept.max_streams


def test_a_taken_block_never_makes_room(kept, allocator):
    blocks = {stream: kept.take(stream, 1, allocator) for stream in range(16, 16 + kept.max_streams)}
    for _ in range(kept.idle_products + 1):
        assert kept.take(16, 1, allocator) is None
    assert kept.take(999, 1, allocator) is None
    for stream, block in blocks.items():
        kept.give_back(stream, block)
    assert all(use(kept, allocator, stream) == block[1] for stream, block in blocks.items())


def test_release(kept, allocator):
    for stream in (16, 32):
        use(kept, allocator, stream)
    block = kept.take(16, 1, allocator)
    kept.release()
    assert allocator.live == {block[1]} and kept.num_streams == 0
    kept.give_back(16, block)
    del block  # which comes back to nobody
    assert not allocator.live
    assert use(kept, allocator, 16) is not None and len(allocator.asked) == 3


def test_the_end_of_memory_may_come_back_here(kept, allocator):
    """A tensor's finalizer is anybody's code, and runs where a block is dropped."""
    for num_bytes in (1, 2 * MIB):
        allocator.on_drop = lambda: use(kept, allocator, 32)
        assert use(kept, allocator, 16, num_bytes) == use(kept, allocator, 16, num_bytes)
    kept.release()
    assert kept.num_streams == 1  # the finalizer's
    allocator.on_drop = lambda: None


@pytest.mark.parametrize("seed", range(20))
def test_no_block_is_in_two_hands(seed):
    """Threads at random, also in the midst of an allocation, which lets others run."""
    choose, allocator, kept = random.Random(seed), Allocator(), _core.KeptScratch()
    held, stream_of, depth = [], {}, 0

    def step():
        nonlocal depth
        kind = choose.random()
        if kind < 0.02:
            kept.release()
        elif kind < 0.5 and held:
            stream, block = held.pop(choose.randrange(len(held)))
            kept.give_back(stream, block)
        else:
            stream = 16 * choose.randrange(kept.max_streams + 3)
            block = kept.take(stream, choose.choice((1, MIB, 3 * MIB, 9 * MIB)), allocator)
            if block is not None:
                assert all(other[1] != block[1] for _, other in held)
                assert block[1] in allocator.live
                assert stream_of.setdefault(block[1], stream) == stream  # as it was allocated
                held.append((stream, block))
        assert kept.num_streams <= kept.max_streams

    def others():
        nonlocal depth
        if depth < 2:
            depth += 1
            for _ in range(choose.randrange(4)):
                step()
            depth -= 1

    allocator.before = others
    for _ in range(4000):
        step()
    while held:
        stream, block = held.pop()
        kept.give_back(stream, block)
        del block
    kept.release()
    assert not allocator.live, f"seed {seed}"


class FakeTorch(types.ModuleType):
    """What torch_scratch asks of PyTorch, and what became of it in which thread."""

    uint8 = "uint8"

    def __init__(self, stream_id, address):
        super().__init__("torch")
        self.stream = types.SimpleNamespace(stream_id=stream_id, cuda_stream=address)
        self.allocated = []
        self.current = threading.local()
        self.cuda = types.SimpleNamespace(current_stream=lambda ordinal: self.stream,
                                          set_stream=lambda s: setattr(self.current, "stream", s))
        self.fails = False

    def device(self, kind, index):
        return kind, index

    def empty(self, shape, strides, dtype):
        if self.fails:
            raise RuntimeError("CUDA out of memory")
        self.allocated.append((shape[0], threading.get_ident(),
                               getattr(self.current, "stream", None)))
        return types.SimpleNamespace(get_device=lambda: 1, data_ptr=lambda: 4096)


def scratch_of(monkeypatch, stream_id, address):
    torch = FakeTorch(stream_id, address)
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setattr(_frameworks, "torch_empty", lambda device: torch.empty)
    return torch, _frameworks.torch_scratch.__wrapped__(1)


@pytest.mark.parametrize("stream_id,address", [(0, 0), (35, 0x55d0c0)])
def test_kept_memory_comes_from_no_pool_of_this_thread(monkeypatch, stream_id, address):
    """torch.cuda.use_mem_pool and torch.compile's warming up of graphs are a thread's own."""
    torch, allocate = scratch_of(monkeypatch, stream_id, address)
    assert allocate(MIB, True)[1] == 4096
    (num_bytes, thread, stream), = torch.allocated
    assert num_bytes == MIB and thread != threading.get_ident() and stream is torch.stream
    assert not hasattr(torch.current, "stream")  # here nothing is another stream than before
    assert allocate(512)[1] == 4096
    assert torch.allocated[1] == (512, threading.get_ident(), None)


def test_nothing_is_kept_for_streams_that_may_be_destroyed(monkeypatch):
    torch, allocate = scratch_of(monkeypatch, 0x55d0c0, 0x55d0c0)  # torch.cuda.ExternalStream
    assert allocate(MIB, True) is None and not torch.allocated


def test_where_no_memory_can_be_kept_the_plain_way_answers(monkeypatch):
    torch, allocate = scratch_of(monkeypatch, 35, 0x55d0c0)
    torch.fails = True
    assert allocate(MIB, True) is None
    with pytest.raises(RuntimeError, match="out of memory"):
        allocate(MIB)
    torch.fails = False

    def no_thread(self):
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", no_thread)
    assert allocate(MIB, True) is None and allocate(MIB) is not None
