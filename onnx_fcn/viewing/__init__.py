"""Heat maps, class maps, and a page to explore them. Requires the extra `view`."""
