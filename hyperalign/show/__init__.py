"""A saved run becomes a terminal table and one HTML file."""
