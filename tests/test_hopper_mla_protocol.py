"""The ring of mla_decode_sm90 without a GPU: its warpgroups as agents over its barriers (src/cuda/mla_decode/sm90/pipeline.cuh), every interleaving
drawn at random. A deadlock, and a read of what is not there any more, fail."""

import random

import pytest


class Barrier:
    def __init__(self, count):
        self.count = self.pending = count
        self.phase = 0

    def arrive(self):
        self.pending -= 1
        assert self.pending >= 0, "one arrival too many"
        if self.pending == 0:
            self.pending, self.phase = self.count, self.phase ^ 1

    def sync(self):
        """What a thread waits for at a named barrier: the end of the phase in which it arrives, whichever that is."""
        phase = self.phase
        self.arrive()
        return self, phase

    def passed(self, parity):
        """Whether the phase of this parity has ended, as mbarrier's try_wait.parity asks."""
        return self.phase != parity


class Play:
    """Agents by turns, drawn at random; an agent yields what it waits for, or a step."""

    def play(self):
        waiting = {}
        slow = self.rng.choice(self.agents)  # gets its turn when no other can take one, or seldom
        while self.agents:
            able = [a for a in self.agents if a not in waiting or waiting[a][0].passed(waiting[a][1])]
            assert able, "deadlock"
            agent = self.rng.choice([a for a in able if a != slow or self.rng.random() < 0.05] or able)
            waiting.pop(agent, None)
            try:
                waits_for = next(agent)
            except StopIteration:
                self.agents.remove(agent)
                continue
            if waits_for != "step":
                waiting[agent] = waits_for


