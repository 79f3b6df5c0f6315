"""The paper and nothing else: pure functions over arrays; no files, meshes, jit or models."""
