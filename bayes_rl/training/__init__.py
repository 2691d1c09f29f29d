"""Callbacks of a run, checkpoint files, resource checks and exported agents.

`checkpoint_io.py` writes and verifies files. What a checkpoint holds is in `state_dict` of `bayes_rl/data` and in
`bayes_rl/agent/module.py`.
"""
