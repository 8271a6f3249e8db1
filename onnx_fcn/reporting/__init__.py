"""What a conversion reports to people and programs: costs, the report as text and JSON, explanations of nodes."""
