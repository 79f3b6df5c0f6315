"""What is known of reasoning-gym's sets, by having tried all of them; a config is checked against it without the package.

tests/domains/test_gym_sets.py compares it with the package, and says so where another version has other sets.
"""

import difflib
from collections.abc import Mapping, Sequence

VERSION = "0.1.25"  # the version whose sets these are
NAMES = tuple(
    """
    ab acre advanced_geometry aiw arc_1d arc_agi base_conversion basic_arithmetic bf binary_alternation binary_matrix
    bitwise_arithmetic boxnet caesar_cipher calendar_arithmetic chain_sum circuit_logic codeio coin_flip
    color_cube_rotation complex_arithmetic composite count_bits count_primes countdown course_schedule cryptarithm
    decimal_arithmetic decimal_chain_sum dice emoji_mystery family_relationships figlet_font fraction_simplification
    futoshiki game_of_life game_of_life_halting gcd graph_color group_anagrams gsm_symbolic intermediate_integration
    isomorphic_strings jugs kakurasu knight_swap knights_knaves largest_island lcm leg_counting letter_counting
    letter_jumble list_functions mahjong_puzzle manipulate_matrix maze mini_sudoku modulo_grid n_queens needle_haystack
    number_filtering number_format number_sequence number_sorting palindrome_generation palindrome_partitioning
    path_star polynomial_equations polynomial_multiplication pool_matrix power_function prime_factorization products
    propositional_logic puzzle24 quantum_lock ransom_note rearc rectangle_count rotate_matrix rotten_oranges rubiks_cube
    rush_hour self_reference sentence_reordering shortest_path simple_equations simple_geometry simple_integration
    sokoban spell_backward spiral_matrix string_insertion string_manipulation string_splitting string_synthesis sudoku
    survo syllogism time_intervals tower_of_hanoi tsumego word_ladder word_sequence_reversal word_sorting zebra_puzzles
    """.split()
)
# sets that are not trained on, and why
REFUSED: Mapping[str, str] = {
    "coin_flip": 'its scorer compares as many digits as the answer has, so that "0" earns 1.0 for every probability below 1',
    "composite": "it is a mixture of sets; name them, with domain.weights",
    "game_of_life_halting": "its scorer pays 1.0 for whatever is answered",
    "puzzle24": 'its scorer does not compare the numbers, so that "6*4*1*1" earns 1.0 for every task; take countdown',
}
WITHOUT_GOLD = frozenset({"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"})
# sets that are taken as they are only, and why
WITHOUT_LEVELS: Mapping[str, str] = {
    "acre": "it has none",
    "gsm_symbolic": "it has none",
    "knight_swap": "each of its levels asks for fewer squares than it allows",
    "list_functions": "it has none",
}
# levels that a set does not allow itself
BAD_LEVELS: Mapping[str, tuple[int, ...]] = {
    "caesar_cipher": (2, 3),
    "modulo_grid": (1,),
    "rubiks_cube": (4,),
    "survo": (2, 3),
}


def faults(names: Sequence[str], levels: Sequence[int]) -> list[str]:
    """Return a sentence for each set that cannot be trained on, at these levels."""
    if not names:
        return [f"domain.sets = () names no set of reasoning-gym; name some, as {NAMES[0]!r} or 'countdown'"]
    wrong = []
    for name in dict.fromkeys(names):
        if name in REFUSED:
            wrong.append(f"domain.sets: {name!r} is refused: {REFUSED[name]}")
        elif name not in NAMES:
            near = difflib.get_close_matches(name, [known for known in NAMES if known not in REFUSED], n=1)
            meant = f"did you mean {near[0]!r}?" if near else "docs/environments.md lists them"
            wrong.append(f"domain.sets: {name!r} is no set of reasoning-gym {VERSION}; {meant}")
        elif levels and name in WITHOUT_LEVELS:
            reason = WITHOUT_LEVELS[name]
            wrong.append(
                f"domain.levels = {tuple(levels)} for {name!r}: {reason}; leave the set out, or give no levels"
            )
        elif bad := [level for level in levels if level in BAD_LEVELS.get(name, ())]:
            wrong.append(
                f"domain.levels = {tuple(levels)}: {name!r} does not allow its own level {bad[0]}; take another"
            )
    if len(set(names)) < len(names):
        wrong.append(f"domain.sets = {tuple(names)} names a set twice; give it a larger domain.weights instead")
    return wrong
