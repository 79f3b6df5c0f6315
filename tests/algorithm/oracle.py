"""Iterations of ExIt in plain Python and NumPy, written from the paper; nothing of the project is imported.

What is random comes in as it was drawn: instances, rollouts, grades. All else follows: rewards and S, advantages and the
diversity bonus, the GRPO loss and its gradient by hand, AdamW, the reference policy, and the buffer of Algorithm 1.
"""

import dataclasses
import itertools

import numpy as np


@dataclasses.dataclass(frozen=True)
class Held:
    """A partial history: its pieces in tokens, and where it stands."""

    context: tuple
    request: tuple
    solution: tuple
    feedback: tuple
    task: int
    turn: int
    step: int
    quality: float
    born: int = 0
    parent: int = -1
    id: int = -1

    @property
    def key(self):
        """What makes two draws draws of one history: a base task's number, or the entry's."""
        return ("base", self.task) if self.is_base else ("entry", self.id)

    @property
    def is_base(self):
        return self.step < 0 and self.turn == 0


@dataclasses.dataclass
class Slot:
    """An entry of the buffer."""

    held: Held
    score: float
    num_draws: int


@dataclasses.dataclass
class Rollout:
    """A response to an instance, and what its domain says of it."""

    tokens: list  # all of them
    own: list  # whether the policy sampled the token
    old_logp: list
    finished: bool
    quality: float
    valid: bool
    vector: np.ndarray  # for the diversity bonus
    children: list  # a Held a turn
    preference: float  # a number of its own, which is compared where one rollout of a group is taken by lot


@dataclasses.dataclass
class Instance:
    """What one prompt of the batch trains on."""

    held: Held
    mode: str
    from_buffer: bool
    prompt: list
    rollouts: list
    lost: bool  # its history could not be brought about again: no response is worth anything


class Policy:
    """Softmax over the next token, of W by the token before and U by the sum of the prompt."""

    def __init__(self, W, U):
        self.W, self.U = np.array(W, float), np.array(U, float)

    def rows(self, prompt, tokens):
        """Return for each token which row of W, which of U, and the probabilities that it was drawn from."""
        u = sum(prompt) % len(self.U)
        for t in range(len(tokens)):
            w = prompt[-1] if t == 0 else tokens[t - 1]
            logits = self.W[w] + self.U[u]
            weight = np.exp(logits - logits.max())
            yield w, u, weight / weight.sum()

    def score(self, prompt, tokens):
        """Return log-probs and entropies, nats a token."""
        each = [p for *_, p in self.rows(prompt, tokens)]
        return [np.log(p[token]) for p, token in zip(each, tokens)], [-(p * np.log(p)).sum() for p in each]

    def gradient(self, prompt, tokens, of_logp, of_entropy):
        """Return the gradient to W and U of a sum over tokens, by its slopes in their log-probs and entropies."""
        dW, dU = np.zeros_like(self.W), np.zeros_like(self.U)
        for t, (w, u, p) in enumerate(self.rows(prompt, tokens)):
            entropy = -(p * np.log(p)).sum()
            slope = of_logp[t] * (np.eye(len(p))[tokens[t]] - p) - of_entropy[t] * p * (np.log(p) + entropy)
            dW[w] += slope
            dU[u] += slope
        return [dW, dU]


class AdamW:
    """Adam with decoupled decay (arXiv 1711.05101) after clipping by the global norm; rate rises, then falls by a cosine."""

    def __init__(self, rate, warmup, decay, b1, b2, weight_decay, max_norm):
        self.rate, self.warmup, self.decay, self.b1, self.b2 = rate, warmup, decay, b1, b2
        self.weight_decay, self.max_norm, self.count = weight_decay, max_norm, 0
        self.m = self.v = 0.0

    def rate_now(self):
        if self.count < self.warmup:
            return self.rate * self.count / self.warmup
        if not self.decay:
            return self.rate
        share = min((self.count - self.warmup) / (self.decay - self.warmup), 1.0)
        return self.rate * (1 + np.cos(np.pi * share)) / 2

    def step(self, params, grads):
        """Return the new parameters; both are flat."""
        norm = np.sqrt((grads**2).sum())
        grads = grads * min(1.0, self.max_norm / norm) if norm > 0 else grads
        rate, self.count = self.rate_now(), self.count + 1
        self.m = self.b1 * self.m + (1 - self.b1) * grads
        self.v = self.b2 * self.v + (1 - self.b2) * grads**2
        m, v = self.m / (1 - self.b1**self.count), self.v / (1 - self.b2**self.count)
        return params - rate * (m / (np.sqrt(v) + 1e-8) + self.weight_decay * params)


