"""Small tasks of llamalite's own in lm-evaluation-harness's YAML; `llamalite eval` takes their names."""
