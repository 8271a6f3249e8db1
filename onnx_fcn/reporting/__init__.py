"""What people and programs read of a conversion: costs, the report, its texts and its JSON, explanations of nodes."""