class Ring(Play):
    """stages: blocks of latents; rope_stages: of rope keys, P and statistics; late: P(n) is published within S(n + 1), and P has a place of its
    own, rope keys the other.

    keys: "boxes"; "whole", one warp asks for both halves and the rope keys; "gathered", producers ask for them, and there are places for five halves of two blocks;
    "narrow", an output warpgroup widens it from a ring of two.
    """

    def __init__(self, rng, stages, rope_stages, late, requests, keys="boxes", statistics=None, p_barriers=4):
        self.rng, self.stages, self.rope_stages, self.late, self.keys = rng, stages, rope_stages, late, keys
        self.raw, self.raw_full = [[None, None] for _ in range(2)], [[Barrier(1), Barrier(1)] for _ in range(2)]
        self.entries = [e for blocks, q in requests for e in ["q"] * q + [f"k{left}" for left in range(blocks, 0, -1)]]
        self.places = 2 * stages + (keys == "gathered")  # for halves of latents
        self.full, self.free = ([Barrier(1) for _ in range(self.places)] for _ in range(2))
        self.rope_full, self.s_done = ([Barrier(1) for _ in range(rope_stages)] for _ in range(2))
        self.p_barriers = p_barriers if late else rope_stages
        self.p_full = [[Barrier(2), Barrier(2)] for _ in range(self.p_barriers)]  # score and one output warpgroup
        self.p_place_free = Barrier(3)  # likewise, of both
        self.latent = [None] * self.places
        self.rope = [None] * rope_stages  # late: the second one is P's
        self.statistics = [None] * (statistics or rope_stages)
        self.agents = [self.score(), self.output(0), self.output(1)] + ([self.producers()] if keys == "gathered" else [])

    def place(self, n, half):
        return (2 * n + half) % self.places

    def phase(self, n, half):
        return (2 * n + half) // self.places & 1

    def is_free(self, n, half):
        """What one waits for until half of block n is used up."""
        return self.free[self.place(n, half)], self.phase(n, half)

    def load(self, n, half):
        yield "step"
        self.latent[self.place(n, half)] = n
        self.full[self.place(n, half)].arrive()

    def producers(self):
        for n in range(len(self.entries)):
            for half in (0, 1):
                before = 2 * n + half - self.places  # the half that had this place
                if before >= 0:
                    yield self.is_free(before // 2, before % 2)
                self.agents.append(self.load(n, half))
            self.agents.append(self.load_rope(n))

    def load_raw(self, n, half):
        yield "step"
        self.raw[n % 2][half] = n
        self.raw_full[n % 2][half].arrive()

    def widen(self, n, half):
        yield self.raw_full[n % 2][half], n // 2 & 1
        for _ in range(2):
            assert self.raw[n % 2][half] == n, "latents before they are widened"
            yield "step"
        self.latent[self.place(n, half)] = n
        self.full[self.place(n, half)].arrive()
        if n + 2 < len(self.entries):
            self.agents.append(self.load_raw(n + 2, half))

    def load_rope(self, n):
        yield "step"
        self.rope[self.rope_place(n)] = ("rope", n)
        self.rope_full[self.rope_place(n)].arrive()

    def rope_behind_s(self, n):
        """There is one place: S is through with the keys before."""
        if n < len(self.entries):
            yield self.s_done[0], n & 1
            self.agents.append(self.load_rope(n))

    def rope_place(self, n):
        return (1 if n == 0 else 0) if self.late else n % self.rope_stages

    def p_place(self, n):
        return 1 if self.late else n % self.rope_stages

    def whole(self, n):
        return [self.load(n, 0), self.load(n, 1), self.load_rope(n)]

    def publish(self, n):
        for half in (0, 1):
            self.p_full[n % self.p_barriers][half].arrive()

    def score(self):
        owing = None
        for n, entry in enumerate(self.entries):
            rope_place = self.rope_place(n)
            if self.late:  # the first place but for the first entry, which S need not be done with
                rope_phase, s_slot, s_phase = n > 0 and n % 2 == 0, 0, n - 1 & 1
            else:
                rope_phase = s_phase = n // self.rope_stages & 1
                s_slot = rope_place
            if owing is not None and not self.full[self.place(n, 0)].passed(self.phase(n, 0)):
                self.publish(owing)
                owing = None
            for half in (0, 1):
                yield self.full[self.place(n, half)], self.phase(n, half)
                assert self.latent[self.place(n, half)] == n, "latents"
            yield "step"
            if owing is not None:
                self.publish(owing)
                owing = None
            yield self.rope_full[rope_place], rope_phase
            assert self.rope[rope_place] == ("rope", n), "rope keys"
            yield "step"
            assert all(self.latent[self.place(n, half)] == n for half in (0, 1)), "latents"
            if n > 0 or not self.late:
                self.s_done[s_slot].arrive()
                yield self.s_done[s_slot], s_phase
            if entry == "q":
                self.publish(n)
                continue
            if self.late:
                yield self.p_place_free.sync()
            self.rope[self.p_place(n)] = ("p", n)
            if entry == "k1":
                self.statistics[n % len(self.statistics)] = n
            if entry == "k1" or not self.late:
                self.publish(n)
            else:
                owing = n
        if self.late:
            yield self.p_place_free.sync()

    def output(self, half):
        first = range(min(self.stages, len(self.entries)))
        if self.keys == "narrow":
            self.agents += [self.load_raw(i, half) for i in first]
        for i in first if self.keys != "gathered" else ():
            if self.keys == "whole":
                self.agents += self.whole(i) if half == 0 else []
                continue
            if half == 1 and i < self.rope_stages:
                self.agents.append(self.load_rope(i))
            if self.keys == "narrow":
                yield from self.widen(i, half)
            else:
                self.agents.append(self.load(i, half))
        if self.late:
            self.p_place_free.arrive()
        for n, entry in enumerate(self.entries):
            yield self.p_full[n % self.p_barriers][half].sync()
            for _ in range(2):
                assert self.latent[self.place(n, half)] == n, "latents"
                assert entry == "q" or self.rope[self.p_place(n)] == ("p", n), "P"
                yield "step"
            asked = half == 1 and self.late and n + 2 < len(self.entries) and self.s_done[0].passed(n & 1)
            if asked:
                self.agents.append(self.load_rope(n + 2))
            assert entry != "k1" or self.statistics[n % len(self.statistics)] == n, "statistics"
            if self.late:
                if n + self.stages < len(self.entries):
                    self.agents.append(self.load(n + self.stages, half))
                if entry != "q":
                    self.p_place_free.arrive()
                if half == 1 and not asked:
                    yield from self.rope_behind_s(n + 2)
                for _ in range(self.rng.choice((0, 40)) if entry == "k1" else 0):  # rows to memory
                    yield "step"
                continue
            self.free[self.place(n, half)].arrive()
            if self.keys == "gathered":
                continue
            if self.keys == "whole":
                if half == 0 and n + self.stages < len(self.entries):
                    yield self.is_free(n, 0)
                    yield self.is_free(n, 1)
                    self.agents += self.whole(n + self.stages)
                continue
            if half == 1 and n + self.rope_stages < len(self.entries):
                yield self.is_free(n, 0)
                yield self.is_free(n, 1)
                self.agents.append(self.load_rope(n + self.rope_stages))
            if n + self.stages < len(self.entries):
                yield self.is_free(n, half)
                if self.keys == "narrow":
                    yield from self.widen(n + self.stages, half)
                else:
                    self.agents.append(self.load(n + self.stages, half))


# Those of the instances in src/cuda/mla_decode/sm90: stages, rope stages, whether P may be late.
SHAPES = [(2, 2, False), (3, 2, True), (3, 2, False), (3, 3, False), (6, 3, False), (3, 3, False, "whole"), (2, 3, False, "gathered"), (2, 2, False, "narrow")]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_no_deadlock_and_no_stale_read(shape):
    for seed in range(150):
        rng = random.Random(seed)
        requests = [(rng.choice((1, 1, 2, 3, 9)), rng.randint(1, 2)) for _ in range(rng.randint(1, 6))]
        Ring(rng, *shape[:3], requests, *shape[3:]).play()


def test_statistics_of_their_own_slot_are_needed():
    """Requests of one block end two entries apart, and a ring of three lets score run ahead so far: the first version had this race."""
    with pytest.raises(AssertionError, match="statistics"):
        for seed in range(300):
            rng = random.Random(seed)
            Ring(rng, 6, 3, False, [(1, 1)] * 6, statistics=1).play()


def test_late_p_needs_more_than_two_barriers():
    """Of requests of one block: queries need no place for P, and score arrives for them twice while left stores rows."""
    with pytest.raises(AssertionError, match="deadlock"):
        for seed in range(300):
            rng = random.Random(seed)
            Ring(rng, 3, 2, True, [(1, 1)] * 6, p_barriers=2).play()


class FewRows(Play):
    """few_rows.cuh: a warp that loads, score warps with a share of each block's keys, output warps; two of each stand for all. maxima: how many
    places they have."""

    WARPS, STAGES, PLACES = 2, 5, 2

    def __init__(self, rng, requests, maxima=2):
        self.rng, self.requests = rng, requests
        self.full, self.used = [Barrier(1) for _ in range(self.STAGES)], [Barrier(self.WARPS) for _ in range(self.STAGES)]
        self.q_full, self.q_taken = Barrier(1), Barrier(self.WARPS)
        self.free, self.there = ([Barrier(2 * self.WARPS) for _ in range(self.PLACES)] for _ in range(2))
        self.keys, self.q = [None] * self.STAGES, None
        self.p, self.sums = ([[None] * self.WARPS for _ in range(self.PLACES)] for _ in range(2))
        self.maxima = [[None] * self.WARPS for _ in range(maxima)]
        self.agents = [self.loads(), *(role(w) for w in range(self.WARPS) for role in (self.score, self.output))]

    def load(self, n):
        yield "step"
        self.keys[n % self.STAGES] = n
        self.full[n % self.STAGES].arrive()

    def load_queries(self, request):
        yield "step"
        self.q = request
        self.q_full.arrive()

    def loads(self):
        n = 0
        for request, blocks in enumerate(self.requests):
            if request > 0:
                yield self.q_taken, (request - 1) & 1
            self.agents.append(self.load_queries(request))
            for n in range(n, n + blocks):
                if n >= self.STAGES:
                    yield self.used[n % self.STAGES], (n // self.STAGES - 1) & 1
                self.agents.append(self.load(n))
            n += 1

    def score(self, warp):
        n = 0
        for request, blocks in enumerate(self.requests):
            yield self.q_full, request & 1
            for _ in range(2):
                assert self.q == request, "queries"
                yield "step"
            self.q_taken.arrive()
            for left in range(blocks, 0, -1):
                yield self.full[n % self.STAGES], n // self.STAGES & 1
                for _ in range(2):
                    assert self.keys[n % self.STAGES] == n, "keys"
                    yield "step"
                place, maxima = n % self.PLACES, self.maxima[n % len(self.maxima)]
                maxima[warp] = n
                self.free[place].arrive()
                yield self.free[place], n // self.PLACES & 1
                yield "step"
                assert maxima == [n] * self.WARPS, "maxima"
                self.p[place][warp] = n
                if left == 1:
                    self.sums[place][warp] = n
                self.there[place].arrive()
                n += 1
        for m in range(n, n + self.PLACES):
            self.free[m % self.PLACES].arrive()
            yield self.free[m % self.PLACES], m // self.PLACES & 1

    def output(self, _):
        for free in self.free:
            free.arrive()
        n = 0
        for blocks in self.requests:
            for left in range(blocks, 0, -1):
                place = n % self.PLACES
                self.there[place].arrive()
                yield self.there[place], n // self.PLACES & 1
                for _ in range(2):
                    assert self.p[place] == [n] * self.WARPS, "P"
                    assert left > 1 or self.sums[place] == [n] * self.WARPS, "sums"
                    yield "step"
                self.free[place].arrive()
                yield self.full[n % self.STAGES], n // self.STAGES & 1
                for _ in range(2):
                    assert self.keys[n % self.STAGES] == n, "keys"
                    yield "step"
                self.used[n % self.STAGES].arrive()
                n += 1


def requests_of(rng):
    return [rng.choice((1, 1, 2, 3, 14)) for _ in range(rng.randint(1, 6))]


def test_few_rows():
    for seed in range(300):
        rng = random.Random(seed)
        rows = FewRows(rng, requests_of(rng))
        rows.play()
        barriers = [*rows.full, *rows.used, *rows.there, *rows.free, rows.q_full, rows.q_taken]
        assert all(b.pending == b.count for b in barriers), "a barrier is left half full"


def test_maxima_of_few_rows_need_two_places():
    with pytest.raises(AssertionError, match="maxima"):
        for seed in range(300):
            rng = random.Random(seed)
            FewRows(rng, requests_of(rng), maxima=1).play()
