"""HyperCLIP, the optional last stage: a small image encoder fits itself to one set of prompts."""
