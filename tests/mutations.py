"""Faults put into the code on purpose, each of which a fast test must find.

    python tests/mutations.py                 # all; minutes, since each runs its tests in a copy of the package
    python tests/mutations.py select "turn"   # those with a word of these in their name or file

A mutation replaces the one place where its text stands. It is killed if one of its tests fails, and survives if they pass;
tests that cannot even start say nothing, and are an error. test_mutations.py keeps the texts true to the code.
"""

import dataclasses
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[1]
ORACLE = "algorithm/test_oracle.py::test_iterations_equal_the_oracle"
BUFFER, SELECTION, GRPO, OBJECTIVES = (
    f"algorithm/test_{name}.py" for name in ("buffer", "selection", "grpo", "objectives")
)
REWARDS, EPISODES, SAMPLER = "algorithm/test_rewards.py", "test_episodes.py", "policy/test_sampler.py"
STREAMS, TOOLS, BUCKETS = (
    "test_streams.py",
    "domains/test_tools.py",
    "test_train.py::test_buckets_change_nothing_but_widths",
)
SCAFFOLDS, CHOICES, GOLD = "test_scaffolds.py", "test_scaffold_choices.py", "algorithm/test_gold.py"
ADMISSION, CURRICULA, LEVELS, REPLAY, REGROUP, ROUNDS = (
    f"algorithm/test_{name}.py" for name in ("admission", "curricula", "start_levels", "replay", "regroup", "rounds")
)
EVALUATION = f"{STREAMS}::test_responses_batches_kinds_and_seeds_of_an_evaluation"


@dataclasses.dataclass(frozen=True)
class Mutation:
    """A change of one place."""

    name: str
    file: str  # below exit_jax
    old: str  # stands there once
    new: str
    tests: tuple[str, ...]  # below tests, as pytest names them


def mutations(file: str, *rows: tuple[str, str, str, str | tuple[str, ...]]) -> list[Mutation]:
    """Return the mutations of a file, from rows of name, old text, new text and tests."""
    listed = lambda tests: (tests,) if isinstance(tests, str) else tests
    return [Mutation(name, file, old, new, listed(tests)) for name, old, new, tests in rows]


