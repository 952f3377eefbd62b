"""One module for each verb, `main(argv) -> int`; `run`, `sweep` and `hydra_app` are what is typed without one.

`sweeps` is the verb `sweep`. The others are what several of these share: `arguments`, `usage` and `target` for what is
typed, `prepare` on the way to a plan and a run, `drive`, `array` and `trial` for sweeps.
"""
