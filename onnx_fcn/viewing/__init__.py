"""What people look at: heat maps, class maps, and a page to explore them on. Needs the extra `view`."""