MUTATIONS = [
    *mutations(
        "algorithm/iteration.py",
        ("no diversity bonus", "if config.diversity_bonus:", "if False:", ORACLE),
        (
            "the other embedding",
            'config.diversity_embedding == "policy" else',
            'config.diversity_embedding != "policy" else',
            ORACLE,
        ),
        ("advantages of the quality", "grpo.advantages(reward_BG,", "grpo.advantages(grades.quality,", ORACLE),
        ("before = 0", "before = asked.history.quality", "before = 0.0 * asked.history.quality", ORACLE),
        ("all draws move the cursor", "(~instances.from_buffer).sum(", "(instances.from_buffer | True).sum(", ORACLE),
        (
            "the sum of draws, not the mean",
            ".sum(1) / same_BB.sum(1)",
            ".sum(1)",
            (f"{BUFFER}::test_a_task_drawn_twice_takes_the_mean_score_and_one_slot",),
        ),
        (
            "what is lost stays",
            "found_B & lost_B)",
            "found_B & lost_B & False)",
            f"{BUFFER}::test_a_history_that_is_lost_leaves_the_buffer",
        ),
        (
            "a prefix inserts itself",
            "        same_BGU = same_content(children, instances.history)\n",
            "",
            f"{BUFFER}::test_a_turn_prefix_does_not_insert_itself",
        ),
        (
            "prefixes come twice",
            "or not config.self_iteration:\n        repeated",
            "or False:\n        repeated",
            f"{BUFFER}::test_a_turn_prefix_is_in_the_buffer_once",
        ),
        (
            "prefixes keep their step",
            "step=jnp.full_like(history.step, -1)",
            "step=history.step",
            (f"{BUFFER}::test_the_curriculum_alone_keeps_turn_prefixes_without_their_answer",),
        ),
        (
            "depth one off",
            "children.step + 1 <= config.max_depth",
            "children.step <= config.max_depth",
            f"{BUFFER}::test_max_depth_counts_the_responses_held",
        ),
        (
            "unfinished rollouts have children",
            "grades.insertable & (rollouts.finished[..., None] if",
            "grades.insertable & (True if",
            f"{BUFFER}::test_unchanged_and_unfinished_answers_stay_out_and_are_counted",
        ),
    ),
    *mutations(
        "algorithm/in_flight.py",
        (
            "a batch in flight is drawn again",
            "cursor=state.cursor + num_drawn",
            "cursor=state.cursor + 0 * num_drawn",
            f"{STREAMS}::test_iterations",
        ),
    ),
    *mutations(
        "algorithm/measures.py",
        (
            "age of the birth's birth",
            "mean_where(step - history.born, drawn)",
            "mean_where(step - history.step, drawn)",
            ORACLE,
        ),
    ),
    *mutations(
        "algorithm/pool.py",
        ("reference one step late", "groups, state.step + 1, admitted", "groups, state.step, admitted", ORACLE),
        (
            "reference of the old parameters",
            "mix_reference(reference, params,",
            "mix_reference(reference, policy[0],",
            ORACLE,
        ),
        (
            "all are admitted",
            "admitted if told else None",
            "None",
            f"{ADMISSION}::test_without_a_pool_what_is_not_admitted_counts_nothing",
        ),
        (
            "what waits is overwritten",
            "place = pool.count + jnp",
            "place = jnp",
            f"{ADMISSION}::test_the_pool_is_a_queue",
        ),
        ("what was learnt stays", "jnp.roll(leaf, -half, axis=0)", "leaf", f"{ADMISSION}::test_the_pool_is_a_queue"),
        (
            "the reference follows iterations",
            "pool.updates + 1, None",
            "state.step + 1, None",
            f"{ADMISSION}::test_refilling_learns_from_whole_batches_and_updates_count",
        ),
    ),
    *mutations(
        "algorithm/buffer_draws.py",
        (
            "kappa ignored",
            "jnp.where(full, config.score_temperature * jnp",
            "jnp.where(full, 1.0 * jnp",
            f"{SELECTION}::test_buffer_draws_follow_the_scores",
        ),
        (
            "ages of births",
            "step - buffer.scored",
            "step - buffer.history.born",
            f"{SELECTION}::test_staleness_mixes_in_the_time_since_an_entry_was_scored",
        ),
        ("PUCT without draws", "/ (1.0 + draws)", "/ 1.0", f"{SELECTION}::test_puct_takes_the_highest_in_order"),
        (
            "PUCT by the mean of none",
            "jnp.where(jnp.isneginf(buffer.best), quality, buffer.best)",
            "buffer.best",
            f"{SELECTION}::test_puct_takes_the_highest_in_order",
        ),
    ),
    *mutations(
        "algorithm/curricula/core.py",
        (
            "no epochs within a unit",
            "drawn[unit] + nth,",
            "nth,",
            f"{CURRICULA}::test_one_unit_draws_what_no_curriculum_draws",
        ),
        (
            "one task a batch",
            "drawn[unit] + nth,",
            "drawn[unit],",
            f"{CURRICULA}::test_one_unit_draws_what_no_curriculum_draws",
        ),
        (
            "draws from the buffer count",
            "known = ~instances.from_buffer &",
            "known =",
            f"{CURRICULA}::test_observing_counts_the_draws_and_not_the_buffers",
        ),
    ),
    *mutations(
        "algorithm/curricula/dump.py",
        (
            "a bonus for what was drawn often",
            "/ (state.count + 1.0)",
            "* (state.count + 1.0)",
            f"{CURRICULA}::test_dump_is_its_authors_window",
        ),
    ),
    *mutations(
        "algorithm/curricula/plr.py",
        (
            "highest rank for the lowest",
            "-score, jnp.inf",
            "score, jnp.inf",
            f"{CURRICULA}::test_plr_is_its_authors_sampler",
        ),
        ("no staleness", "+ config.staleness * normal(age)", "", f"{CURRICULA}::test_plr_is_its_authors_sampler"),
    ),
    *mutations(
        "algorithm/replay.py",
        (
            "the oldest stay",
            "(replay.head + good.sum(dtype=jnp.int32)) % size",
            "replay.head",
            f"{REPLAY}::test_the_ring_is_a_queue_of_good_responses",
        ),
        (
            "bad responses are kept",
            "(advantage > 0) & rollouts",
            "(advantage < 9) & rollouts",
            f"{REPLAY}::test_the_ring_is_a_queue_of_good_responses",
        ),
        (
            "no end of age",
            "(step - replay.born <= config.max_age) &",
            "",
            f"{REPLAY}::test_the_ring_is_a_queue_of_good_responses",
        ),
        (
            "another group's prompt",
            "prompt=replay.prompt[row]",
            "prompt=replay.prompt[row - 5]",
            f"{REPLAY}::test_the_ring_is_a_queue_of_good_responses",
        ),
    ),
    *mutations(
        "algorithm/regroup.py",
        (
            "advantages alone",
            "* groups.reward.std(1), 0.0)",
            "* 1.0, 0.0)",
            f"{REGROUP}::test_the_places_are_a_heap_of_the_highest_scores",
        ),
        (
            "groups with an advantage are replaced",
            "replaced = ~differ &",
            "replaced = differ &",
            f"{REGROUP}::test_the_places_are_a_heap_of_the_highest_scores",
        ),
        ("draws by chance", "jnp.log(score) +", "jnp.log(score > 0) +", f"{REGROUP}::test_draws_follow_the_scores"),
    ),
    *mutations(
        "algorithm/rounds.py",
        (
            "rounds are not emptied",
            "jnp.where(over, 0, pool.count)",
            "pool.count",
            f"{ROUNDS}::test_a_round_is_learnt_from_as_a_whole",
        ),
        (
            "no restart",
            "optimizer.init(state.initial)\n",
            "policy[2]\n",
            f"{ROUNDS}::test_a_round_is_learnt_from_as_a_whole",
        ),
        (
            "one order",
            "jax.random.fold_in(key, epoch)",
            "key",
            f"{ROUNDS}::test_a_round_is_learnt_from_as_a_whole",
        ),
    ),
    *mutations(
        "algorithm/start_levels.py",
        (
            "more than the level",
            "0.0, config.level)",
            "0.0, 1.0)",
            f"{LEVELS}::test_failed_groups_get_more_and_successes_less",
        ),
        (
            "success unnoticed",
            "- 1.0 * (reward.mean(1) >= config.target)",
            "",
            f"{LEVELS}::test_failed_groups_get_more_and_successes_less",
        ),
    ),
    *mutations(
        "algorithm/equality.py",
        (
            "fingerprints without places",
            "_mix(values ^ jnp.broadcast_to",
            "_mix(values + 0 * jnp.broadcast_to",
            f"{BUFFER}::test_equal_histories_have_equal_fingerprints_and_others_have_others",
        ),
        (
            "fingerprints with the feedback",
            "history.lengths[..., :3], axis=-1",
            "history.lengths, axis=-1",
            f"{BUFFER}::test_equal_histories_have_equal_fingerprints_and_others_have_others",
        ),
    ),
    *mutations(
        "algorithm/buffer.py",
        (
            "ties by chance",
            "num_keys=2",
            "num_keys=1",
            f"{BUFFER}::test_the_oldest_of_tied_minima_leaves_and_a_tie_is_enough_to_enter",
        ),
        (
            "draws are not counted",
            ".at[target].add(1, ",
            ".at[target].add(0, ",
            f"{BUFFER}::test_a_task_drawn_twice_takes_the_mean_score_and_one_slot",
        ),
        (
            "base tasks found by id",
            "jnp.where(is_base_task(history)[:, None], same_task, same_id)",
            "same_id",
            f"{BUFFER}::test_a_base_task_is_found_by_task_and_a_history_by_the_id_it_was_drawn_with",
        ),
    ),
    *mutations(
        "algorithm/selection.py",
        (
            "the buffer one entry late",
            ".sum() >= config.min_buffer_size",
            ".sum() > config.min_buffer_size",
            f"{SELECTION}::test_the_buffer_is_used_with_probability_p_once_it_holds_enough",
        ),
        (
            "all base draws take one task",
            "nth_base = jnp.cumsum(~from_buffer) - 1",
            "nth_base = jnp.cumsum(~from_buffer) * 0",
            f"{SELECTION}::test_base_draws_of_a_mixed_batch_take_the_next_tasks_in_turn",
        ),
        (
            "one order for all epochs",
            "first_epoch + jnp.arange(num_epochs)",
            "0 * first_epoch + jnp.arange(num_epochs)",
            f"{SELECTION}::test_base_draws_visit_each_task_once_an_epoch",
        ),
        (
            "entries in flight are fresh",
            "for drawn in in_flight:",
            "if False:",
            f"{STREAMS}::test_an_entry_in_flight_is_not_fresh",
        ),
    ),
    *mutations(
        "algorithm/grpo.py",
        ("the KL to itself", "else evaluate(reference)", "else evaluate(params)", ORACLE),
        (
            "old and new reference swapped",
            "mix * new + (1.0 - mix) * ref",
            "mix * ref + (1.0 - mix) * new",
            f"{GRPO}::test_the_reference_moves_a_share_alpha_every_m_iterations",
        ),
        (
            "the objective's groups dropped by the advantage",
            "TEACHES.get(config.objective, has_advantage)",
            "has_advantage",
            f"{OBJECTIVES}::test_groups_are_dropped_that_have_nothing_to_teach_the_objective",
        ),
        (
            "nothing left out",
            "jnp.where(batch.left_out, 0.0, objective)",
            "objective",
            f"{OBJECTIVES}::test_tokens_left_out_have_no_gradient_and_weigh_as_before",
        ),
        (
            "a teacher of all parts",
            "(teacher.prompt, teacher.length, rollouts.tokens), parts",
            "(teacher.prompt[::-1], teacher.length, rollouts.tokens), parts",
            f"{OBJECTIVES}::test_a_share_of_the_advantage_is_the_teachers_where_there_is_feedback",
        ),
        (
            "one epoch",
            "length=config.num_epochs",
            "length=1",
            f"{GRPO}::test_two_epochs_are_two_steps_with_the_old_log_probs_fixed",
        ),
        (
            "the sampler's log-probs all the same",
            "if config.recompute_logp:\n        learner",
            "if False:\n        learner",
            (f"{GRPO}::test_the_gap_between_sampler_and_learner_is_reported_and_can_be_removed",),
        ),
    ),
    *mutations(
        "algorithm/objectives.py",
        ("the larger of both bounds", "return jnp.minimum(", "return jnp.maximum(", f"{GRPO}::test_clipping_by_hand"),
        (
            "sample deviation",
            "rewards.reward.std(axis=1, keepdims=True)",
            "rewards.reward.std(axis=1, keepdims=True, ddof=1)",
            f"{GRPO}::test_advantages_by_hand",
        ),
        (
            "no gradient at NFT's bound",
            "implicit + jax.lax.stop_gradient(jnp.maximum(implicit, 1.0) - implicit)",
            "jnp.maximum(implicit, 1.0)",
            f"{OBJECTIVES}::test_the_gradient_of_nft_passes_its_bound_by_hand",
        ),
        ("a gradient of CISPO's weight", "jax.lax.stop_gradient(jnp.minimum(", "(jnp.minimum(", ORACLE),
        (
            "the batch's width for Dr. GRPO's constant",
            "1.0 / (num_rows * max_tokens)",
            "1.0 / (num_rows * mask.shape[-1])",
            ORACLE,
        ),
        (
            "k3 of the other direction",
            "jnp.exp(x) - x - 1.0",
            "jnp.exp(-x) + x - 1.0",
            f"{GRPO}::test_kl_estimators_by_hand_and_without_overflow",
        ),
    ),
    *mutations(
        "algorithm/baseline.py",
        ("a baseline that forgets", "decay * baseline + (1.0 - decay) * mean", "mean", ORACLE),
        (
            "lost prompts move it",
            "of_mode & ~lost_B[None]",
            "of_mode",
            f"{OBJECTIVES}::test_the_running_baseline_by_hand",
        ),
    ),
    *mutations(
        "workdir/checkpoint.py",
        (
            "younger fields are never saved",
            "if value is not None or not f.metadata",
            "if not f.metadata",
            "test_objective_runs.py::test_the_running_baseline_resumes_exactly",
        ),
    ),
    *mutations(
        "algorithm/covariance.py",
        (
            "as many of the band, whatever the share",
            "inside & (rank < wanted)",
            "inside",
            f"{OBJECTIVES}::test_covariance_leaves_out_a_share_of_the_tokens_in_the_band",
        ),
    ),
    *mutations(
        "algorithm/distillation.py",
        (
            "the student teaches",
            "teacher_logp - logp, 0.0",
            "logp - teacher_logp, 0.0",
            f"{OBJECTIVES}::test_distillation_is_the_gradient_of_the_divergence_from_the_teacher",
        ),
        (
            "taught without feedback",
            "(last.lengths[..., FEEDBACK] > 0) & (length",
            "(length",
            f"{OBJECTIVES}::test_the_teacher_reads_the_last_child_with_its_feedback",
        ),
    ),
    *mutations(
        "algorithm/learnability.py",
        ("S of the other outcome", '"quality": quality_variance', '"quality": reward_variance', ORACLE),
        (
            "S is the deviation",
            "jnp.var(outcome, axis=1)",
            "jnp.std(outcome, axis=1)",
            f"{REWARDS}::test_learnability_is_the_population_variance",
        ),
        (
            "diverge steps are paid the gain",
            "(mode == IMPROVE)[:, None]",
            "(mode > 0)[:, None]",
            f"{REWARDS}::test_only_improve_steps_are_paid_by_kind_and_an_invalid_response_is_paid_nothing",
        ),
    ),
    *mutations(
        "algorithm/diversity.py",
        (
            "the minimum taken off",
            "jnp.where(varied, distance / ",
            "jnp.where(varied, (distance - distance.min(axis=1, keepdims=True)) / ",
            f"{REWARDS}::test_diversity_may_exceed_one",
        ),
        ("no cap", "jnp.minimum(d, cap)", "d", f"{REWARDS}::test_diversity_may_exceed_one"),
    ),
    *mutations(
        "step/policy.py",
        (
            "training samples at temperature 1",
            "config.algorithm.temperature",
            "1.0 + 0.0 * config.algorithm.temperature",
            BUCKETS,
        ),
    ),
    *mutations(
        "step/device.py",
        (
            "the learner at temperature 1",
            "config.algorithm.temperature, config.run.token_chunk",
            "1.0, config.run.token_chunk",
            BUCKETS,
        ),
        (
            "the rollouts' width for Dr. GRPO's constant",
            "max_tokens=self.domain.max_tokens,\n",
            "max_tokens=rollouts.tokens.shape[-1],\n",
            BUCKETS,
        ),
        (
            "one sampling key for all iterations",
            'stream(state.key, "sample", state.step)',
            'stream(state.key, "sample", 0)',
            f"{STREAMS}::test_iterations",
        ),
    ),
    *mutations(
        "evaluation/programs.py",
        ("one key for all k", "step_key = jax.random.fold_in(key, k)", "step_key = key", EVALUATION),
        (
            "one key for all seeds",
            "jax.random.key(config.eval.seed), config.seed)",
            "jax.random.key(config.eval.seed), 0)",
            EVALUATION,
        ),
    ),
    *mutations(
        "evaluation/chains.py",
        ("one key for all batches", "jax.random.fold_in(root, index)", "root", EVALUATION),
        ("one key for all scaffolds", "scaffold.stream)", "0)", EVALUATION),
    ),
    *mutations(
        "evaluation/episodes.py",
        (
            "one key for all k of episodes",
            "sampling_key(config), start), k)",
            "sampling_key(config), start), 0)",
            f"{STREAMS}::test_batches_and_steps_of_evaluated_episodes",
        ),
    ),
    *mutations(
        "evaluation/scaffolds/plain.py",
        ("restarts go on", "k % settings.restart_every == 0", "k == 0", "test_evaluate.py::test_restarts_begin_anew"),
        (
            "a search that keeps the old of two as good",
            "node, 0).max()",
            "node, 99).min()",
            "test_greedy.py::test_the_best_is_gone_on_from_the_newest_where_some_tie_and_any_first_response",
        ),
    ),
    *mutations(
        "evaluation/scaffolds/scaffold.py",
        (
            "choices that are drawn alike at each k",
            "jax.random.fold_in(jax.random.fold_in(key, CHOICES), k)",
            "jax.random.fold_in(key, CHOICES)",
            f"{CHOICES}::test_choices_of_chains_and_steps_have_keys_of_their_own",
        ),
        (
            "choices with the keys of responses",
            "jax.random.fold_in(jax.random.fold_in(key, CHOICES), k)",
            "jax.random.fold_in(key, k)",
            f"{CHOICES}::test_choices_of_chains_and_steps_have_keys_of_their_own",
        ),
    ),
    *mutations(
        "evaluation/scaffolds/archive.py",
        (
            "a base task that holds no solution has a score",
            "jnp.where(tasks.step >= 0, tasks.quality, -jnp.inf)",
            "tasks.quality",
            f"{CHOICES}::test_an_archive_knows_its_tree",
        ),
        (
            "invalid responses do not fail",
            "self.valid & (self.score > 0)",
            "self.score > 0",
            f"{CHOICES}::test_an_archive_knows_its_tree",
        ),
    ),
    *mutations(
        "evaluation/scaffolds/tree_search.py",
        ("UCT of other visits", "visits[parent], 1", "visits, 1", f"{CHOICES}::test_uct_is_the_textbooks"),
        (
            "unvisited children first in AIRA's search",
            "UNVISITED_LAST)",
            "jnp.inf)",
            f"{CHOICES}::test_airas_tree_search_is_its_solvers",
        ),
    ),
    *mutations(
        "evaluation/scaffolds/aide.py",
        (
            "debugging stops one early",
            "debug_depth <= debug_depth",
            "debug_depth < debug_depth",
            f"{CHOICES}::test_aide_drafts_then_debugs_or_improves",
        ),
    ),
    *mutations(
        "evaluation/scaffolds/evolution.py",
        ("no novelty", " - jnp.log1p(archive.children)", "", f"{CHOICES}::test_shinkas_parents_by_score_and_children"),
    ),
    *mutations(
        "evaluation/scaffolds/map_elites.py",
        ("elites are the newest", "older = ", "older = ~", f"{CHOICES}::test_map_elites_prefers_the_best_of_each_cell"),
    ),
    *mutations(
        "evaluation/hosted.py",
        (
            "the parents that are stored are not read",
            'if kept and "from" in kept[0]:',
            "if False:",
            "test_greedy.py::test_a_search_that_draws_was_cut_off_and_goes_on",
        ),
    ),
    *mutations(
        "evaluation/scaffolds/reports.py",
        (
            "votes of all samples together",
            "(most * samples, -1)",
            "(most, -1)",
            f"{SCAFFOLDS}::test_best_of_n_of_a_hand_made_case",
        ),
    ),
    *mutations(
        "evaluation/figures.py",
        (
            "pass@k as if with replacement",
            "1.0 - math.comb(total - c, j) / math.comb(total, j)",
            "1.0 - (1.0 - c / total) ** j",
            f"{SCAFFOLDS}::test_estimates_from_independent_responses_are_means_over_all_sets",
        ),
    ),
    *mutations(
        "step/episodes.py",
        (
            "one key for all turns",
            "turn_key = jax.random.fold_in(key, turn)",
            "turn_key = key",
            f"{STREAMS}::test_turns_and_rows_of_an_episode",
        ),
        (
            "one key for all k of a turn",
            "jax.random.fold_in(jax.random.fold_in(key, turn), k)",
            "jax.random.fold_in(key, turn)",
            f"{STREAMS}::test_self_iterations_of_a_turn",
        ),
        ("lanes share keys", "first_prompt * group_size", "0 * first_prompt", f"{EPISODES}::test_lanes_change_nothing"),
        (
            "turns before do not count",
            "turns_left = environment.max_turns - ",
            "turns_left = environment.max_turns - 0 * ",
            f"{EPISODES}::test_turns_before_count",
        ),
        (
            "observations are the policy's",
            'self.arrays["mask"][b, g, start:stop] = True',
            'self.arrays["mask"][b, g, :stop] = True',
            f"{EPISODES}::test_episodes_follow_the_rules",
        ),
    ),
    *mutations(
        "policy/decode.py",
        ("one key for all positions", "(0, None))(row_keys, t)", "(0, None))(row_keys, 0 * t)", SAMPLER),
        (
            "rows share a key",
            "rows = first_row + jnp.arange(batch * group_size)",
            "rows = first_row + 0 * jnp.arange(batch * group_size)",
            f"{STREAMS}::test_turns_and_rows_of_an_episode",
        ),
    ),
    *mutations(
        "policy/sampler.py",
        (
            "the learner ignores the temperature",
            "decoder.logits(config, params, hidden) / temperature",
            "decoder.logits(config, params, hidden) / 1.0",
            SAMPLER,
        ),
    ),
    *mutations(
        "domains/tool_use/domain.py",
        (
            "the last request for the first",
            "episode.verdicts[0].success",
            "episode.verdicts[-1].success",
            f"{TOOLS}::test_the_first_request_is_the_first",
        ),
    ),
    *mutations(
        "domains/text/transcripts.py",
        (
            "later turns are iterates, too",
            "+ 1 if u == 0 else 0",
            "+ 1",
            f"{TOOLS}::test_a_step_yields_its_turn_and_all_later_ones",
        ),
        (
            "a replay that differs is taken",
            "found[b] = episode if same and not episode.how else None",
            "found[b] = episode",
            f"{TOOLS}::test_what_cannot_be_played_again_is_lost",
        ),
    ),
    *mutations(
        "domains/tool_use/episode.py",
        (
            "prefixes end a turn late",
            "turns=self.turns[:turn]",
            "turns=self.turns[: turn + 1]",
            f"{TOOLS}::test_an_environment_is_brought_to_where_a_history_starts",
        ),
        (
            "all requests are made",
            "max(last - episode.left_out, 1)",
            "last",
            "domains/test_tools_starts.py::test_fewer_requests_are_made_of_which_children_know_nothing",
        ),
    ),
    *mutations(
        "algorithm/gold.py",
        (
            "shares rounded by float32",
            "level * length - 1e-3",
            "level * length",
            f"{GOLD}::test_shares_are_those_of_exact_numbers",
        ),
        ("hints beyond the prompt", "ok & (sum(shown) <= width)", "ok", f"{GOLD}::test_starts_by_hand"),
    ),
    *mutations(
        "domains/text/scored.py",
        (
            "prefixes are not graded",
            "np.concatenate([begun[i // group], tokens])",
            "tokens",
            "domains/test_text_starts.py::test_a_response_is_graded_with_the_prefix_that_it_began_with",
        ),
    ),
    *mutations(
        "domains/sudoku/starts.py",
        (
            "puzzles of held-out solutions",
            "if puzzles.split_of(grid.tolist()) == split",
            "if split",
            "domains/test_sudoku_starts.py::test_nothing_of_other_splits_is_made",
        ),
    ),
    *mutations(
        "domains/sudoku/domain.py",
        (
            "children keep the hint",
            "jnp.where(puzzle != task, 0, edited)",
            "edited",
            "domains/test_sudoku_starts.py::test_children_of_a_hint_are_of_the_task_itself_and_hold_own_digits_alone",
        ),
    ),
]


