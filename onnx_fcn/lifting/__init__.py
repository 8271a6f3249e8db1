"""The vocabulary of rules: lifted tensors, the facts of a walk, and the operations that a rule may use at a node."""
