"""An OpenAI-compatible endpoint over a policy: app (routes) > protocol, answers > batcher (queue and thread) > engine (device)."""