def copy_code(folder: pathlib.Path) -> None:
    """Copy what tests need of the repository."""
    for name in ("exit_jax", "tests", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)


def survives(mutation: Mutation, folder: pathlib.Path) -> bool:
    """Return whether its tests pass in a copy of the repository's code with the mutation.

    Raises:
      RuntimeError: if they could not run.
    """
    copy_code(folder)
    path = folder / "exit_jax" / mutation.file
    path.write_text(path.read_text().replace(mutation.old, mutation.new))
    tests = [str(folder / "tests" / test) for test in mutation.tests]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(
        command, cwd=folder, env=os.environ | {"PYTHONPATH": str(folder)}, capture_output=True, text=True
    )
    if done.returncode not in (0, 1):
        raise RuntimeError(
            f"{mutation.file}: {mutation.name}: its tests did not run:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        )
    return done.returncode == 0


def main(words: list[str]) -> int:
    """Try the mutations that have one of the words, or all; returns how many survive."""
    chosen = [m for m in MUTATIONS if not words or any(word in f"{m.file} {m.name}" for word in words)]
    survivors = 0
    for mutation in chosen:
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            alive = survives(mutation, pathlib.Path(folder))
        survivors += alive
        secs = time.monotonic() - started
        print(f"{'SURVIVES' if alive else 'killed':9}{secs:5.0f} s  {mutation.file}: {mutation.name}", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} killed")
    return survivors


if __name__ == "__main__":
    sys.exit(bool(main(sys.argv[1:])))
