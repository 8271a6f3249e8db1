"""The language of rules: tensors at every position at once, the facts of a walk, and what a rule may do at a node."""
