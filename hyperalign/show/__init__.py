"""A saved run becomes a terminal table and one HTML file; both are drawn from its files alone."""
