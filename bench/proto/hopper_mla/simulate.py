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


def run(stages, rope_stages, pieces, requests, seed):
    rng = random.Random(seed)
    entries = []
    for blocks, q in requests:
        entries += ["q"] * q + [f"k{left}" for left in range(blocks, 0, -1)]
    full, free = [[[[Barrier(1) for _ in range(pieces)] for _ in range(2)] for _ in range(stages)] for _ in range(2)]
    rope_full, s_done = [[Barrier(1) for _ in range(rope_stages)] for _ in range(2)]
    p_full = [[Barrier(2), Barrier(2)] for _ in range(rope_stages)]   # score and one output warpgroup
    latent = [[[None] * pieces, [None] * pieces] for _ in range(stages)]
    rope = [None] * rope_stages

    def load_latent(n, h, c):
        yield "step"
        latent[n % stages][h][c] = n
        full[n % stages][h][c].arrive()

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
            if owing is not None and not full[n % stages][0][0].passed(n // stages & 1):
                publish(owing)
                owing = None
            for i in range(2 * pieces):
                yield full[n % stages][i % 2][i // 2], n // stages & 1
                assert latent[n % stages][i % 2][i // 2] == n, (n, latent)
            yield "step"
            if owing is not None:
                publish(owing)
                owing = None
            yield rope_full[n % rope_stages], n // rope_stages & 1
            assert rope[n % rope_stages] == ("rope", n)
            yield "step"
            assert latent[n % stages] == [[n] * pieces] * 2, (n, latent)
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
            agents.extend(load_latent(i, h, c) for c in range(pieces))
            if h == 1 and i < rope_stages:
                agents.append(load_rope(i))
        for n, e in enumerate(entries):
            p_full[n % rope_stages][h].arrive()
            yield p_full[n % rope_stages][h], n // rope_stages & 1
            for c in range(pieces):
                yield "step"
                assert latent[n % stages][h][c] == n
                if e != "q":
                    assert rope[n % rope_stages] == ("p", n), (n, rope)
                yield "step"
                assert latent[n % stages][h][c] == n
                free[n % stages][h][c].arrive()
                if c == pieces - 1 and h == 1 and n + rope_stages < len(entries):   # before the last refill
                    yield free[n % stages][0][-1], n // stages & 1
                    yield free[n % stages][1][-1], n // stages & 1
                    agents.append(load_rope(n + rope_stages))
                if n + stages < len(entries):
                    yield free[n % stages][h][c], n // stages & 1
                    agents.append(load_latent(n + stages, h, c))

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
    shape = stages, min(stages, rng.choice((2, 3))), rng.choice((1, 2, 3)), [(rng.randint(1, 9), rng.randint(1, 2)) for _ in range(rng.randint(1, 5))]
    try:
        run(*shape, seed)
    except AssertionError as e:
        sys.exit(f"{e!r} with stages, rope stages, pieces, (blocks, query entries) = {shape}, seed {seed}")
print("no deadlock, no stale read in", runs, "runs")
