"""The ring's protocol without a GPU: score, left and right as agents over mbarriers, every interleaving drawn at random. Finds deadlocks
and reads of what is not there. usage: simulate.py [runs]"""
import random
import sys


class Barrier:
    def __init__(self, count):
        self.count = self.pending = count
        self.phase = 0

    def arrive(self):
        self.pending -= 1
        assert self.pending >= 0, "one arrival too many"
        if self.pending == 0:
            self.pending, self.phase = self.count, self.phase ^ 1

    def passed(self, parity):   # try_wait.parity: the phase of this parity has ended
        return self.phase != parity


def run(stages, rope_stages, pieces, short, requests, seed):
    rng = random.Random(seed)
    entries = []
    for blocks, q in requests:
        entries += ["q"] * q + [f"k{left}" for left in range(blocks, 0, -1)]
    rings = stages * pieces, stages * pieces - short   # left's and right's, in pieces
    full, free = [[[Barrier(1) for _ in range(r)] for r in rings] for _ in range(2)]

    def place(n, h, c):
        i = n * pieces + c
        return h, i % rings[h], i // rings[h] & 1

    rope_full, s_done = [[Barrier(1) for _ in range(rope_stages)] for _ in range(2)]
    p_full = [[Barrier(2), Barrier(2)] for _ in range(rope_stages)]   # score and one output warpgroup
    latent = [[None] * r for r in rings]
    rope = [None] * rope_stages

    def load_latent(n, h, c):
        yield "step"
        _, slot, _ = place(n, h, c)
        latent[h][slot] = n, c
        full[h][slot].arrive()

    def holds(n, h, c):
        return latent[h][place(n, h, c)[1]] == (n, c)

    def barrier(of, n, h, c):
        _, slot, parity = place(n, h, c)
        return of[h][slot], parity

    def load_rope(n):
        yield "step"
        rope[n % rope_stages] = ("rope", n)
        rope_full[n % rope_stages].arrive()

    agents = []

    def publish(n):
        p_full[n % rope_stages][0].arrive()
        p_full[n % rope_stages][1].arrive()

    def score():
        n, owing = 0, None
        late = rng.random() < 0.5
        for e in entries:
            if owing is not None and not full[0][place(n, 0, 0)[1]].passed(place(n, 0, 0)[2]):
                publish(owing)
                owing = None
            for i in range(2 * pieces):
                yield barrier(full, n, i % 2, i // 2)
                assert holds(n, i % 2, i // 2), (n, latent)
            yield "step"
            if owing is not None:
                publish(owing)
                owing = None
            yield rope_full[n % rope_stages], n // rope_stages & 1
            assert rope[n % rope_stages] == ("rope", n)
            yield "step"
            assert all(holds(n, h, c) for h in range(2) for c in range(pieces)), (n, latent)
            s_done[n % rope_stages].arrive()
            yield s_done[n % rope_stages], n // rope_stages & 1
            if e == "q":
                publish(n)
            else:
                rope[n % rope_stages] = ("p", n)
                if e == "k1" or not late:
                    publish(n)
                else:
                    owing = n
            n += 1

    def output(h):
        for i in range(min(stages, len(entries))):
            agents.extend(load_latent(i, h, c) for c in range(pieces) if i * pieces + c < rings[h])
            if h == 1 and i < rope_stages:
                agents.append(load_rope(i))
        for n, e in enumerate(entries):
            p_full[n % rope_stages][h].arrive()
            yield p_full[n % rope_stages][h], n // rope_stages & 1
            for c in range(pieces):
                yield "step"
                assert holds(n, h, c)
                if e != "q":
                    assert rope[n % rope_stages] == ("p", n), (n, rope)
                yield "step"
                assert holds(n, h, c)
                free[h][place(n, h, c)[1]].arrive()
                if c == pieces - 1 and h == 1 and n + rope_stages < len(entries):   # before the last refill
                    yield barrier(free, n, 0, pieces - 1)
                    yield barrier(free, n, 1, pieces - 1)
                    agents.append(load_rope(n + rope_stages))
                m, d = divmod(n * pieces + c + rings[h], pieces)
                if m < len(entries):
                    yield barrier(free, n, h, c)
                    agents.append(load_latent(m, h, d))

    agents += [score(), output(0), output(1)]
    play(agents, rng)


def play(agents, rng):
    waiting = {}
    while agents:
        able = [a for a in agents if a not in waiting or waiting[a][0].passed(waiting[a][1])]
        assert able, "deadlock"
        a = rng.choice(able)
        waiting.pop(a, None)
        try:
            w = next(a)
            if w != "step":
                waiting[a] = w
        except StopIteration:
            agents.remove(a)


runs = int(sys.argv[1]) if len(sys.argv) > 1 else 300
for seed in range(runs):
    rng = random.Random(seed)
    stages = rng.choice((2, 3, 4))
    pieces = rng.choice((1, 2, 3))
    shape = stages, min(stages, rng.choice((2, 3))), pieces, rng.randint(0, pieces > 1 and stages > 2), [(rng.randint(1, 9), rng.randint(1, 2)) for _ in range(rng.randint(1, 5))]
    try:
        run(*shape, seed)
    except AssertionError as e:
        sys.exit(f"{e!r} with stages, rope stages, pieces, a piece less, (blocks, query entries) = {shape}, seed {seed}")
print("no deadlock, no stale read in", runs, "runs")
