"""Sudoku by short edit scripts: no response can solve a puzzle, iteration must."""
