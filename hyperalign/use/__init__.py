"""What is made of cached rows and connectors when the search is over."""
