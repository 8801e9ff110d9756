"""From a prompt to its answer, over one context. Internal: users import from `llamalite`."""
