"""An OpenAI-compatible endpoint over a policy: app, the routes, then answers, the batcher's queue and thread, the engine."""