class Oracle:
    """The state of a run, and what an iteration makes of it."""

    def __init__(self, config, policy, optimizer, max_tokens):
        self.config, self.policy, self.optimizer, self.max_tokens = config, policy, optimizer, max_tokens
        self.reference = Policy(policy.W, policy.U)
        self.slots = [None] * config.buffer_size
        self.next_id, self.iteration, self.base_drawn = 0, 0, []
        self.trained_on, self.starts = set(), []
        self.baseline = {"base": 0.0, "improve": 0.0, "diverge": 0.0}

    # Selection

    def entries(self):
        return [slot for slot in self.slots if slot]

    def find(self, held):
        """Return the entry of a history, by its id; a base task, which holds at most one, by its task."""
        return next((slot for slot in self.entries() if slot.held.key == held.key), None)

    def may_draw(self, instances):
        """Check what a batch may be, given the buffer and the base tasks drawn before; all it leaves open is chance."""
        ready = len(self.entries()) >= self.config.min_buffer_size
        for instance in instances:
            held = instance.held
            if instance.from_buffer:
                assert ready, "the buffer does not hold enough yet"
                assert any(held == slot.held for slot in self.entries()), "what is drawn is an entry as it stands"
            else:
                assert held.is_base
                self.base_drawn.append(held.task)
            if held.step < 0:
                assert instance.mode == "base"
            else:
                assert instance.mode in (("improve", "diverge") if self.config.divergence_prob else ("improve",))

    # Learning

    def learn(self, instances):
        """Take one iteration from a batch; returns its metrics."""
        c = self.config
        reward = [[self.reward(i, r) for r in i.rollouts] for i in instances]
        quality = [[r.quality for r in i.rollouts] for i in instances]
        outcome = {"quality": quality, "reward": reward}[c.learnability_of]
        score = [np.mean([(x - np.mean(group)) ** 2 for x in group]) for group in outcome]
        A, spread = self.advantages(instances, reward)
        metrics = self.update(instances, A)
        self.move_baseline(instances, reward)
        self.iteration += 1
        if c.kl_coef and self.iteration % c.reference_every == 0:
            mix = lambda new, old: c.reference_mix * new + (1 - c.reference_mix) * old
            self.reference = Policy(mix(self.policy.W, self.reference.W), mix(self.policy.U, self.reference.U))
        metrics |= self.batch_metrics(instances, reward, score)
        metrics |= self.expand(instances, score)
        self.trained_on |= {i.held.key for i in instances}
        self.starts += [i.held.id for i in instances if i.held.step >= 0]
        return metrics | {"diversity_max": spread, "distinct_entries": len(self.trained_on)}

    def reward(self, instance, rollout):
        """App. A: improve steps may be paid the share of the possible gain; all others the plain quality."""
        before, after, kind = instance.held.quality, rollout.quality, self.config.reward
        if not rollout.valid:
            return 0.0
        if instance.mode != "improve" or kind == "quality":
            return after
        if before == 1.0:
            return after if kind == "improve_or_keep" else 0.0
        return max(0.0, (after - before) / (1.0 - before))

    def advantages(self, instances, reward):
        """§2.2 and eq. 6."""
        c, everything = self.config, [x for group in reward for x in group]
        A, largest = [], 0.0
        for instance, group in zip(instances, reward):
            std = {"group": np.std(group), "batch": np.std(everything), "none": 1.0 - c.advantage_eps}
            if c.advantage_norm == "ema":
                row = [x - self.baseline[instance.mode] for x in group]
            elif len(set(group)) == 1:
                row = [0.0] * len(group)
            else:
                mean = np.mean(group)
                total = mean if c.advantage_norm == "mean" else std[c.advantage_norm] + c.advantage_eps
                row = [(x - mean) / total for x in group]
            vectors = np.array([r.vector for r in instance.rollouts], float)
            distance = np.sqrt(((vectors - vectors.mean(0)) ** 2).sum(1))
            span = distance.max() - distance.min()
            d = distance / span if span > 1e-4 * distance.max() else np.ones(len(row))
            d = np.minimum(d, c.diversity_cap)
            largest = max(largest, d.max())
            A.append([a * x for a, x in zip(row, d)] if c.diversity_bonus else row)
        return A, largest

    def move_baseline(self, instances, reward):
        """SPIRAL's running baseline, by the batch's mean of each mode."""
        for mode in self.baseline:
            paid = [x for i, group in zip(instances, reward) for x in group if i.mode == mode and not i.lost]
            if paid:
                self.baseline[mode] += (1 - self.config.baseline_decay) * (np.mean(paid) - self.baseline[mode])

    def right(self, rollout):
        return rollout.valid and rollout.quality >= self.config.right_at

    def teaches(self, instance, A):
        """Is there something to learn from a group, by the objective?"""
        right, differ = [self.right(r) for r in instance.rollouts], any(a != 0 for a in A)
        kept = {"nft": any(right) and not all(right), "rft": any(right), "ail": differ or not all(right)}
        return kept.get(self.config.objective, differ)

    def update(self, instances, A):
        """Take the epochs' optimiser steps; the loss and the gradient's norm are means over them."""
        c, metrics = self.config, {"loss": [], "grad_norm": []}
        rows = [(i, r, a) for i, group in zip(instances, A) for r, a in zip(i.rollouts, group)]
        dropped = [
            c.zero_variance == "drop" and not self.teaches(i, group) for i, group in zip(instances, A) for _ in group
        ]
        num_rows = max(dropped.count(False), 1)
        kept = [
            [t for t, own in enumerate(r.own) if own and not out and (r.finished or not c.mask_overlong)]
            for (_, r, _), out in zip(rows, dropped)
        ]
        num_tokens = max(sum(map(len, kept)), 1)
        share = {
            "sequence_mean": lambda ts: 1 / (num_rows * len(ts)),
            "token_mean": lambda _: 1 / num_tokens,
            "dr_grpo": lambda _: 1 / (num_rows * self.max_tokens),
        }[c.aggregation]
        old = [self.policy.score(i.prompt, r.tokens)[0] if c.recompute_logp else r.old_logp for i, r, _ in rows]
        for _ in range(c.num_epochs):
            loss, grads = 0.0, [0.0, 0.0]
            for (i, r, a), ts, old_logp in zip(rows, kept, old):
                if ts:
                    rate = np.mean([self.right(other) for other in i.rollouts])
                    judged = a, self.right(r), rate
                    value, more = self.of_row(i.prompt, r.tokens, ts, old_logp, judged, share(ts))
                    loss, grads = loss + value, [g + m for g, m in zip(grads, more)]
            metrics["loss"].append(loss)
            shapes = self.policy.W.shape, self.policy.U.shape
            flat = np.concatenate([np.broadcast_to(g, s).ravel() for g, s in zip(grads, shapes)])
            metrics["grad_norm"].append(np.sqrt((flat**2).sum()))
            params = np.concatenate([self.policy.W.ravel(), self.policy.U.ravel()])
            W, U = np.split(self.optimizer.step(params, flat), [self.policy.W.size])
            self.policy = Policy(W.reshape(shapes[0]), U.reshape(shapes[1]))
        return {name: np.mean(values) for name, values in metrics.items()}

    def of_token(self, judged, x, logp, anchor):
        """Return the objective of a token, and its slopes in x = log ρ, which tokens may share, and in log π."""
        c, (a, right, rate) = self.config, judged
        ratio = np.exp(x)
        if c.objective == "cispo":
            bounded = min(ratio, 1 + c.clip_high) * a
            return bounded * logp, 0.0, bounded
        if c.objective == "rft":
            return (logp, 0.0, 1.0) if right else (0.0, 0.0, 0.0)
        if c.objective == "nft":
            p = min(max(rate, 0.02), 0.98)
            if right:
                return (1 - p) * x, 1 - p, 0.0
            other = max((1 - p * ratio) / (1 - p), 1.0)
            return c.negative_weight * (1 - p) * np.log(other), -c.negative_weight * p * ratio / other, 0.0
        if c.objective == "ail" and not right:
            odds = np.exp(logp - anchor)
            return -c.negative_weight * np.log(1 + odds), 0.0, -c.negative_weight * odds / (1 + odds)
        clipped = min(max(ratio, 1 - c.clip_low), 1 + c.clip_high)
        # where the bound holds, nothing moves it
        return min(ratio * a, clipped * a), ratio * a if ratio * a <= clipped * a else 0.0, 0.0

    def of_row(self, prompt, tokens, ts, old_logp, judged, weight):
        """Return what a response adds to the loss, and to its gradient: -objective + β KL - c H a token."""
        c = self.config
        logp, entropy = self.policy.score(prompt, tokens)
        reference, _ = self.reference.score(prompt, tokens)
        of_logp, of_entropy, value = [0.0] * len(tokens), [0.0] * len(tokens), 0.0
        log_ratio = {t: logp[t] - old_logp[t] for t in ts}
        groups = [(ts, np.mean(list(log_ratio.values())))] if c.ratio_level == "sequence" else []
        groups = groups or [([t], log_ratio[t]) for t in ts]
        for members, x in groups:  # tokens that share a ratio
            each = [self.of_token(judged, x, logp[t], reference[t] if c.kl_coef else old_logp[t]) for t in members]
            for t, (gain, of_x, of_own) in zip(members, each):
                value -= weight * gain
                of_logp[t] -= weight * of_own
                for other in members:  # each of n members has 1/n of each one's log ratio
                    of_logp[other] -= weight * of_x / len(members)
        for t in ts:
            x = min(max(reference[t] - logp[t], -40.0), 40.0)
            kl = {"k1": -x, "k2": x * x / 2, "k3": np.exp(x) - x - 1}[c.kl_estimator]
            value += weight * (c.kl_coef * kl - c.entropy_coef * entropy[t])
            of_logp[t] += weight * c.kl_coef * {"k1": 1.0, "k2": -x, "k3": 1 - np.exp(x)}[c.kl_estimator]
            of_entropy[t] -= weight * c.entropy_coef
        return value, self.policy.gradient(prompt, tokens, of_logp, of_entropy)

    # Expansion

    def insert(self, held, score, num_draws=0):
        """Take a free slot, else the oldest of the lowest scores if ours is as high."""
        held, self.next_id = dataclasses.replace(held, id=self.next_id), self.next_id + 1
        place = min(range(len(self.slots)), key=lambda i: (self.slots[i] is not None, self.rank(i)))
        if self.slots[place] is None or score >= self.slots[place].score:
            self.slots[place] = Slot(held, score, num_draws)
        return held.id

    def rank(self, i):
        return (self.slots[i].score, self.slots[i].held.id) if self.slots[i] else (0, i)

    def expand(self, instances, score):
        """Algorithm 1, "Buffer update": S to what was drawn, then base tasks, then the children, one after the other."""
        by_key = {}
        for instance, s in zip(instances, score):
            by_key.setdefault(instance.held.key, []).append((instance.held, s))
        mean = {key: np.float32(np.mean([s for _, s in draws])) for key, draws in by_key.items()}
        gone = {instance.held.key for instance in instances if instance.lost}
        number, found = {}, {}
        for key, draws in by_key.items():
            found[key] = slot = self.find(draws[0][0])
            number[key] = slot.held.id if slot else key[1]
            if slot and key in gone:
                self.slots[self.slots.index(slot)] = None
            elif slot:
                slot.score, slot.num_draws = mean[key], slot.num_draws + len(draws)
        before = [slot.held for slot in self.entries()]
        newcomers = []
        for key, draws in by_key.items():
            if key[0] == "base" and not found[key] and key not in gone:
                number[key] = self.next_id + len(newcomers)
                newcomers.append((dataclasses.replace(draws[0][0], born=self.iteration), mean[key], len(draws)))
        for instance in instances:
            key = instance.held.key
            for child in self.children(instance, before):
                child = dataclasses.replace(child, born=self.iteration, parent=number[key])
                if self.once():
                    if any(equal(child, other) for other in [*before, *(held for held, *_ in newcomers)]):
                        continue
                newcomers.append((child, mean[key], 0))
        ids = [self.insert(*newcomer) for newcomer in newcomers]
        new = {slot.held.id for slot in self.entries()} & set(ids)
        counts = [sum(found[key] is not None and (key in gone) == lost for key in found) for lost in (False, True)]
        return {"buffer/inserted": len(new), "buffer/rescored": counts[0], "buffer/lost": counts[1]}

    def once(self):
        """Are equal children inserted once? Prefixes without a response are, as base tasks are."""
        return not self.config.self_iteration or self.config.children == "distinct"

    def children(self, instance, held):
        """Return which histories an instance's rollouts leave, in order."""
        c, by_rollout = self.config, []
        for rollout in instance.rollouts:
            kept = [child for child in rollout.children if rollout.finished and child]
            if not c.self_iteration:
                bare = {"solution": (), "feedback": (), "step": -1, "quality": 0.0}
                kept = [dataclasses.replace(child, **bare) for child in kept if child.turn > 0]
            kept = [child for child in kept if not equal(child, instance.held)]
            by_rollout.append([child for child in kept if not c.max_depth or child.step + 1 <= c.max_depth])
        if c.children == "improved":
            rose = [rollout.quality > instance.held.quality for rollout in instance.rollouts]
            by_rollout = [kept if better else [] for kept, better in zip(by_rollout, rose)]
        if c.children in ("best", "one"):
            prefer = lambda r: r.quality if c.children == "best" else r.preference
            some = [g for g in range(len(by_rollout)) if by_rollout[g]]
            best = max(some, key=lambda g: (prefer(instance.rollouts[g]), -g), default=None)
            return by_rollout[best] if some else []
        return list(itertools.chain(*by_rollout))

    # Metrics

    def batch_metrics(self, instances, reward, score):
        flat = [r for i in instances for r in i.rollouts]
        drawn = [i for i in instances if i.from_buffer]
        mean = lambda values: np.mean(values) if (values := list(values)) else np.nan
        metrics = {
            "reward": mean(x for group in reward for x in group),
            "quality": mean(r.quality for r in flat),
            "exact": mean(r.quality >= 1.0 for r in flat),
            "invalid": mean(not r.valid for r in flat),
            "unfinished": mean(not r.finished for r in flat),
            "response_length": mean(sum(r.own) for r in flat),
            "learnability": mean(score),
            "zero_variance_groups": mean(len(set(group)) == 1 for group in reward),
            "from_buffer": mean(i.from_buffer for i in instances),
            "start_depth": mean(i.held.step + 2 for i in instances),
            "start_turn": mean(i.held.turn + 1 for i in instances),
            "sampled_from_iteration": mean([i.held.born for i in drawn]),
            "sampled_age": mean([self.iteration - i.held.born for i in drawn]),
        }
        for mode in ("base", "improve", "diverge"):
            of_mode = [(i, s) for i, s in zip(instances, score) if i.mode == mode]
            metrics[f"share/{mode}"] = len(of_mode) / len(instances)
            metrics[f"quality/{mode}"] = mean([r.quality for i, _ in of_mode for r in i.rollouts])
            metrics[f"learnability/{mode}"] = mean([s for _, s in of_mode])
        return metrics

    def buffer_metrics(self):
        entries, held = self.entries(), [slot.held for slot in self.entries()]
        scores = [float(slot.score) for slot in entries]
        return {
            "buffer/fill": len(entries) / len(self.slots),
            "buffer/score_min": min(scores),
            "buffer/score_median": np.median(scores),
            "buffer/score_max": max(scores),
            "buffer/age": np.mean([self.iteration - h.born for h in held]),
            "buffer/depth": np.mean([h.step + 1 for h in held]),
            "buffer/never_drawn": np.mean([slot.num_draws == 0 for slot in entries]),
        }


def equal(child, other):
    """Are two histories the same task instance? Feedback is no part of it: it is said of the solution."""
    what = lambda h: (h.task, h.turn, h.context, h.request, h.solution)
    return what(child) == what(other)
