"""Small tasks in lm-evaluation-harness's YAML, with data of our own; `llamalite eval` knows them by name."""
